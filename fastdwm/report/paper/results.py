"""What the evaluations of a sweep say of each task: scores, paired differences, latencies, errors of the models."""

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
from fastdwm.report.paper.cells import Evaluation, Variant
from fastdwm.report.paper.published import MAZES


@dataclass(frozen=True)
class Scores:
    """Of one policy, over all episodes of all trainings."""

    mean: float
    std: float | None
    iqm: Estimate
    success: Estimate | None
    """share of episodes with a score above 0, in AntMaze"""
    latency_ms: float | None
    """median per decision, on the machine of most evaluations"""


@dataclass(frozen=True)
class Gain:
    """Of planning over the base policy, by environment seed."""

    scores: Scores
    difference: Estimate
    trainings: int
    worlds: tuple[str, ...]
    settings: tuple[str, ...]
    """of each training, in words"""
    diagnostics: dict[str, float]
    """of the decisions, means over the trainings"""


@dataclass(frozen=True)
class Rmse:
    """Of one-step predictions, mean over trainings; standard error over trainings, or over transitions for one."""

    value: float
    error: float | None


@dataclass(frozen=True)
class TaskResult:
    """Everything about one task."""

    task: str
    seeds: tuple[int, ...]
    """of the trainings"""
    episodes: int
    """per training and policy"""
    behaviour: float | None
    base: Scores
    gains: dict[str, Gain]
    dynamics: dict[str, Rmse]
    """by world model"""
    reward: Rmse | None
    critic: dict[str, float]
    """value of the policy in the data's first states by `critics` and by `fqe`, and what the `data` earned there"""
    departures: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Of one variant, over the tasks of a table."""

    tasks: int
    missing: int
    harmless: int
    """tasks with a mean difference of at least -MARGIN"""
    harmful: int
    """tasks with an interval below -MARGIN"""
    better: int
    worse: int
    difference: Estimate | None
    """mean over the tasks that are there"""
    improvement: Estimate | None
    """probability of improvement with the trainings as runs; None where every task has one"""


@dataclass(frozen=True)
class Results:
    """Of a whole sweep."""

    tasks: dict[str, TaskResult]
    """in no order; tasks without a finished evaluation are missing"""
    verdicts: dict[str, Verdict]
    machine: dict[str, Any]
    """of the latencies"""
    elsewhere: tuple[str, ...]
    """evaluations of other machines, whose latencies are left out"""
    physics: tuple[str, ...]


def summarise(evaluations: Sequence[Evaluation], tasks: Sequence[str]) -> Results:
    """All that the tables tell; the verdicts are on `tasks`.

    The evaluations are such as `read_evaluations` gives: none of them contradicts another.
    """
    machine = Counter(evaluation.machine for evaluation in evaluations).most_common(1)[0][0]
    by_task: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        by_task.setdefault(evaluation.task, []).append(evaluation)
    evaluated = {task: found for task, found in by_task.items() if any(evaluation.variants for evaluation in found)}
    results = {task: _task(task, found, machine) for task, found in evaluated.items()}
    verdicts = {name: _verdict(name, evaluated, results, tasks) for name in VARIANTS}
    elsewhere = tuple(evaluation.path.name for evaluation in evaluations if evaluation.machine != machine)
    # The name of the host keeps machines apart, but is nobody's business.
    shown = {name: value for name, value in json.loads(machine).items() if name != "host"}
    return Results(results, verdicts, shown, elsewhere, evaluations[0].physics)


def variants_of(evaluations: Sequence[Evaluation], name: str) -> list[Variant]:
    """The variant of that name, of every evaluation that has it."""
    return [evaluation.variants[name] for evaluation in evaluations if name in evaluation.variants]


def differences(evaluations: Sequence[Evaluation], name: str) -> np.ndarray:
    """Paired differences of a variant, (trainings, episodes)."""
    return np.array([np.subtract(x.itpo, x.base) for x in variants_of(evaluations, name)])


def _task(task: str, evaluations: list[Evaluation], machine: str) -> TaskResult:
    here = [evaluation for evaluation in evaluations if evaluation.machine == machine]
    # Every variant evaluates the base policy anew, on the same seeds: the first one stands for all.
    bases = [next(iter(ordered(evaluation).values())) for evaluation in evaluations if evaluation.variants]
    base_ms = [x.latency_ms["base"] for evaluation in here for x in list(ordered(evaluation).values())[:1]]
    base = _scores(task, [x.base for x in bases], base_ms)
    gains = {name: _gain(task, name, evaluations, here) for name in VARIANTS if variants_of(evaluations, name)}
    behaviours = [evaluation.behaviour for evaluation in evaluations if evaluation.behaviour is not None]
    worlds = dict.fromkeys(world for evaluation in evaluations for world in evaluation.errors)
    dynamics = {
        world: _rmse([evaluation.errors.get(world) for evaluation in evaluations], "obs_rmse") for world in worlds
    }
    # The world models share it.
    reward = _rmse([next(iter(evaluation.errors.values()), None) for evaluation in evaluations], "reward_rmse")
    return TaskResult(
        task=task,
        seeds=tuple(evaluation.seed for evaluation in evaluations),
        episodes=len(bases[0].seeds),
        behaviour=float(np.mean(behaviours)) if behaviours else None,
        base=base,
        gains=gains,
        dynamics={world: found for world, found in dynamics.items() if found is not None},
        reward=reward,
        critic=_means([evaluation.critic for evaluation in evaluations]),
        departures=tuple(dict.fromkeys(text for evaluation in evaluations for text in evaluation.departures)),
    )


def ordered(evaluation: Evaluation) -> dict[str, Variant]:
    """The evaluation's variants in the order of VARIANTS."""
    return {name: evaluation.variants[name] for name in VARIANTS if name in evaluation.variants}


