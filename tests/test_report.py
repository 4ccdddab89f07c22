"""python -m fastdwm.report models BUNDLE: held-out data, calibration, files, and refused input."""

import dataclasses
import json
import os
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from commands import refused, run
from toy_bundles import ALL, make_bundle

from fastdwm.data.dataset import EnvSpec, Transitions, load
from fastdwm.errors import InputError
from fastdwm.measure import model_errors
from fastdwm.models.world import World
from fastdwm.report import models as report
from fastdwm.report import tables
from fastdwm.report.config import ReportConfig
from fastdwm.tasks import get_task
from fastdwm.train.recipe import dataset_record

HOPPER = EnvSpec("Hopper-v5", {}, None)
SMALL = {"episodes": 2, "max_steps": 30, "jacobian_states": 4, "return_states": 4, "particles": 2}


@pytest.fixture
def bundle():
    """Untrained bundle for hopper-medium with all world models."""
    return make_bundle(*ALL, settings={"diffusion": {"denoise_steps": 2}}, report={"seed": 3})


@pytest.fixture
def folder(bundle, tmp_path):
    bundle.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def write_dataset(path, bundle, n_episodes):
    """Write a D4RL file of short episodes of the bundle's policy; returns the transitions."""
    transitions = model_errors.fresh_episodes(bundle.policy, HOPPER, list(range(n_episodes)), 20, 0.5)
    names = {"obs": "observations", "next_obs": "next_observations", "action": "actions", "reward": "rewards"}
    names |= {"terminated": "terminals", "truncated": "timeouts"}
    with h5py.File(path, "w") as file:
        for ours, theirs in names.items():
            file[theirs] = getattr(transitions, ours)
    return transitions


def test_report_leaves_tables_json_and_picture(folder, tmp_path, capsys):
    report.main(str(folder), ReportConfig(out=tmp_path / "out", **SMALL))
    stdout = capsys.readouterr().out
    (path,), (picture,) = (tmp_path / "out").glob("hopper-medium-models-*.json"), (tmp_path / "out").glob("*.png")
    assert stdout.splitlines()[-2:] == [str(path), str(picture)]
    record = json.loads(path.read_text())
    assert list(record["worlds"]) == ["diffusion", "meanflow", "mlp"]
    assert [world["network_calls"] for world in record["worlds"].values()] == [2, 1, 1]
    assert {"python", "torch", "mujoco", "gymnasium"} <= record["versions"].keys()
    assert record["config"]["seed"] == 40_000 and record["command"]
    for world in record["worlds"].values():
        assert f"{world['one_step']['obs_rmse']:.4f}" in stdout
        assert [line["H"] for line in world["return_gradient"]] == [1, 3, 5]
        assert world["jacobian"]["next_obs_by_action"]["states"] == 4
        assert 0 <= world["return_gradient"][0]["relative_error"]["low"]
    # A perfect network with K = 2 steps loses most of the spread, one step of MeanFlow loses none.
    perfect = {name: x["calibration"]["perfect_spread_to_error"] for name, x in record["worlds"].items()}
    assert 0 < perfect["diffusion"] < 1 and (perfect["meanflow"], perfect["mlp"]) == (1, 0)
    assert re.search(f"of a perfect network.* {perfect['diffusion']:.2f} .* 1.00 .* 0.00 ", stdout)
    assert f"{record['reward']['reward_rmse']:.4f}" in stdout
    assert "2 fresh episodes" in stdout


def test_gradients_can_be_left_out(folder, tmp_path, capsys):
    report.main(str(folder), ReportConfig(out=tmp_path / "out", gradients=False, **SMALL))
    record = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert "jacobian" not in record["worlds"]["mlp"] and "calibration" in record["worlds"]["mlp"]
    assert "d return" not in capsys.readouterr().out


def test_simulator_without_state_is_refused_at_once(bundle, tmp_path):
    hidden = dataclasses.replace(bundle, task=dataclasses.replace(bundle.task, env=EnvSpec("Pendulum-v1", {}, None)))
    hidden.save(tmp_path / "bundle")
    with pytest.raises(InputError, match="Pendulum-v1 cannot be set .*--no-gradients"):
        report.main(str(tmp_path / "bundle"), ReportConfig(out=tmp_path, trust_env=True, **SMALL))


