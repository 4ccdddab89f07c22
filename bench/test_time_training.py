"""One training update of each part, with the batch sizes that training uses."""

from dataclasses import replace

import numpy as np
import torch
from peers import tried
from problems import ACTION_DIM, OBS_DIM, Problem, Size

from fastdwm.models.diffusion import diffusion_objective
from fastdwm.models.nets import map_params
from fastdwm.models.rebrac import ReBRAC
from fastdwm.models.reward import reward_objective
from fastdwm.train.fit import EAGER_UPDATES, Batches, CapturedUpdates, ModelTrainer, eager
from fastdwm.train.recipe import CRITIC_COLUMNS

N_DATA = 100_000

PEERS = {"cpu": ("reference",), "cuda": ("reference", "reference graph")}


def width_alone(size: Size) -> Size:
    return Size(D=size.D, device=size.device)


UPDATES = ("test_rebrac_update", "test_diffusion_update", "test_reward_update")
RACES = {name: (width_alone, PEERS) for name in UPDATES}


def run(race, problem: Problem, peer: str, operation: str, trainer, columns: tuple, rows: int, network: str):
    """There is nothing to compare with: an update has to stay finite and to change the parameters."""
    updates_of = CapturedUpdates if peer == "reference graph" else eager
    update = updates_of(trainer, batches_of(problem, columns), rows)
    before = trainer.networks[network]["w0"].detach().clone()
    # Captured updates are eager before they are captured.
    losses = [tried(operation, update, once=True) for _ in range(2 * EAGER_UPDATES)][-1]
    after = trainer.networks[network]["w0"].detach()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert torch.isfinite(after).all() and not torch.equal(before, after)
    race(operation, problem.size, peer, update, None, batch_size=rows)


def batches_of(problem: Problem, columns: tuple) -> Batches:
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


def test_rebrac_update(size, peer, problem, race):
    bundle, config = problem.bundle, replace(problem.bundle.rebrac_config, policy_period=1)
    trainer = ReBRAC(fresh(problem, bundle.policy), fresh(problem, bundle.critics), config, device_generator(problem))
    run(race, problem, peer, "rebrac update with policy step", trainer, CRITIC_COLUMNS, config.batch_size, "critics")


def test_diffusion_update(size, peer, problem, race):
    model, statistics = problem.bundle.worlds["diffusion"], fresh(problem, problem.bundle.statistics)
    config, params = model.config, fresh(problem, model.params)
    loss = diffusion_objective(config, statistics)
    trainer = ModelTrainer(params, loss, config, device_generator(problem))
    run(race, problem, peer, "diffusion update", trainer, ("obs", "action", "next_obs"), config.batch_size, "raw")


def test_reward_update(size, peer, problem, race):
    config, statistics = problem.bundle.reward_config, fresh(problem, problem.bundle.statistics)
    params = fresh(problem, problem.bundle.reward)
    trainer = ModelTrainer(params, reward_objective(statistics), config, device_generator(problem))
    run(race, problem, peer, "reward update", trainer, ("obs", "action", "reward"), config.batch_size, "raw")
