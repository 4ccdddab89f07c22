"""Episodes in the real simulator: base policy and ITPO on the same seeds, with timing and diagnostics."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastdwm.agent import Agent
from fastdwm.bundle import Bundle
from fastdwm.config import EvalConfig, require
from fastdwm.envs import EnvSpec

# The first decisions pay for allocations and lazy initialisation; they are no measure of the others.
WARM_UP = 10
# So that the 99th percentile rests on twenty slow decisions.
LATENCY_DECISIONS = 2_000
LATENCY_BUDGET_S = 20.0

TITLES = {"base": "base policy", "itpo": "ITPO"}

Progress = Callable[[int, int], None]


def unwatched(done: int, total: int) -> None:
    """The Progress that nobody watches."""


@dataclass
class Episode:
    """One episode of one policy, in the simulator's own reward unit."""

    seed: int
    rewards: list[float] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    """what was executed, (A,) each: enough to replay the episode, as the video does"""
    terminated: bool = False
    """ended by the task (a fall, the goal) rather than by the step limit"""
    discarded: int = 0
    """decisions whose policy update was discarded"""
    diagnostics: list[dict[str, float | None]] = field(default_factory=list)
    """of every `diagnose_every`-th decision, see `run_episodes`; empty for the base policy"""

    @property
    def length(self) -> int:
        """Environment steps."""
        return len(self.rewards)

    @property
    def total(self) -> float:
        """Undiscounted return."""
        return float(sum(self.rewards))


@dataclass
class Run:
    """All episodes of one policy, and what they cost."""

    episodes: list[Episode]
    act_calls: list[tuple[int, float]] = field(default_factory=list)
    """for each call of agent.act: episodes deciding at once, seconds"""
    env_s: float = 0.0
    """seconds spent in the simulator"""
    observations: list[np.ndarray] = field(default_factory=list)
    """one visited observation (S,) per call"""
    processes: list[int] = field(default_factory=lambda: [0])
    """where in act_calls the calls of each process begin"""

    @property
    def batch_size(self) -> int:
        """Episodes that decided at once at the start; fewer than all if processes shared them."""
        return max(size for size, _ in self.act_calls)

    def batch_latency_s(self) -> list[float]:
        """Seconds per call while all episodes were running, without the warm-up of each process unless that is all."""
        shares = [self.act_calls[i:j] for i, j in zip(self.processes, [*self.processes[1:], None], strict=True)]
        full = [[seconds for size, seconds in share if size == self.batch_size] for share in shares]
        return sum([share[WARM_UP:] for share in full], []) or sum(full, [])


@dataclass
class Evaluation:
    """Base policy and ITPO on the same environment seeds."""

    seeds: list[int]
    runs: dict[str, Run]
    """by policy: base, itpo"""
    alone_latency_s: dict[str, list[float]]
    """by policy: seconds per decision of one episode deciding alone"""


@dataclass(frozen=True)
class Protocol:
    """How episodes are run and how predicted returns are compared with real ones."""

    max_steps: int
    """episodes are cut (truncated) after this many steps"""
    horizon: int
    """imagined steps behind a prediction (H)"""
    discount: float
    reward_scale: float = 1.0
    """simulator rewards times this are the rewards that the models were trained on"""
    diagnose_every: int = 10


def realised_return(episode: Episode, start: int, values: dict[int, float], protocol: Protocol) -> float | None:
    """What an H-step prediction made at decision `start` should have been, in the models' reward unit.

    sum_{j<H} g^j r_{start+j} + g^H V(s_{start+H}), without V if the episode terminated within the H steps.
    values: V at the decisions where it was asked.   None if the step limit cut the H steps short: V is unknown then.
    """
    end = start + protocol.horizon
    powers = protocol.discount ** np.arange(protocol.horizon + 1)
    rewards = protocol.reward_scale * np.asarray(episode.rewards[start:end])
    so_far = float(powers[: len(rewards)] @ rewards)
    if end < episode.length:
        return so_far + float(powers[-1]) * values[end]
    return so_far if episode.terminated else None


