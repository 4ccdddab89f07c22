"""Summarise the evaluations of a sweep by task: scores, paired differences, latencies, errors of the models."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdwm.config import ITPOConfig, Settings
from fastdwm.jobs.sweep import VARIANTS
from fastdwm.measure import statistics
from fastdwm.measure.statistics import Estimate
from fastdwm.report.paper.evaluations import Evaluation, Variant
from fastdwm.report.paper.published import MAZES


@dataclass(frozen=True)
class Scores:
    """Summary of one policy's scores over all episodes of all trainings."""

    mean: float
    std: float | None
    iqm: Estimate
    success: Estimate | None
    """share of episodes with a score above 0; for AntMaze alone"""
    latency_ms: float | None
    """median per decision on the machine with most evaluations"""


@dataclass(frozen=True)
class Gain:
    """Gain of one variant of ITPO over the base policy, paired by environment seed."""

    scores: Scores
    difference: Estimate
    trainings: int
    worlds: tuple[str, ...]
    settings: tuple[str, ...]
    """descriptions of the settings; trainings may differ"""
    diagnostics: dict[str, float]
    """diagnostics of the decisions, means over the trainings"""


@dataclass(frozen=True)
class Rmse:
    """Error of one-step predictions: mean over trainings, and standard error over trainings (transitions for one)."""

    value: float
    error: float | None


@dataclass(frozen=True)
class TaskResult:
    """All results of one task."""

    task: str
    seeds: tuple[int, ...]
    """training seeds"""
    episodes: int
    """number per training and policy"""
    behaviour: float | None
    """mean score of the data"""
    base: Scores
    gains: dict[str, Gain]
    dynamics: dict[str, Rmse]
    """errors by world model"""
    reward: Rmse | None
    critic: dict[str, float]
    """value of the data's first states by the `critics` and by fitted Q evaluation (`fqe`), and the `data`'s return"""
    departures: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Counts for one variant over the tasks of a table."""

    tasks: int
    missing: int
    harmless: int
    """tasks with a mean difference of at least -MARGIN"""
    harmful: int
    """tasks with an interval below -MARGIN"""
    better: int
    worse: int
    difference: Estimate | None
    """mean over the tasks that have results"""
    improvement: Estimate | None
    """probability of improvement with the trainings as runs; None if every task has one training"""


@dataclass(frozen=True)
class Results:
    """All results of a sweep."""

    tasks: dict[str, TaskResult]
    """results by task; tasks without a finished evaluation are missing"""
    verdicts: dict[str, Verdict]
    machine: dict[str, Any]
    """machine on which the latencies were measured"""
    elsewhere: tuple[str, ...]
    """files of evaluations on other machines, whose latencies are left out"""
    physics: tuple[str, ...]
    d4rl: bool
    """whether all data are D4RL's"""


def summarise(evaluations: Sequence[Evaluation], tasks: Sequence[str]) -> Results:
    """Summarise evaluations from `read_evaluations`, which belong in one table; the verdicts are on `tasks`."""
    machine = Counter(evaluation.machine for evaluation in evaluations).most_common(1)[0][0]
    by_task: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_task.setdefault(evaluation.task, []).append(evaluation)
    evaluated = {task: items for task, items in by_task.items() if any(item.variants for item in items)}
    results = {task: _task(task, items, machine) for task, items in evaluated.items()}
    verdicts = {name: _verdict(name, evaluated, results, tasks) for name in VARIANTS}
    elsewhere = tuple(evaluation.path.name for evaluation in evaluations if evaluation.machine != machine)
    # The host's name distinguishes machines, but is not published.
    shown = {name: value for name, value in json.loads(machine).items() if name != "host"}
    return Results(results, verdicts, shown, elsewhere, evaluations[0].physics, all(item.d4rl for item in evaluations))


def variants_of(evaluations: Sequence[Evaluation], name: str) -> list[Variant]:
    """The variant with this name from every evaluation that has it."""
    return [evaluation.variants[name] for evaluation in evaluations if name in evaluation.variants]


def differences(evaluations: Sequence[Evaluation], name: str) -> np.ndarray:
    """Paired differences of a variant, (trainings, episodes)."""
    return np.array([np.subtract(x.itpo, x.base) for x in variants_of(evaluations, name)])


