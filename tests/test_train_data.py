"""Training and its data: refused numbers, diverged trainings, changed data."""

import json
import math
from dataclasses import replace
from typing import ClassVar

import h5py
import numpy as np
import pytest
import torch
from toy_data import write_dataset

from fastdwm import Bundle
from fastdwm.data.dataset import load
from fastdwm.errors import InputError, RunError
from fastdwm.models.config import MLPConfig, ReBRACConfig, RewardConfig
from fastdwm.report.models import trained_on
from fastdwm.tasks import get_task
from fastdwm.train.__main__ import main
from fastdwm.train.config import TrainConfig
from fastdwm.train.fit import Batches, Loop
from fastdwm.train.recipe import prepare

TASK, N = get_task("hopper-medium"), 400
FIT = {"updates": 20, "batch_size": 16, "hidden": (8, 8)}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Path of a D4RL file of 20 episodes with 20 steps."""
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path / "cache"))
    return write_dataset(tmp_path / "hopper.hdf5", length=20)


def config(path, out, **changes):
    """Settings of a training that takes half a second."""
    parts = {"rebrac": ReBRACConfig(**FIT), "mlp": MLPConfig(**FIT), "reward": RewardConfig(**FIT)}
    short = {"worlds": ("mlp",), "fqe_updates": 5, "log_every": 10, "save_every": 10, "eval_episodes": 0}
    # Hopper does not repeat these data.
    where = {"dataset": str(path), "out": out, "threads": 1, "trust_env": True}
    return TrainConfig(**(parts | short | where | changes))


def train(path, out, **changes):
    main("hopper-medium", config(path, out, **changes))


def change(path, name, row, value):
    with h5py.File(path, "a") as file:
        file[name][row] = value


HUGE, TINY = ("obs_mean|obs_std: expected values up to|finite"), "obs_std: expected values of at least 1e-06"
MAGNITUDES = [
    *((("obs", "next_obs"), scale, HUGE) for scale in (1e15, 1e30, 3e38)),
    (("obs", "next_obs"), 1e-30, TINY),
    *((("reward",), scale, "expected the largest reward to be 0 or within 1e-06") for scale in (1e15, 3e38, 1e-30)),
    (("next_obs",), 1e12, "delta_mean|delta_std: expected values up to 1e.06"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "scale", "message"), MAGNITUDES)
def test_numbers_that_no_bundle_can_hold_are_refused(data, tmp_path, recwarn, columns, scale, message):
    transitions = load(TASK, str(data))
    with np.errstate(over="ignore"):
        scaled = {name: (getattr(transitions, name) * scale).astype(np.float32) for name in columns}
    limits = {name: np.nan_to_num(values, posinf=3e38, neginf=-3e38) for name, values in scaled.items()}
    with pytest.raises(InputError, match=message) as error:
        prepare(TASK, replace(transitions, **limits), config(data, tmp_path))
    assert str(error.value).startswith(f"{data}: ") and "\n" not in str(error.value) and not recwarn.list


def test_rewards_that_are_all_zero_are_fine(data, tmp_path):
    transitions = load(TASK, str(data))
    prepare(TASK, replace(transitions, reward=np.zeros(N, np.float32)), config(data, tmp_path))


def test_refused_numbers_do_not_pin_the_settings_of_a_second_attempt(data, tmp_path):
    change(data, "rewards", 3, 1e15)
    with pytest.raises(InputError, match="expected the largest reward"):
        train(data, tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


LONG = FIT | {"updates": 80}
DIVERGED = {
    r"rebrac: the training diverged at update \d+: ": {"rebrac": ReBRACConfig(critic_lr=1e3, **LONG)},
    r"mlp: the training diverged at update \d+: the largest weight of raw is \d": {"mlp": MLPConfig(lr=1e3, **LONG)},
}


@pytest.mark.parametrize("message", DIVERGED)
def test_a_training_that_diverged_ends_where_it_did(data, tmp_path, message):
    part = message.split(":")[0]
    with pytest.raises(RunError, match=message) as error:
        train(data, tmp_path / "run", **DIVERGED[message])
    assert "\n" not in str(error.value)
    # It ends soon, saves nothing from after that, and the same command ends the same way.
    reached = int(str(error.value).split("update ")[1].split(":")[0])
    lines = [json.loads(line)["update"] for line in (tmp_path / "run" / f"{part}.jsonl").read_text().splitlines()]
    assert reached <= 60 and lines == list(range(10, reached, 10)) and not (tmp_path / "run" / "bundle").exists()
    with pytest.raises(RunError, match=message):
        train(data, tmp_path / "run", **DIVERGED[message])


class Failing:
    """Trainer whose second scalar, returned at every other update, is infinite in the seventh."""

    optimisers: ClassVar = {}

    def __init__(self):
        self.networks, self.n_updates, self.generator = {"raw": {"w": torch.zeros(1)}}, 0, torch.Generator()

    def advance(self):
        self.n_updates += 1

    def step(self, batch, kind):
        other = {"other": torch.tensor(math.inf if self.n_updates == 7 else 1.0)} if self.n_updates % 2 else {}
        return {"loss": torch.tensor(0.5), **other}


@pytest.mark.parametrize("save_every", [4, 100])
def test_a_scalar_that_is_not_finite_is_told_with_its_update(tmp_path, save_every):
    batches = Batches({"obs": np.zeros((3, 1))}, np.arange(3))
    loop = Loop(tmp_path, 10, save_every, lambda *_: None)
    with pytest.raises(RunError, match="part: the training diverged at update 7: other is inf; give"):
        loop.fit("part", Failing(), batches, 2, 50)
    assert (tmp_path / "part.safetensors").exists() == (save_every == 4)


def test_a_bundle_that_cannot_be_read_back_is_no_success(data, tmp_path, monkeypatch):
    save = Bundle.save

    def save_and_damage(bundle, folder):
        save(bundle, folder)
        with (folder / "weights.safetensors").open("r+b") as file:
            file.truncate(1000)

    monkeypatch.setattr(Bundle, "save", save_and_damage)
    with pytest.raises(InputError, match="weights.safetensors: expected a safetensors file"):
        train(data, tmp_path / "run")


CHANGES = {
    "observations": (5, 0.5),
    "next_observations": (19, 0.5),
    "rewards": (5, 0.5),
    "terminals": (19, True),
    "timeouts": (10, True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_notices_that_its_data_changed_under_their_name(data, tmp_path, name):
    out = tmp_path / "run"
    content = data.read_bytes()
    train(data, out)
    before = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    change(data, name, *CHANGES[name])
    if name == "terminals":
        # With both flags a row is truncated, as before.
        change(data, "timeouts", 19, False)
    with pytest.raises(InputError, match=r"dataset: .*hopper.hdf5 is not what the run in .* was trained on"):
        train(data, out)
    assert {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # The original data are accepted again.
    data.write_bytes(content)
    train(data, out)


def test_a_run_without_a_fingerprint_of_its_data_goes_on(data, tmp_path):
    out = tmp_path / "run"
    train(data, out)
    identity = json.loads((out / "config.json").read_text())
    assert identity.pop("data")["fingerprint"] == Bundle.load(out / "bundle").dataset["fingerprint"]
    (out / "config.json").write_text(json.dumps(identity))
    train(data, out)
    assert "data" in json.loads((out / "config.json").read_text())


def test_bundles_with_the_former_fingerprint_know_their_data(data):
    transitions = load(TASK, str(data))
    for fingerprint, expected in (
        (transitions.fingerprint, True),
        (transitions.short_fingerprint, True),
        ("0" * 64, False),
    ):
        assert trained_on({"id": "other", "fingerprint": fingerprint}, transitions)[0] is expected
