"""The finished evaluations of a sweep, read with distrust: FOLDER/cells/TASK-sSEED-eval.json."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from fastdwm.checks import from_json, require
from fastdwm.config import ITPOConfig
from fastdwm.errors import InputError, first_line
from fastdwm.jobs import sweep
from fastdwm.jobs.results import MOST
from fastdwm.jobs.sweep import VARIANTS
from fastdwm.report.paper.published import LOCOMOTION, MAZES

MOST_EPISODES = 10_000
# What the name of a variant promises; the tuned one takes the world that the tuning chose.
WORLDS = {"default": "diffusion", "meanflow": "meanflow"}


@dataclass(frozen=True)
class Variant:
    """One way to plan, against the base policy on the same environment seeds."""

    world: str
    settings: dict[str, Any]
    """those of ITPOConfig that this version knows, as JSON values; empty where the evaluation does not tell"""
    seeds: tuple[int, ...]
    base: tuple[float, ...]
    """score of each seed"""
    itpo: tuple[float, ...]
    latency_ms: dict[str, float | None]
    """median per decision of `base` and `itpo`, deciding alone"""
    diagnostics: dict[str, float]
    """means over the diagnosed decisions, as `mean_diagnostics` gives them"""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one training."""

    path: Path
    task: str
    seed: int
    """of the training"""
    machine: str
    """what latencies depend on, as text"""
    physics: tuple[str, ...]
    """versions that scores depend on, such as "mujoco 3.4.0" """
    behaviour: float | None
    """mean score of the data"""
    errors: dict[str, dict[str, float]]
    """of one step, by world model, as `one_step_errors` gives them"""
    critic: dict[str, float]
    """value of the policy in the data's first states by `critics` and by `fqe`, and what the `data` earned there"""
    departures: tuple[str, ...]
    """how the simulator differs from the task's, in words"""
    variants: dict[str, Variant]


def read_evaluations(folder: Path) -> list[Evaluation]:
    """All finished evaluations below the folder, by file name.

    Raises InputError if there are none, for a file that is not an evaluation, and for evaluations that cannot stand in
    one table: other simulator versions, other episodes of the same task, other settings of "default".
    """
    require(folder.is_dir(), f"{folder}: no such folder")
    records = sweep.read_jobs(folder, "*-eval.json")
    require(bool(records), f"{folder}: expected cells/*-eval.json of a sweep, found none")
    evaluations = [read_evaluation(folder / "cells" / f"{name}.json", record) for name, record in records.items()]
    _require_one_table(evaluations)
    return evaluations


def read_evaluation(path: Path, record: sweep.Record) -> Evaluation:
    """The evaluation in a file that holds this record; raises InputError for any that is no evaluation."""
    try:
        evaluation = _evaluation(path, record)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, InputError) else first_line(error)
        raise InputError(f"{path}: expected an evaluation of a sweep: {reason}") from None
    # A copied file must not count as another training.
    require(
        path.name == f"{evaluation.task}-s{evaluation.seed}-eval.json",
        f"{path}: holds {evaluation.task}, seed {evaluation.seed}",
    )
    require(evaluation.task in LOCOMOTION + MAZES, f"{path}: {evaluation.task!r} is none of the paper's tasks")
    return evaluation


def _evaluation(path: Path, record: sweep.Record) -> Evaluation:
    result, versions = record["result"], from_json(dict, record["identity"].get("versions"), "versions")
    physics = tuple(f"{name} {from_json(str, versions.get(name), name)}" for name in sorted(sweep.PHYSICS))
    unknown = set(from_json(dict, result["variants"], "variants")) - set(VARIANTS)
    require(not unknown, f"expected variants {', '.join(VARIANTS)}, got {sorted(unknown)}")
    machine = record["machine"]
    flat = all(isinstance(item, str | int | float | None) for item in machine.values())
    require(flat, f"machine: expected text and numbers, got {shorten(machine)}")
    errors = from_json(dict | None, result["errors"], "errors") or {}
    return Evaluation(
        path=path,
        task=record["task"],
        seed=record["seed"],
        machine=json.dumps(machine, sort_keys=True),
        physics=physics,
        behaviour=_number(from_json(dict, result["dataset"], "dataset").get("mean_score_pct"), "mean_score_pct"),
        errors={name: _numbers(from_json(dict, found, name).get("one_step"), name) for name, found in errors.items()},
        critic=_numbers(result.get("critic"), "critic"),
        departures=tuple(from_json(list[str], result["env_departures"], "env_departures")),
        variants={name: _variant(name, found) for name, found in result["variants"].items()},
    )


