"""Run episodes in the real simulator in lockstep, with timing and diagnostics."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from fastdwm.agent import Agent
from fastdwm.checks import require
from fastdwm.command import StageProgress, unwatched
from fastdwm.envs import EnvSpec
from fastdwm.measure.latency import UNTIMED_DECISIONS
from fastdwm.tasks import Task


@dataclass
class Episode:
    """One episode of one policy; rewards are in the simulator's own unit."""

    seed: int
    rewards: list[float] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    """executed actions, (A,) each, from which the video replays the episode"""
    terminated: bool = False
    """whether the task ended the episode (a fall, the goal), rather than the step limit"""
    discarded: int = 0
    """decisions whose policy update was discarded"""
    diagnostics: list[dict[str, float | None]] = field(default_factory=list)
    """diagnostics of every `diagnose_every`-th decision, see `run_episodes`; empty for the base policy"""

    @property
    def length(self) -> int:
        """Environment steps."""
        return len(self.rewards)

    @property
    def total(self) -> float:
        """Undiscounted return."""
        return float(sum(self.rewards))

    def record(self, task: Task) -> dict[str, Any]:
        """Summary of the episode as JSON values, with its score in the task."""
        return {
            "seed": self.seed,
            "score_pct": task.score_pct(self.total),
            "return": self.total,
            "length": self.length,
            "terminated": self.terminated,
            "discarded": self.discarded,
        }


@dataclass
class Run:
    """All episodes of one policy, and the time they took."""

    episodes: list[Episode]
    act_calls: list[tuple[int, float]] = field(default_factory=list)
    """(number of episodes, seconds) of each call of agent.act"""
    env_s: float = 0.0
    """seconds spent in the simulator"""
    observations: list[np.ndarray] = field(default_factory=list)
    """observation (S,) of the first episode at each call"""
    processes: list[int] = field(default_factory=lambda: [0])
    """index in act_calls of the first call of each process"""

    @property
    def decisions(self) -> int:
        """Number of decisions of all episodes."""
        return sum(episode.length for episode in self.episodes)

    @property
    def decision_s(self) -> float:
        """Seconds per decision and episode, for episodes that decide together."""
        return sum(seconds for _, seconds in self.act_calls) / self.decisions

    @property
    def batch_size(self) -> int:
        """Number of episodes that decided together at the start, in one process."""
        return max(size for size, _ in self.act_calls)

    def batch_latency_s(self) -> list[float]:
        """Seconds per call with all episodes running, without each process's warm-up if other calls remain."""
        shares = [self.act_calls[i:j] for i, j in zip(self.processes, [*self.processes[1:], None], strict=True)]
        full = [[seconds for size, seconds in share if size == self.batch_size] for share in shares]
        return sum([share[UNTIMED_DECISIONS:] for share in full], []) or sum(full, [])


@dataclass(frozen=True)
class Predictions:
    """Settings for comparing predicted returns with real ones."""

    horizon: int
    """imagined steps of a prediction (H)"""
    discount: float
    reward_scale: float = 1.0
    """factor between the simulator's rewards and those that the models were trained on"""
    diagnose_every: int = 10
    """number of decisions from one prediction to the next"""


def realised_return(episode: Episode, start: int, values: dict[int, float], predictions: Predictions) -> float | None:
    """The real return that the H-step prediction of decision `start` should match, in the models' reward unit.

    sum_{j<H} g^j r_{start+j} + g^H V(s_{start+H}), without V if the episode terminated within the H steps.
    values: V by decision.   None if the step limit cut the episode within the H steps, because V is then unknown.
    """
    end = start + predictions.horizon
    powers = predictions.discount ** np.arange(predictions.horizon + 1)
    rewards = predictions.reward_scale * np.asarray(episode.rewards[start:end])
    so_far = float(powers[: len(rewards)] @ rewards)
    if end < episode.length:
        return so_far + float(powers[-1]) * values[end]
    return so_far if episode.terminated else None


