"""bench/damage.py: every damage changes one model by the stated amount."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_bundles import make_bundle
from toy_data import write_dataset

from fastdwm.data.dataset import load
from fastdwm.errors import InputError
from fastdwm.measure.model_errors import measure_errors
from fastdwm.tasks import get_task
from fastdwm.weights import pack_tensors

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import damage  # noqa: E402


@pytest.fixture(scope="module")
def bundle():
    return make_bundle("diffusion", "meanflow")


@pytest.fixture(scope="module")
def transitions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDWM_CACHE", str(folder))
        return load(get_task("hopper-medium"), str(write_dataset(folder / "hopper.hdf5")))


@pytest.fixture(scope="module")
def rows(transitions):
    index = np.flatnonzero(transitions.split_episodes(0.25, 0)[1])
    return damage.Rows(transitions, index)


def same(a, b, but):
    """Whether two bundles differ in exactly one network."""
    old, new = (
        {"policy": x.policy, "critics": x.critics, "reward": x.reward}
        | {name: model.params for name, model in x.worlds.items()}
        for x in (a, b)
    )
    return {name for name in old if any(not torch.equal(old[name][k], new[name][k]) for k in old[name])} == {but}


def test_louder_critics_return_three_times_every_value(bundle, rows):
    louder, inputs = damage.louder_critics(bundle), (rows.column("obs"), rows.column("action"))
    before, after = (x.world("diffusion").critic(*inputs) for x in (bundle, louder))
    torch.testing.assert_close(after, 3 * before, rtol=1e-5, atol=1e-6)
    assert before.abs().max() > 0.01 and same(bundle, louder, but="critics")


def test_other_critics_are_those_of_the_file_under_the_old_policy(bundle, tmp_path):
    other = make_bundle(seed=7)
    path = tmp_path / "policy-10.safetensors"
    path.write_bytes(pack_tensors({"policy": other.policy, "critics": other.critics}))
    worse = damage.other_critics(bundle, str(path))
    assert all(torch.equal(worse.critics[name], other.critics[name]) for name in other.critics)
    assert same(bundle, worse, but="critics")


def test_a_biased_reward_has_three_times_the_error_and_its_mean(bundle, rows):
    worse, measured = damage.biased_reward(bundle, rows)
    inputs = rows.column("obs"), rows.column("action")
    before, after = (x.world("diffusion").reward(*inputs) for x in (bundle, worse))
    old, new = ((x - rows.column("reward")).square().mean().sqrt() for x in (before, after))
    assert float(new / old) == pytest.approx(3, rel=0.02) and f"{old:.3g} to {new:.3g}" in measured
    # The mean over states and actions stays.
    assert float((after - before).mean().abs()) < 1e-3 * float((after - before).std())
    assert same(bundle, worse, but="reward")


@pytest.mark.parametrize("world", ["diffusion", "meanflow"])
def test_a_wrong_world_has_five_times_the_one_step_error(bundle, transitions, rows, world):
    worse, _ = damage.wrong_world(bundle, world, rows)
    held_out = transitions.split_episodes(0.25, 0)[1]
    old, new = (
        measure_errors(x.world(world), transitions, held_out, x.statistics, seed=3)["one_step"]["obs_rmse"]
        for x in (bundle, worse)
    )
    assert new / old == pytest.approx(5, rel=0.1) and same(bundle, worse, but=world)


def test_a_model_without_error_cannot_be_made_worse_by_a_factor(bundle):
    with pytest.raises(InputError, match="RMSE of 0 could not be brought to 3 times as much"):
        damage.calibrated(lambda scale: bundle, lambda worse: 0.0, 3.0, "RMSE")


def test_rows_are_those_that_the_training_held_out(bundle, transitions, monkeypatch):
    monkeypatch.setattr(damage.data, "load", lambda task, source: transitions if source == "made up" else None)
    trained = replace(bundle, report={"holdout": 0.5, "seed": 4})
    rows = damage.Rows.of(trained)
    held_out = transitions.split_episodes(0.5, 4)[1]
    assert len(rows.index) == held_out.sum() and held_out[rows.index].all()