def _task(task: str, evaluations: list[Evaluation], machine: str) -> TaskResult:
    here = [evaluation for evaluation in evaluations if evaluation.machine == machine]
    # Every variant evaluates the base policy again on the same seeds, so the first one is enough.
    bases = [next(iter(ordered(evaluation).values())) for evaluation in evaluations if evaluation.variants]
    base_ms = [x.latency_ms["base"] for evaluation in here for x in list(ordered(evaluation).values())[:1]]
    base = _scores(task, [x.base for x in bases], base_ms)
    gains = {name: _gain(task, name, evaluations, here) for name in VARIANTS if variants_of(evaluations, name)}
    behaviours = [evaluation.behaviour for evaluation in evaluations if evaluation.behaviour is not None]
    worlds = dict.fromkeys(world for evaluation in evaluations for world in evaluation.errors)
    dynamics = {
        world: _rmse([evaluation.errors.get(world) for evaluation in evaluations], "obs_rmse") for world in worlds
    }
    # All world models share the reward model.
    reward = _rmse([next(iter(evaluation.errors.values()), None) for evaluation in evaluations], "reward_rmse")
    return TaskResult(
        task=task,
        seeds=tuple(evaluation.seed for evaluation in evaluations),
        episodes=len(bases[0].seeds),
        behaviour=float(np.mean(behaviours)) if behaviours else None,
        base=base,
        gains=gains,
        dynamics={world: rmse for world, rmse in dynamics.items() if rmse is not None},
        reward=reward,
        critic=_means([evaluation.critic for evaluation in evaluations]),
        departures=tuple(dict.fromkeys(text for evaluation in evaluations for text in evaluation.departures)),
    )


def ordered(evaluation: Evaluation) -> dict[str, Variant]:
    """The evaluation's variants in the order of VARIANTS."""
    return {name: evaluation.variants[name] for name in VARIANTS if name in evaluation.variants}


def _gain(task: str, name: str, evaluations: list[Evaluation], here: list[Evaluation]) -> Gain:
    variants = variants_of(evaluations, name)
    latencies = [x.latency_ms["itpo"] for x in variants_of(here, name)]
    scores = _scores(task, [x.itpo for x in variants], latencies)
    worlds = tuple(dict.fromkeys(x.world for x in variants))
    settings = tuple(dict.fromkeys(describe(x) for x in variants))
    difference = statistics.two_level(differences(evaluations, name), np.mean)
    return Gain(scores, difference, len(variants), worlds, settings, _means([x.diagnostics for x in variants]))


def _means(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each number that all records have."""
    shared = [name for name in records[0] if all(name in numbers for numbers in records)]
    return {name: float(np.mean([numbers[name] for numbers in records])) for name in shared}


def describe(variant: Variant) -> str:
    """The world model, and the settings that differ from the default, in words."""
    return Settings(ITPOConfig(**variant.settings), variant.world).describe()


def _scores(task: str, scores: list[tuple[float, ...]], latencies: list[float | None]) -> Scores:
    x = np.array(scores)
    times_ms = [ms for ms in latencies if ms is not None]
    success = statistics.success_rate(int((x > 0).sum()), x.size) if task in MAZES else None
    return Scores(
        mean=float(x.mean()),
        std=float(x.std(ddof=1)) if x.size > 1 else None,
        iqm=statistics.two_level(x, statistics.interquartile_mean),
        success=success,
        latency_ms=float(np.median(times_ms)) if times_ms else None,
    )


def _rmse(errors: Sequence[dict[str, float] | None], name: str) -> Rmse | None:
    """The error called `name` of the one-step errors; None if no training has it."""
    one_step = [numbers for numbers in errors if numbers and name in numbers]
    values = [numbers[name] for numbers in one_step]
    if not values:
        return None
    if len(values) == 1:
        return Rmse(values[0], one_step[0].get(f"{name}_se"))
    return Rmse(float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5))


def _verdict(
    name: str, evaluations: dict[str, list[Evaluation]], results: dict[str, TaskResult], tasks: Sequence[str]
) -> Verdict:
    present = [task for task in tasks if task in results and name in results[task].gains]
    evaluated = [results[task] for task in present]
    variants = [variants_of(evaluations[task], name) for task in present]
    runs = [([np.mean(x.itpo) for x in xs], [np.mean(x.base) for x in xs]) for xs in variants]
    several = any(len(xs) > 1 for xs in variants)
    return Verdict(
        tasks=len(tasks),
        missing=len(tasks) - len(present),
        **statistics.count_outcomes([result.gains[name].difference for result in evaluated]),
        difference=statistics.mean_of_means([differences(evaluations[task], name) for task in present])
        if present
        else None,
        improvement=statistics.probability_of_improvement(runs) if several else None,
    )