def run_episodes(
    agent: Agent,
    env: EnvSpec,
    seeds: Sequence[int],
    *,
    max_steps: int | None = None,
    predictions: Predictions | None = None,
    on_progress: StageProgress = unwatched,
) -> Run:
    """Run one episode per seed, all in lockstep; simulator i is reset with seeds[i], ended episodes leave the batch.

    agent: reset first. An object that is not an Agent needs `act`, `reset`, `keep` and `discarded`.
    max_steps: truncate episodes after so many steps; none: at the simulator's limit, InputError if it has none.
    predictions: every `diagnose_every`-th decision adds agent.diagnose() to its episode (untimed), with the number of
    the `decision`, the `predicted_return` (the imagined return before the update) and the `realised_return`.
    on_progress(decisions made, decisions at most).
    """
    run = Run([Episode(seed) for seed in seeds])
    values: list[dict[int, float]] = [{} for _ in seeds]
    with contextlib.ExitStack() as stack:
        simulators = [stack.enter_context(env.make()) for _ in seeds]
        limit = _step_limit(simulators[0], max_steps)
        obs = np.stack([simulator.reset(seed=seed)[0] for simulator, seed in zip(simulators, seeds, strict=True)])
        running = list(range(len(seeds)))
        agent.reset()
        for t in range(limit):
            actions = _decide(agent, obs, run)
            if predictions is not None:
                _diagnose(agent, obs, t, [(run.episodes[i], values[i]) for i in running], predictions)
            obs, alive = _advance(run, [(run.episodes[i], simulators[i]) for i in running], actions, agent.discarded)
            running = [i for i, lives in zip(running, alive, strict=True) if lives]
            on_progress(run.decisions, run.decisions + len(running) * (limit - t - 1))
            if not running:
                break
            if not alive.all():
                agent.keep(alive)
                obs = obs[alive]
    for episode, own in zip(run.episodes, values, strict=True):
        _add_realised_returns(episode, own, predictions)
    return run


def _decide(agent: Agent, obs: np.ndarray, run: Run) -> np.ndarray:
    """Actions (B, A) for observations (B, S), timed."""
    start = perf_counter()
    actions = agent.act(obs)
    run.act_calls.append((len(obs), perf_counter() - start))
    run.observations.append(obs[0])
    assert np.isfinite(actions).all(), "the agent must never return a non-finite action"
    return actions


def _diagnose(agent: Agent, obs: np.ndarray, t: int, running: list, predictions: Predictions) -> None:
    """Record the diagnostics of decision t, and the values of the states where earlier predictions end.

    running: (episode, values by decision) for each row of obs (B, S).
    """
    if t % predictions.diagnose_every == 0:
        diagnosis = agent.diagnose()
        for i, (episode, _) in enumerate(running if diagnosis else []):
            record = {name: float(values[i]) for name, values in diagnosis.items()}
            episode.diagnostics.append({"decision": t, **record, "predicted_return": record["objective_before"]})
    predicted_at = t - predictions.horizon
    if predicted_at >= 0 and predicted_at % predictions.diagnose_every == 0 and running[0][0].diagnostics:
        for (_, values), value in zip(running, agent.value(obs), strict=True):
            values[t] = float(value)


def _add_realised_returns(episode: Episode, values: dict[int, float], predictions: Predictions | None) -> None:
    for diagnosis in episode.diagnostics:
        diagnosis["realised_return"] = realised_return(episode, int(diagnosis["decision"]), values, predictions)


def _advance(run: Run, running: list, actions: np.ndarray, discarded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step each running (episode, simulator); returns observations (B, S) and which episodes continue, (B,) bool."""
    observations, alive = [], []
    start = perf_counter()
    for (episode, simulator), action, n_discarded in zip(running, actions, discarded, strict=True):
        obs, reward, terminated, truncated, _ = simulator.step(action)
        episode.rewards.append(float(reward))
        episode.actions.append(action)
        episode.terminated = bool(terminated)
        episode.discarded = int(n_discarded)
        observations.append(obs)
        alive.append(not (terminated or truncated))
    run.env_s += perf_counter() - start
    return np.stack(observations), np.array(alive)


def step_limit(env: EnvSpec, max_steps: int | None) -> int:
    """The smaller of `max_steps` and the simulator's own limit; raises InputError if there is neither."""
    with env.make() as simulator:
        return _step_limit(simulator, max_steps)


def _step_limit(simulator: Any, max_steps: int | None) -> int:
    own = simulator.spec.max_episode_steps if simulator.spec else None
    limits = [limit for limit in (max_steps, own) if limit is not None]
    require(bool(limits), "max_steps: expected a number, for the simulator has no limit of its own")
    return min(limits)