def test_fresh_episodes_are_episodes(bundle):
    transitions = model_errors.fresh_episodes(bundle.policy, HOPPER, [7, 8], 15, 0.3)
    ends = transitions.episode_ends
    assert transitions.n_episodes == 2 and transitions.truncated[ends].sum() + transitions.terminated[ends].sum() == 2
    inside = np.setdiff1d(np.arange(transitions.n), ends)
    np.testing.assert_array_equal(transitions.next_obs[inside], transitions.obs[inside + 1])
    np.testing.assert_array_equal(transitions.next_action[inside], transitions.action[inside + 1])
    assert not transitions.next_action[ends].any() and np.abs(transitions.action).max() <= 1
    with HOPPER.make() as env:
        np.testing.assert_allclose(transitions.obs[ends[0] + 1], env.reset(seed=8)[0], rtol=1e-6)
    short = model_errors.fresh_episodes(bundle.policy, EnvSpec("Hopper-v5", {}, 10), [7, 8], 15, 0.3)
    assert short.episode_ends.tolist() == [9, 19]
    again = model_errors.fresh_episodes(bundle.policy, HOPPER, [8], 15, 0.3)
    np.testing.assert_array_equal(again.obs, transitions.obs[ends[0] + 1 :])


@pytest.fixture
def dataset(bundle, tmp_path, monkeypatch):
    """Path of a file of 6 episodes, and the bundle as if trained on it."""
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path / "cache"))
    write_dataset(tmp_path / "hopper.hdf5", bundle, 6)
    task = get_task("hopper-medium")
    record = dataset_record(load(task, str(tmp_path / "hopper.hdf5")), task)
    return tmp_path / "hopper.hdf5", dataclasses.replace(bundle, dataset=record)


def held_out(bundle, dataset, **settings):
    """Transitions, held-out rows and their description, with the seed of the training."""
    return report.held_out(bundle, report.with_seed(ReportConfig(dataset=str(dataset), **settings), bundle), None)


def without_fingerprint(bundle, **changes):
    """Bundle of a version without fingerprints of the data."""
    old = {key: value for key, value in bundle.dataset.items() if key != "fingerprint"}
    return dataclasses.replace(bundle, dataset=old | changes)


def test_held_out_episodes_are_those_that_the_training_held_out(dataset):
    path, trained = dataset
    transitions, rows, source = held_out(trained, path, holdout=0.4)
    np.testing.assert_array_equal(rows, transitions.split_episodes(0.4, seed=3)[1])
    assert source.startswith("2 held-out episodes") and source.endswith(
        "(the training's data, compared by the content)"
    )
    with pytest.raises(InputError, match="cannot tell which episodes"):
        held_out(dataclasses.replace(trained, dataset=trained.dataset | {"episodes": 5}), path)


@pytest.mark.parametrize("old", [False, True], ids=["fingerprint", "numbers"])
@pytest.mark.parametrize("alias", ["./hopper.hdf5", "copy.hdf5", "link.hdf5"])
def test_training_data_are_known_by_any_name(dataset, monkeypatch, old, alias):
    path, trained = dataset
    monkeypatch.chdir(path.parent)
    shutil.copy(path, "copy.hdf5")
    os.symlink(path, "link.hdf5")
    transitions, rows, source = held_out(without_fingerprint(trained) if old else trained, alias)
    np.testing.assert_array_equal(rows, transitions.split_episodes(0.05, seed=3)[1])
    assert f"of {alias}" in source and source.endswith(f"{'mean return' if old else 'the content'})")


def test_all_of_another_dataset_is_held_out(dataset, tmp_path):
    write_dataset(tmp_path / "other.hdf5", dataset[1], 2)
    for trained, how in ((dataset[1], "the content"), (without_fingerprint(dataset[1]), "mean return")):
        transitions, rows, source = held_out(trained, tmp_path / "other.hdf5")
        assert rows.all() and len(rows) == transitions.n
        assert f"trained on {dataset[0]}, compared by" in source and how in source


@pytest.mark.parametrize("old", [False, True], ids=["fingerprint", "numbers"])
def test_a_dataset_that_changed_under_its_name_is_refused(dataset, monkeypatch, old):
    path, trained = dataset
    monkeypatch.chdir(path.parent)
    write_dataset(path, trained, 2)
    with pytest.raises(InputError, match=r"hopper.hdf5 is not what the bundle was trained on: cannot tell"):
        held_out(without_fingerprint(trained) if old else trained, "./hopper.hdf5")


@pytest.mark.parametrize("missing", [None, "many"], ids=["none", "text"])
def test_a_bundle_that_does_not_name_its_data_holds_nothing_out(dataset, tmp_path, missing):
    write_dataset(tmp_path / "other.hdf5", dataset[1], 2)
    with pytest.raises(InputError, match="the bundle does not say what .* was: cannot tell what is new"):
        held_out(without_fingerprint(dataset[1], mean_return=missing), tmp_path / "other.hdf5")


def test_no_more_is_held_out_than_the_training_did(dataset):
    path, bundle = dataset
    trained = dataclasses.replace(bundle, report={"seed": 3, "holdout": 0.2})
    with pytest.raises(InputError, match=r"holdout: expected at most 0.2, what the training held out, got 0.4"):
        held_out(trained, path, holdout=0.4)
    few, many = (held_out(trained, path, holdout=share)[1] for share in (0.1, 0.2))
    assert few.any() and not (few & ~many).any()