def run_episodes(
    agent: Agent,
    env_spec: EnvSpec,
    seeds: Sequence[int],
    protocol: Protocol,
    on_progress: Progress = unwatched,
) -> Run:
    """Run one episode per seed, all in lockstep; environment i is reset with seeds[i], finished ones leave the batch.

    agent: starts anew on all episodes.   on_progress(decisions made, decisions at most).
    Every `diagnose_every`-th decision of ITPO adds agent.diagnose() to its episode (untimed), with the number of the
    `decision`, the `predicted_return` (the imagined return before the update) and the `realised_return`.
    """
    run = Run([Episode(seed) for seed in seeds])
    values: list[dict[int, float]] = [{} for _ in seeds]
    with contextlib.ExitStack() as stack:
        envs = [stack.enter_context(env_spec.make()) for _ in seeds]
        obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)])
        running = list(range(len(seeds)))
        agent.reset()
        for t in range(protocol.max_steps):
            actions = _decide(agent, obs, run)
            _diagnose(agent, obs, t, [(run.episodes[i], values[i]) for i in running], protocol)
            obs, alive = _advance(run, [(run.episodes[i], envs[i]) for i in running], actions, agent.discarded)
            running = [i for i, lives in zip(running, alive, strict=True) if lives]
            decisions = sum(episode.length for episode in run.episodes)
            on_progress(decisions, decisions + len(running) * (protocol.max_steps - t - 1))
            if not running:
                break
            if not alive.all():
                agent.keep(alive)
                obs = obs[alive]
    for episode, value in zip(run.episodes, values, strict=True):
        for record in episode.diagnostics:
            record["realised_return"] = realised_return(episode, int(record["decision"]), value, protocol)
    return run


def _decide(agent: Agent, obs: np.ndarray, run: Run) -> np.ndarray:
    """Actions (B, A) for observations (B, S), timed."""
    start = perf_counter()
    actions = agent.act(obs)
    run.act_calls.append((len(obs), perf_counter() - start))
    run.observations.append(obs[0])
    assert np.isfinite(actions).all(), "the agent must never return a non-finite action"
    return actions


def _diagnose(agent: Agent, obs: np.ndarray, t: int, running: list, protocol: Protocol) -> None:
    """Note what decision t looked like, and the values that earlier predictions ended in.

    running: (episode, values by decision) for each row of obs (B, S).
    """
    if t % protocol.diagnose_every == 0:
        diagnosis = agent.diagnose()
        for i, (episode, _) in enumerate(running if diagnosis else []):
            record = {name: float(values[i]) for name, values in diagnosis.items()}
            episode.diagnostics.append({"decision": t, **record, "predicted_return": record["objective_before"]})
    predicted_at = t - protocol.horizon
    if predicted_at >= 0 and predicted_at % protocol.diagnose_every == 0 and running[0][0].diagnostics:
        for (_, values), value in zip(running, agent.value(obs), strict=True):
            values[t] = float(value)


