"""Maximum deviation: its measurement on episodes worked out by hand, and `report deviation`."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from toy_bundles import ACTION_DIM, OBS_DIM, make_bundle
from toy_data import write_dataset

from fastdwm import Bundle, InputError, ITPOConfig
from fastdwm.config import Settings
from fastdwm.data.dataset import Transitions, load
from fastdwm.envs import EnvSpec
from fastdwm.measure import deviation
from fastdwm.measure.deviation import max_deviation
from fastdwm.models.policy import Policy
from fastdwm.report import __main__ as report

STILL = {"w0": torch.zeros(3, 4), "b0": torch.zeros(4), "w1": torch.zeros(4, 2), "b1": torch.zeros(2)}
"""policy that returns zero, so that the data's actions are their deviations"""


def recorded(*episodes, obs=None):
    """Transitions with the actions (L, A) of these episodes."""
    action = np.concatenate([np.array(episode, np.float32) for episode in episodes])
    n, flags = len(action), np.zeros(len(action), bool)
    ends = np.isin(np.arange(n), np.cumsum([len(episode) for episode in episodes]) - 1)
    obs = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32) if obs is None else obs
    return Transitions(obs, action, flags * 0.0, obs, action, flags, ends, ~flags, "by hand", EnvSpec("Hopper-v5"))


def actions_of(policy, obs):
    """Actions of the policy in obs (N, S)."""
    acting = Policy.mlp(policy)
    return acting.apply(acting.layout.views(acting.base), torch.from_numpy(obs).unsqueeze(0))[0].numpy()


def test_two_episodes_worked_out_by_hand():
    """A discount of 1/2 looks two decisions ahead."""
    first = [[0.4, 0.0], [0.2, 0.0], [0.0, -0.2], [0.0, 0.2]]  # means (0.3, 0), (0, 0)
    second = [[0.5, -0.5], [0.1, -0.1], [-0.2, 0.6], [-0.2, 0.0]]  # means (0.3, -0.3), (-0.2, 0.3)
    expected = math.sqrt((0.09 + 0 + 0 + 0 + 0.09 + 0.09 + 0.04 + 0.09) / 8)
    assert max_deviation(recorded(first, second), STILL, 0.5) == pytest.approx(expected, rel=1e-6)


def test_a_constant_offset_from_the_policy_is_found_whatever_the_windows():
    bundle, offset = make_bundle(), np.array([0.1, -0.2, 0.05])
    obs = np.random.default_rng(1).normal(size=(70, OBS_DIM)).astype(np.float32)
    action = actions_of(bundle.policy, obs) + offset
    transitions = recorded(action[:33], action[33:50], action[50:], obs=obs)
    expected = np.sqrt(np.square(offset).mean())
    for discount in (0.5, 0.9, 0.99):
        assert max_deviation(transitions, bundle.policy, discount) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shared", [0.1, 0.0])
def test_exploration_noise_averages_out(shared):
    """The mean of 100 decisions keeps 0.03 of a noise with a standard deviation of 0.3, and all of a shared offset."""
    rng = np.random.default_rng(2)
    transitions = recorded(*(shared + 0.3 * rng.standard_normal((400, 2)) for _ in range(100)))
    # For the squares of 800 normal numbers, 4 standard errors of the mean are 20 %.
    assert max_deviation(transitions, STILL, 0.99) ** 2 == pytest.approx(shared**2 + 0.03**2, rel=0.2)


def test_the_window_is_no_longer_than_the_median_episode_and_pieces_are_not_used():
    """Lengths 4, 6 and 13 give windows of 6: the first episode and the thirteenth decision are not used."""
    used, unused = [[0.1, 0.1]], [[1.0, -1.0]]
    transitions = recorded(4 * unused, 6 * used, 12 * used + unused)
    assert max_deviation(transitions, STILL, 0.99) == pytest.approx(0.1, rel=1e-6)
    # Windows of two leave nothing of the first two episodes.
    expected = math.sqrt((2 * 1.0 + 9 * 0.01) / 11)
    assert max_deviation(transitions, STILL, 0.5) == pytest.approx(expected, rel=1e-6)


def test_windows_lie_within_episodes():
    """In opposite episodes of three, a window of two across a border would average to zero."""
    ahead = [[0.2, 0.2]] * 3
    transitions = recorded(*(np.array(ahead) * (-1) ** i for i in range(6)))
    assert max_deviation(transitions, STILL, 0.5) == pytest.approx(0.2, rel=1e-6)


