"""Trainers of every part, with fresh parameters and made-up data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from problems import ACTION_DIM, OBS_DIM, Problem

from fastdwm.models.nets import map_params
from fastdwm.models.rebrac import ReBRAC
from fastdwm.models.registry import WORLD_MODELS
from fastdwm.models.reward import reward_objective
from fastdwm.train.fit import Batches, CapturedUpdates, ModelTrainer, eager
from fastdwm.train.fqe import FQE
from fastdwm.train.offline import CRITIC_COLUMNS, MODEL_COLUMNS
from fastdwm_kernels import training

N_DATA = 100_000


@dataclass(frozen=True)
class Part:
    """A trainer, its data and the network that it trains."""

    trainer: Any
    batches: Batches
    batch_size: int
    network: str
    """name of the trained parameters among `trainer.networks`"""

    def update(self, captured: bool) -> Callable:
        """Function that does one update and returns its scalars."""
        return (CapturedUpdates if captured else eager)(self.trainer, self.batches, self.batch_size)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Make trainers without compiled updates, as without numba."""
    pack, training.pack_params = training.pack_params, lambda params: None
    try:
        yield
    finally:
        training.pack_params = pack


def rebrac(problem: Problem) -> Part:
    """Training of the critics and, at every update, the policy."""
    bundle, config = problem.bundle, replace(problem.bundle.rebrac_config, policy_period=1)
    trainer = ReBRAC(fresh(problem, bundle.policy), fresh(problem, bundle.critics), config, device_generator(problem))
    return Part(trainer, batches_of(problem, CRITIC_COLUMNS), config.batch_size, "critics")


def fqe(problem: Problem) -> Part:
    """Critics of the frozen policy."""
    bundle, config = problem.bundle, problem.bundle.rebrac_config
    trainer = FQE(
        fresh(problem, bundle.policy), fresh(problem, bundle.critics), config, 10_000, device_generator(problem)
    )
    return Part(trainer, batches_of(problem, CRITIC_COLUMNS), config.batch_size, "critics")


def world_model(name: str, problem: Problem) -> Part:
    trained = problem.bundle.worlds[name]
    loss = WORLD_MODELS[name].loss(trained.config, fresh(problem, problem.bundle.statistics))
    return model(problem, trained.params, loss, trained.config, MODEL_COLUMNS)


def reward(problem: Problem) -> Part:
    bundle = problem.bundle
    loss = reward_objective(fresh(problem, bundle.statistics))
    return model(problem, bundle.reward, loss, bundle.reward_config, ("obs", "action", "reward"))


PARTS = {"rebrac": rebrac, "fqe": fqe, "reward": reward}
PARTS |= {name: partial(world_model, name) for name in WORLD_MODELS}


def model(problem: Problem, params: dict, loss: Callable, config: Any, columns: tuple[str, ...]) -> Part:
    trainer = ModelTrainer(fresh(problem, params), loss, config, device_generator(problem))
    return Part(trainer, batches_of(problem, columns), config.batch_size, "raw")


def batches_of(problem: Problem, columns: tuple[str, ...]) -> Batches:
    random = np.random.default_rng(0)
    widths = {"reward": (), "terminated": (), "action": (ACTION_DIM,), "next_action": (ACTION_DIM,)}
    data = {name: random.uniform(-1, 1, (N_DATA, *widths.get(name, (OBS_DIM,)))) for name in columns}
    if "terminated" in data:
        data["terminated"] = data["terminated"] > 0.99
    return Batches(data, np.arange(N_DATA), problem.size.device)


def fresh(problem: Problem, params: dict) -> dict:
    """A copy to train."""
    return map_params(lambda value: value.to(problem.size.device, copy=True), params)


def device_generator(problem: Problem) -> torch.Generator:
    return torch.Generator(problem.size.device).manual_seed(0)