def _variant(name: str, value: dict[str, Any]) -> Variant:
    world = from_json(str, value["world"], f"{name}: world")
    require(world == WORLDS.get(name, world), f"{name}: expected the world model {WORLDS.get(name)}, got {world!r}")
    seeds = from_json(list[int], value["seeds"], f"{name}: seeds")
    base, itpo = (_scores(value[policy]["scores"], f"{name}: {policy}: scores") for policy in ("base", "itpo"))
    n_different = len(set(seeds))
    whole = 0 < len(seeds) == n_different == len(base) == len(itpo) <= MOST_EPISODES
    sizes = f"{len(base)} and {len(itpo)} scores on {n_different} environment seeds"
    require(
        whole, f"{name}: expected one score of each policy per environment seed, up to {MOST_EPISODES}, got {sizes}"
    )
    latency_ms = {policy: _number(value["latency_ms"][policy]["p50_ms"], "p50_ms") for policy in ("base", "itpo")}
    diagnostics = _numbers(value.get("diagnostics"), f"{name}: diagnostics")
    return Variant(world, _settings(name, value.get("settings", {})), tuple(seeds), base, itpo, latency_ms, diagnostics)


def _settings(name: str, values: Any) -> dict[str, Any]:
    """The settings that this version knows; InputError for values that none could have been."""
    kinds = {item.name: item.type for item in fields(ITPOConfig)}
    known = {key: x for key, x in from_json(dict, values, f"{name}: settings").items() if key in kinds}
    for key, x in known.items():
        from_json(kinds[key], x, f"{name}: settings: {key}")
    ITPOConfig(**known)
    return known


def _number(value: Any, name: str) -> float | None:
    """A number, or none; InputError for anything else, or for one that no measurement gives."""
    if value is None:
        return None
    fits = abs(from_json(float, value, name)) <= MOST
    require(fits, f"{name}: expected numbers up to {MOST:g}, got {shorten(value)}")
    return float(value)


def _numbers(values: Any, name: str) -> dict[str, float]:
    """Numbers by name; none where the evaluation does not tell."""
    known = {key: _number(x, f"{name}: {key}") for key, x in (from_json(dict | None, values, name) or {}).items()}
    return {key: x for key, x in known.items() if x is not None}


def _scores(values: Any, name: str) -> tuple[float, ...]:
    """One number for each episode."""
    return tuple(_number(score, name) for score in from_json(list[float], values, name))


def _require_one_table(evaluations: list[Evaluation]) -> None:
    """Raise InputError for evaluations whose scores do not belong together."""
    episodes: dict[str, tuple[Path, tuple[int, ...]]] = {}
    default: tuple[Path, dict[str, Any]] | None = None
    for evaluation in evaluations:
        for name, variant in evaluation.variants.items():
            _same(
                *episodes.setdefault(evaluation.task, (evaluation.path, variant.seeds)),
                evaluation.path,
                variant.seeds,
                "episodes",
            )
            if name == "default":
                default = default or (evaluation.path, variant.settings)
                _same(*default, evaluation.path, variant.settings, "default settings")


def _same(path: Path, value: Any, other_path: Path, other: Any, what: str) -> None:
    names = f"{path.name} and {other_path.name}"
    require(value == other, f"{names} do not belong in one table, their {what} differ")