class Gaussian:
    """Model of Gaussian noise with this std around the observation."""

    noise_steps = 1

    def __init__(self, std):
        self.std = std

    def next_obs(self, obs, action, noise):
        return obs + self.std * noise[0]


@pytest.fixture
def random_walk():
    rng, n = np.random.default_rng(0), 2000
    obs, action = rng.standard_normal((n, 20), np.float32), np.zeros((n, 1), np.float32)
    next_obs, flags = obs + rng.standard_normal((n, 20), np.float32), np.zeros(n, bool)
    return Transitions(obs, action, obs[:, 0], next_obs, action, flags, flags | True, ~flags, "walk", HOPPER)


def measured(std, transitions, reward_scale=1.0):
    world = World(Gaussian(std), lambda obs, action: reward_scale * obs[..., 0], {}, 0.9)
    every, units = np.ones(transitions.n, bool), dict.fromkeys(("obs_std", "delta_std"), torch.ones(20))
    return model_errors.measure_errors(world, transitions, every, units, reward_scale=reward_scale)


def test_a_calibrated_model_covers_what_it_says(random_walk):
    calibration = measured(1.0, random_walk)["calibration"]
    assert calibration["spread_to_error"] == pytest.approx(1, abs=0.05)
    # Three standard errors of 1000 rows with 20 independent coordinates are at most 0.011.
    np.testing.assert_allclose(calibration["coverage"], calibration["levels"], atol=0.011)


def test_a_model_that_spreads_too_little_covers_too_little(random_walk):
    calibration = measured(0.5, random_walk)["calibration"]
    assert calibration["spread_to_error"] == pytest.approx(0.5, abs=0.05)
    # Half of a normal's 90 % interval holds 59 %.
    assert calibration["coverage"][calibration["levels"].index(0.9)] == pytest.approx(0.59, abs=0.04)


def test_a_deterministic_model_covers_nothing(random_walk):
    calibration = measured(0.0, random_walk)["calibration"]
    assert calibration["spread_to_error"] == 0 and not any(calibration["coverage"])


class Drifting:
    """Standing ants, which the model moves by 0.1 along each axis at every step."""

    noise_steps = 0

    def next_obs(self, obs, action, noise):
        return torch.cat([obs[..., :3] + 0.1, obs[..., 3:]], -1)


def test_errors_of_ants_are_told_apart_by_groups_of_coordinates():
    n, rng = 40, np.random.default_rng(0)
    obs, action, flags = np.zeros((n, 29), np.float32), np.zeros((n, 8), np.float32), np.zeros(n, bool)
    next_obs = obs.copy()
    obs[:, 15:] = next_obs[:, 15:] = rng.standard_normal(14)
    ends = np.arange(n) == n - 1
    env = get_task("antmaze-umaze").env
    ants = Transitions(obs, action, np.zeros(n, np.float32), next_obs, action, flags, ends, ~flags, "ants", env)
    world = World(Drifting(), lambda obs, action: obs[..., 0] * 0, {}, 0.9)
    units = dict.fromkeys(("obs_std", "delta_std"), torch.ones(29))
    errors = model_errors.measure_errors(world, ants, np.ones(n, bool), units)
    for line in (errors["one_step"], *errors["open_loop"]):
        position, orientation, joints, velocities = line["groups"].values()
        assert position == pytest.approx(0.1 * line.get("h", 1), rel=1e-5)
        assert orientation == joints == velocities == 0
    rows = tables.prediction_rows([{"network_calls": 1, **errors}])
    assert ["    position in m (no change: 0.0000)", "1.0000"] in rows


def test_rewards_are_compared_in_the_unit_that_was_learnt(random_walk):
    assert measured(1.0, random_walk, reward_scale=100.0)["one_step"]["reward_rmse"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["modells", "hopper-medium"], "modells"),
        (["models"], "BUNDLE"),
        (["models", "hoper-medium"], "hopper-medium"),
        (["models", "/nowhere"], "/nowhere: no such folder"),
        (["models", "hopper-medium", "--particles", "0"], "particles: expected a positive number, got 0"),
    ],
    ids=["report", "no-bundle", "task", "folder", "particles"],
)
def test_wrong_input_is_one_line_and_exit_code_2(args, message, tmp_path):
    refused(run("report", *args, "--out", tmp_path), message)


@pytest.mark.slow
def test_gradients_of_the_shipped_models_point_where_the_simulators_do(tmp_path):
    sizes = ["--episodes", "2", "--max-steps", "60", "--jacobian-states", "20", "--return-states", "20"]
    done = run("report", "models", "hopper-medium", "--out", tmp_path, *sizes)
    assert done.returncode == 0, done.stderr
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    for world in record["worlds"].values():
        assert world["jacobian"]["next_obs_by_action"]["cosine"]["median"] > 0.99
        assert all(line["cosine"]["median"] > 0.9 for line in world["return_gradient"])
    assert re.search(r"gradients of the return: \d+/\d+, .* left", done.stderr)