def _advance(run: Run, running: list, actions: np.ndarray, discarded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step the environment of each running (episode, env); returns observations (B, S) and who goes on, (B,) bool."""
    observations, alive = [], []
    start = perf_counter()
    for (episode, env), action, n_discarded in zip(running, actions, discarded, strict=True):
        obs, reward, terminated, truncated, _ = env.step(action)
        episode.rewards.append(float(reward))
        episode.actions.append(action)
        episode.terminated = bool(terminated)
        episode.discarded = int(n_discarded)
        observations.append(obs)
        alive.append(not (terminated or truncated))
    run.env_s += perf_counter() - start
    return np.stack(observations), np.array(alive)


def decision_latency(
    agent: Agent,
    observations: Sequence[np.ndarray],
    on_progress: Progress = unwatched,
    decisions: int = LATENCY_DECISIONS,
) -> list[float]:
    """Seconds per decision of one episode deciding alone, after WARM_UP unmeasured decisions.

    observations: (S,) each, in the order of a real episode; used in turn, in a new episode each time they run out.
    Measures `decisions`, or what LATENCY_BUDGET_S allows, but at least one.
    """
    times: list[float] = []
    total, spent = WARM_UP + decisions, 0.0
    while len(times) < total and spent < LATENCY_BUDGET_S:
        turn = len(times) % len(observations)
        if turn == 0:
            agent.reset()
        start = perf_counter()
        agent.act(observations[turn])
        times.append(perf_counter() - start)
        spent += times[-1]
        on_progress(len(times), total)
    if len(times) < total:
        on_progress(total, total)
    return times[WARM_UP:] or times[-1:]


def step_limit(env_spec: EnvSpec, max_steps: int | None) -> int:
    """The smaller of `max_steps` and the simulator's own limit; raises InputError if there is neither."""
    with env_spec.make() as env:
        limits = [limit for limit in (max_steps, env.spec.max_episode_steps) if limit is not None]
    require(bool(limits), f"max_steps: expected a number, for {env_spec.id} has no limit of its own")
    return min(limits)


def compare(bundle: Bundle, config: EvalConfig, on_progress: Callable[[str, int, int], None]) -> Evaluation:
    """Evaluate the bundle's base policy, then ITPO, on the environment seeds config.seed + i.

    on_progress(stage, done, at most): decisions of the named stage.
    """
    seeds = [config.seed + i for i in range(config.episodes)]
    max_steps = step_limit(bundle.task.env, config.max_steps)
    protocol = Protocol(
        max_steps, config.itpo.horizon, bundle.discount, bundle.task.reward_scale, config.diagnose_every
    )
    policies = {"base": replace(config.itpo, inner_steps=0), "itpo": config.itpo}
    # Compiles the CPU kernels if no run before has: here, where it shows, and once for all processes.
    on_progress("preparation (the first run compiles)", 0, 1)
    make_agent(bundle, replace(config, deadline_ms=None), config.seed)
    on_progress("preparation (the first run compiles)", 1, 1)
    runs = {
        policy: run_shared(bundle, replace(config, itpo=policies[policy]), seeds, protocol, partial(on_progress, title))
        for policy, title in TITLES.items()
    }
    # Both policies are timed on the same states, those of the base policy.
    visited = runs["base"].observations
    alone = {
        policy: decision_latency(
            make_agent(bundle, replace(config, itpo=policies[policy]), config.seed),
            visited,
            partial(on_progress, f"{title}, one episode alone"),
        )
        for policy, title in TITLES.items()
    }
    return Evaluation(seeds, runs, alone)


def make_agent(bundle: Bundle, config: EvalConfig, seed: int, n_episodes: int = 1) -> Agent:
    """The agent that the settings describe; with a deadline, warmed up for `n_episodes` at once."""
    names = ("device", "backend", "world", "world_steps", "temperature", "deadline_ms")
    agent = Agent.of(bundle, config.itpo, seed=seed, **{name: getattr(config, name) for name in names})
    if agent.deadline is not None:
        agent.warm_up(bundle.statistics["obs_mean"].repeat(n_episodes, 1))
    return agent


def run_shared(bundle: Bundle, config: EvalConfig, seeds: list[int], protocol: Protocol, on_progress: Progress) -> Run:
    """`run_episodes` by config.workers processes, each with a share of the seeds, which are consecutive."""
    shares = [share.tolist() for share in np.array_split(seeds, min(config.workers, len(seeds)))]
    if len(shares) == 1:
        agent = make_agent(bundle, config, seeds[0], len(seeds))
        return run_episodes(agent, bundle.task.env, seeds, protocol, on_progress)
    context = get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(len(shares), mp_context=context) as pool:
        counts = manager.dict()
        futures = [pool.submit(run_share, bundle, config, share, protocol, counts) for share in shares]
        while wait(futures, timeout=0.5).not_done:
            if len(counts) == len(shares):
                on_progress(*map(sum, zip(*counts.values(), strict=True)))
        runs = [future.result() for future in futures]
    on_progress(*[sum(episode.length for run in runs for episode in run.episodes)] * 2)
    return Run(
        episodes=[episode for run in runs for episode in run.episodes],
        act_calls=[call for run in runs for call in run.act_calls],
        env_s=sum(run.env_s for run in runs),
        observations=runs[0].observations,
        processes=list(accumulate([len(run.act_calls) for run in runs[:-1]], initial=0)),
    )


def run_share(bundle: Bundle, config: EvalConfig, seeds: list[int], protocol: Protocol, counts: Any) -> Run:
    """One process's share; the agent's seed is the first episode's, so each episode has the noise it would have alone.

    counts: shared dictionary for (decisions made, decisions at most), by the first seed.
    """
    torch.set_num_threads(config.threads)

    def report(done: int, total: int) -> None:
        counts[seeds[0]] = done, total

    return run_episodes(make_agent(bundle, config, seeds[0], len(seeds)), bundle.task.env, seeds, protocol, report)
