"""Run the base policy and ITPO on the same environment seeds, in one or several processes."""

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from fastdwm.agent import Agent
from fastdwm.bundle import Bundle
from fastdwm.command import Progress, StageProgress
from fastdwm.engines.interface import Job, run_all
from fastdwm.engines.processes import Processes
from fastdwm.eval.config import EvalConfig
from fastdwm.measure.control import Drift
from fastdwm.measure.latency import decision_latency
from fastdwm.measure.simulate import Predictions, Run, run_episodes, step_limit


@dataclass
class Evaluation:
    """Results of the base policy and ITPO on the same environment seeds."""

    seeds: list[int]
    runs: dict[str, Run]
    """episodes by policy: base, itpo"""
    alone_latency_s: dict[str, list[float]]
    """seconds per decision of one episode alone, by policy"""
    titles: dict[str, str]
    """names for tables and pictures, by policy"""


def compare(bundle: Bundle, config: EvalConfig, on_progress: Progress) -> Evaluation:
    """Evaluate the bundle's base policy, then ITPO, on the environment seeds config.seed + i.

    on_progress: counts the decisions of each stage.   Raises InputError if the length of an episode has no limit.
    """
    seeds = [config.seed + i for i in range(config.episodes)]
    configs = {"base": replace(config, itpo=replace(config.itpo, inner_steps=0)), "itpo": config}
    titles = {"base": "base policy", "itpo": "control" if config.drifts else "ITPO"}
    # A simulator that cannot be built is reported before the compilation, which may take a minute.
    step_limit(bundle.task.env, config.max_steps)
    # Compile the CPU kernels here, where progress is shown, and once for all processes.
    on_progress("preparation (the first run compiles)", 0, 1)
    make_agent(bundle, replace(config, deadline_ms=None), config.seed)
    on_progress("preparation (the first run compiles)", 1, 1)
    runs = {
        policy: run_shared(bundle, configs[policy], seeds, partial(on_progress, title))
        for policy, title in titles.items()
    }
    alone = {}
    for policy, title in titles.items():
        agent = make_agent(bundle, configs[policy], config.seed)
        # Both policies are timed on the states of the base policy.
        on_decision = partial(on_progress, f"{title}, one episode alone")
        alone[policy] = decision_latency(agent, runs["base"].observations, on_decision)
    return Evaluation(seeds, runs, alone, titles)


def make_agent(bundle: Bundle, config: EvalConfig, seed: int, n_episodes: int = 1) -> Agent | Drift:
    """Make the agent for these settings; with a deadline, also warm it up for `n_episodes` at once."""
    if config.drifts:
        return Drift(bundle, config.itpo.max_deviation or bundle.bound, seed)
    settings = {
        name: getattr(config, name) for name in ("device", "backend", "precision", "temperature", "deadline_ms")
    }
    world = dict(world=config.world, world_steps=config.world_steps)
    agent = Agent.of(bundle, config.itpo, seed=seed, **world, **settings)
    if agent.deadline is not None:
        agent.warm_up(bundle.statistics["obs_mean"].repeat(n_episodes, 1))
    return agent


def run_shared(bundle: Bundle, config: EvalConfig, seeds: list[int], on_progress: StageProgress) -> Run:
    """Run one episode per seed (consecutive seeds), shared among config.workers processes."""
    shares = [share.tolist() for share in np.array_split(seeds, min(config.workers, len(seeds)))]
    if len(shares) == 1:
        return run_seeds(bundle, config, seeds, on_progress)
    with tempfile.NamedTemporaryFile() as file:
        counts = np.memmap(file, np.int64, "w+", shape=(len(shares), 2))

        def on_wait(running: list[str]) -> None:
            if counts.all():
                on_progress(*counts.sum(0).tolist())

        place = Path(file.name)
        jobs = [Job(str(i), run_share, (bundle, config, share, place, i)) for i, share in enumerate(shares)]
        runs = list(run_all(Processes(len(shares)), jobs, on_wait=on_wait).values())
    shared = Run(
        episodes=[episode for run in runs for episode in run.episodes],
        act_calls=[call for run in runs for call in run.act_calls],
        env_s=sum(run.env_s for run in runs),
        observations=runs[0].observations,
        processes=list(accumulate([len(run.act_calls) for run in runs[:-1]], initial=0)),
    )
    on_progress(shared.decisions, shared.decisions)
    return shared


def run_share(bundle: Bundle, config: EvalConfig, seeds: list[int], counts: Path, index: int) -> Run:
    """Run one process's share.   counts: file of (decisions made, decisions at most), int64, one row per share."""
    torch.set_num_threads(config.threads)
    own = np.memmap(counts, np.int64, "r+").reshape(-1, 2)[index]

    def on_progress(done: int, total: int) -> None:
        own[:] = done, total

    return run_seeds(bundle, config, seeds, on_progress)


def run_seeds(bundle: Bundle, config: EvalConfig, seeds: list[int], on_progress: StageProgress) -> Run:
    """Run one episode per seed in lockstep. The agent takes the first of the consecutive seeds, so that each episode
    draws the same noise as it would alone."""
    agent = make_agent(bundle, config, seeds[0], len(seeds))
    predictions = Predictions(config.itpo.horizon, bundle.discount, bundle.task.reward_scale, config.diagnose_every)
    return run_episodes(
        agent, bundle.task.env, seeds, max_steps=config.max_steps, predictions=predictions, on_progress=on_progress
    )
