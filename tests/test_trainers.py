"""Trainers: a resumed training gives the same bits, with packed and with plain parameters."""

import numpy as np
import pytest
import torch

from fastdwm.models import nets
from fastdwm.models.config import FitConfig, ReBRACConfig
from fastdwm.models.nets import init_mlp
from fastdwm.models.rebrac import ReBRAC, init_critics, init_policy
from fastdwm.models.registry import WORLD_MODELS
from fastdwm.models.reward import reward_objective, reward_shapes
from fastdwm.tasks import get_task
from fastdwm.train.fit import Batches, Loop, ModelTrainer
from fastdwm.train.fqe import FQE
from fastdwm_kernels import training

OBS_DIM, ACTION_DIM, N, UPDATES, HIDDEN = 5, 2, 300, 100, (33, 20)
PARTS = ("rebrac", "fqe", "reward", *WORLD_MODELS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batches() -> Batches:
    random = np.random.default_rng(0)
    widths = {"obs": OBS_DIM, "next_obs": OBS_DIM, "action": ACTION_DIM, "next_action": ACTION_DIM}
    columns = {name: random.uniform(-1, 1, (N, width)) for name, width in widths.items()}
    columns |= {"reward": random.uniform(-1, 1, N), "terminated": random.random(N) > 0.9}
    return Batches(columns | {"weight": random.uniform(0, 2, N)}, np.arange(N))


def make_trainer(name: str):
    """Fresh trainer, the same at each call."""
    names = [f"{of}_{what}" for of in ("obs", "delta") for what in ("mean", "std")]
    statistics = {name: torch.linspace(0.5, 1.5, OBS_DIM) for name in names}
    fit = {"updates": UPDATES, "hidden": HIDDEN, "lr": 1e-2}
    if name in ("rebrac", "fqe"):
        config = ReBRACConfig(hidden=HIDDEN, updates=UPDATES, lr_decay=True).for_task(get_task("hopper-medium"))
        dims = OBS_DIM, ACTION_DIM, HIDDEN
        networks = init_policy(*dims, generator(1)), init_critics(*dims, generator(2))
        extra = (UPDATES,) if name == "fqe" else ()
        return {"rebrac": ReBRAC, "fqe": FQE}[name](*networks, config, *extra, generator())
    if name == "reward":
        config, loss = FitConfig(**fit), reward_objective(statistics)
        shapes = reward_shapes(OBS_DIM, ACTION_DIM, config)
    else:
        world = WORLD_MODELS[name]
        config = world.config(**fit)
        shapes, loss = world.shapes(OBS_DIM, ACTION_DIM, config), world.loss(config, statistics)
    return ModelTrainer(init_mlp(shapes, generator(3)), loss, config, generator())


def fit(name: str, folder, updates: int):
    folder.mkdir(exist_ok=True)
    trainer = make_trainer(name)
    loop = Loop(folder, log_every=10, save_every=UPDATES, on_progress=lambda *args: None)
    loop.fit(name, trainer, make_batches(), 17, updates)
    return trainer


def values(trainer) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v.detach() for n, params in trainer.networks.items() for k, v in params.items()}


@pytest.mark.parametrize("name", PARTS)
def test_updates_resumed_half_way_equal_those_in_one_go(name, tmp_path):
    uninterrupted = fit(name, tmp_path / "whole", UPDATES)
    fit(name, tmp_path / "halves", UPDATES // 2)
    halves = fit(name, tmp_path / "halves", UPDATES)
    for key, value in values(uninterrupted).items():
        assert torch.equal(value, values(halves)[key]), key


@pytest.mark.parametrize("name", PARTS)
def test_packed_and_plain_parameters_take_the_same_steps_and_each_others_checkpoints(name, tmp_path, monkeypatch):
    pytest.importorskip("numba")
    assert all(isinstance(params, training.PackedParams) for params in make_trainer(name).networks.values())
    start, packed = values(make_trainer(name)), values(fit(name, tmp_path / "packed", 30))
    with monkeypatch.context() as patch:
        patch.setattr(training, "pack_params", lambda params: None)
        assert not any(isinstance(params, training.PackedParams) for params in make_trainer(name).networks.values())
        plain = values(fit(name, tmp_path / "plain", 30))
        goes_on = values(fit(name, tmp_path / "packed", UPDATES))
    came_back = values(fit(name, tmp_path / "plain", UPDATES))
    for key, value in packed.items():
        moved = (value - start[key]).norm()
        assert (value - plain[key]).norm() <= 1e-3 * moved, key
        assert (goes_on[key] - came_back[key]).norm() <= 1e-2 * (goes_on[key] - start[key]).norm(), key


def test_a_step_leaves_no_gradient_behind():
    trainer = make_trainer("meanflow")
    trainer.step(make_batches().sample(17, generator()), trainer.advance())
    assert all(value.grad is None for value in nets.leaves(trainer.networks["raw"]))