def _gain(task: str, name: str, evaluations: list[Evaluation], here: list[Evaluation]) -> Gain:
    found = variants_of(evaluations, name)
    latencies = [x.latency_ms["itpo"] for x in variants_of(here, name)]
    scores = _scores(task, [x.itpo for x in found], latencies)
    worlds = tuple(dict.fromkeys(x.world for x in found))
    settings = tuple(dict.fromkeys(describe(x) for x in found))
    difference = statistics.two_level(differences(evaluations, name), np.mean)
    return Gain(scores, difference, len(found), worlds, settings, _means([x.diagnostics for x in found]))


def _means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each number that all have."""
    shared = [name for name in found[0] if all(name in numbers for numbers in found)]
    return {name: float(np.mean([numbers[name] for numbers in found])) for name in shared}


def describe(variant: Variant) -> str:
    """The world model, and what of the settings departs from the default, in words."""
    return Settings(ITPOConfig(**variant.settings), variant.world).describe()


def _scores(task: str, scores: list[tuple[float, ...]], latencies: list[float | None]) -> Scores:
    x = np.array(scores)
    known = [ms for ms in latencies if ms is not None]
    success = statistics.success_rate(int((x > 0).sum()), x.size) if task in MAZES else None
    return Scores(
        mean=float(x.mean()),
        std=float(x.std(ddof=1)) if x.size > 1 else None,
        iqm=statistics.two_level(x, statistics.interquartile_mean),
        success=success,
        latency_ms=float(np.median(known)) if known else None,
    )


def _rmse(errors: Sequence[dict[str, float] | None], name: str) -> Rmse | None:
    """Of `name` in the one-step errors; None where no training has it."""
    one_step = [found for found in errors if found and name in found]
    values = [found[name] for found in one_step]
    if not values:
        return None
    if len(values) == 1:
        return Rmse(values[0], one_step[0].get(f"{name}_se"))
    return Rmse(float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5))


def _verdict(
    name: str, evaluations: dict[str, list[Evaluation]], results: dict[str, TaskResult], tasks: Sequence[str]
) -> Verdict:
    there = [task for task in tasks if task in results and name in results[task].gains]
    evaluated = [results[task] for task in there]
    found = {task: variants_of(evaluations[task], name) for task in there}
    runs = [([np.mean(x.itpo) for x in xs], [np.mean(x.base) for x in xs]) for xs in found.values()]
    several = any(len(xs) > 1 for xs in found.values())
    return Verdict(
        tasks=len(tasks),
        missing=len(tasks) - len(there),
        **statistics.count_outcomes([result.gains[name].difference for result in evaluated]),
        difference=statistics.mean_of_means([differences(evaluations[task], name) for task in there])
        if there
        else None,
        improvement=statistics.probability_of_improvement(runs) if several else None,
    )