def test_rows_at_a_time_change_nothing(monkeypatch):
    bundle, rng = make_bundle(), np.random.default_rng(3)
    obs, action = (rng.uniform(-1, 1, (100, size)).astype(np.float32) for size in (OBS_DIM, ACTION_DIM))
    transitions = recorded(action[:60], action[60:], obs=obs)
    expected = max_deviation(transitions, bundle.policy, 0.9)
    monkeypatch.setattr(deviation, "ROWS", 7)
    assert max_deviation(transitions, bundle.policy, 0.9) == pytest.approx(expected, rel=1e-5)


def test_the_policys_own_data_say_nothing():
    with pytest.raises(InputError, match="by hand: expected actions that differ .*got the policy's own"):
        max_deviation(recorded(np.zeros((8, 2))), STILL, 0.5)


# Command


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Folder of an unmeasured bundle, and the D4RL file of 10 random episodes that it names as its data."""
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path / "cache"))
    path = write_dataset(tmp_path / "hopper.hdf5", n_episodes=10)
    make_bundle(dataset={"id": str(path)}, max_deviation=None).save(tmp_path / "bundle")
    return tmp_path / "bundle", path


def measured(bundle, path):
    """Maximum deviation by the library."""
    return max_deviation(load(bundle.task, str(path)), bundle.policy, bundle.discount)


@pytest.mark.parametrize("other", [False, True], ids=["own-data", "other-data"])
def test_the_command_writes_the_measure_into_the_bundle(lab, other, tmp_path, capsys):
    folder, path = lab
    before = Bundle.load(folder)
    with pytest.raises(InputError, match="report deviation BUNDLE"):
        before.bound  # noqa: B018
    if other:
        path = path.rename(tmp_path / "hopper-other.hdf5")
    report.main(["deviation", str(folder), "--trust-env", *(["--dataset", str(path)] if other else [])])
    after = Bundle.load(folder)
    assert after.bound == measured(before, path) > 0.01
    assert f"max_deviation: {after.bound:.4f}, from 400 transitions of {path}" in capsys.readouterr().out
    assert (after.fingerprint, after.dataset) == (before.fingerprint, before.dataset)


def test_data_that_the_simulator_does_not_repeat_are_refused(lab):
    """Scaled actions would give another bound."""
    folder, before = lab[0], (lab[0] / "bundle.json").read_bytes()
    with pytest.raises(InputError, match="hopper.hdf5: replayed in Hopper-v4, .*--trust-env"):
        report.main(["deviation", str(folder)])
    assert (folder / "bundle.json").read_bytes() == before


def test_without_write_it_is_only_shown(lab, capsys):
    folder, path = lab
    before = (folder / "bundle.json").read_bytes()
    report.main(["deviation", str(folder), "--no-write", "--trust-env"])
    assert f"max_deviation: {measured(Bundle.load(folder), path):.4f}" in capsys.readouterr().out
    assert (folder / "bundle.json").read_bytes() == before


def test_a_shipped_bundle_stays_as_it_is(lab, capsys):
    with pytest.raises(
        InputError, match="bundle: hopper-medium is shipped, and stays as it is; --no-write prints the value"
    ):
        report.main(["deviation", "hopper-medium", "--dataset", str(lab[1])])
    assert capsys.readouterr().out == ""
    report.main(["deviation", "hopper-medium", "--dataset", str(lab[1]), "--no-write", "--trust-env"])
    assert f"{measured(Bundle.load('hopper-medium'), lab[1]):.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("itpo", [asdict(ITPOConfig()), {"leash": 0.1, "radius": 1.0}], ids=["today", "earlier"])
def test_a_new_bound_removes_the_tuned_settings(lab, itpo):
    """That holds even for settings of an earlier version, with which the bundle cannot be loaded."""
    folder, path = lab
    header = json.loads((folder / "bundle.json").read_text())
    tuning = {"settings": Settings().record() | {"itpo": itpo}, "weights_sha256": header["weights_sha256"]}
    (folder / "bundle.json").write_text(json.dumps(header | {"max_deviation": 0.5, "tuning": tuning}))
    if "leash" in itpo:
        with pytest.raises(InputError, match="tuning: leash is a setting of an earlier version; tune .* again"):
            Bundle.load(folder)
    report.main(["deviation", str(folder), "--trust-env"])
    after = Bundle.load(folder)
    assert after.tuning is None and after.bound == measured(after, path) != 0.5


def test_a_bundle_that_does_not_say_its_data_needs_the_flag(tmp_path):
    make_bundle(dataset={}).save(tmp_path / "bundle")
    with pytest.raises(InputError, match="dataset: .*bundle does not say what it was trained on; give --dataset ID"):
        report.main(["deviation", str(tmp_path / "bundle")])
