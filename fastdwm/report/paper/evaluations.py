"""Read and check the finished evaluations of a sweep: FOLDER/cells/TASK-sSEED-eval.json."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from fastdwm.checks import from_json, require
from fastdwm.config import ITPOConfig, finite_or_infinite
from fastdwm.errors import InputError, first_line
from fastdwm.jobs import sweep
from fastdwm.jobs.results import MOST
from fastdwm.jobs.sweep import VARIANTS
from fastdwm.report.paper.published import LOCOMOTION, MAZES
from fastdwm.tasks import is_d4rl

MOST_EPISODES = 10_000
# World models that the names of variants stand for; the tuned variant may have any.
WORLDS = {"default": "diffusion", "meanflow": "meanflow"}


@dataclass(frozen=True)
class Variant:
    """The evaluation of one setting of ITPO against the base policy on the same environment seeds."""

    world: str
    settings: dict[str, Any]
    """settings of ITPOConfig that this version knows, as JSON values; empty if the file has none"""
    seeds: tuple[int, ...]
    base: tuple[float, ...]
    """score of the base policy for each seed"""
    itpo: tuple[float, ...]
    """score of ITPO for each seed"""
    latency_ms: dict[str, float | None]
    """median per decision of `base` and `itpo`, one episode alone"""
    diagnostics: dict[str, float]
    """means over the diagnosed decisions, as `mean_diagnostics` gives them"""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one training: all its variants."""

    path: Path
    task: str
    seed: int
    """training seed"""
    machine: str
    """description of the machine, on which latencies depend, as text"""
    physics: tuple[str, ...]
    """versions of the simulator's packages, such as "mujoco 3.4.0" """
    behaviour: float | None
    """mean score of the data"""
    d4rl: bool
    """whether the data are D4RL's"""
    errors: dict[str, dict[str, float]]
    """results of `one_step_errors` by world model"""
    critic: dict[str, float]
    """value of the data's first states by the `critics` and by fitted Q evaluation (`fqe`), and the `data`'s return"""
    departures: tuple[str, ...]
    """how the simulator differs from the task's, in words"""
    variants: dict[str, Variant]


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read all finished evaluations in the sweep's folder, in the order of their file names.

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
    """Convert the record in a file to an evaluation; raises InputError for any other record."""
    try:
        result = _evaluation(path, record)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = str(error) if isinstance(error, InputError) else first_line(error)
        raise InputError(f"{path}: expected an evaluation of a sweep: {reason}") from None
    # A copied file must not count as another training.
    own_name = f"{result.task}-s{result.seed}-eval.json"
    require(path.name == own_name, f"{path}: holds {result.task}, seed {result.seed}")
    require(result.task in LOCOMOTION + MAZES, f"{path}: {result.task!r} is none of the paper's tasks")
    return result


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
        d4rl=is_d4rl(str(result["dataset"].get("id"))) if isinstance(result["dataset"], dict) else False,
        behaviour=_number(from_json(dict, result["dataset"], "dataset").get("mean_score_pct"), "mean_score_pct"),
        errors={name: _numbers(from_json(dict, item, name).get("one_step"), name) for name, item in errors.items()},
        critic=_numbers(result.get("critic"), "critic"),
        departures=tuple(from_json(list[str], result["env_departures"], "env_departures")),
        variants={name: _variant(name, item) for name, item in result["variants"].items()},
    )


def _variant(name: str, value: dict[str, Any]) -> Variant:
    world = from_json(str, value["world"], f"{name}: world")
    require(world == WORLDS.get(name, world), f"{name}: expected the world model {WORLDS.get(name)}, got {world!r}")
    seeds = from_json(list[int], value["seeds"], f"{name}: seeds")
    base, itpo = (_scores(value[policy]["scores"], f"{name}: {policy}: scores") for policy in ("base", "itpo"))
    n_different = len(set(seeds))
    complete = 0 < len(seeds) == n_different == len(base) == len(itpo) <= MOST_EPISODES
    sizes = f"{len(base)} and {len(itpo)} scores on {n_different} environment seeds"
    require(
        complete, f"{name}: expected one score of each policy per environment seed, up to {MOST_EPISODES}, got {sizes}"
    )
    latency_ms = {policy: _number(value["latency_ms"][policy]["p50_ms"], "p50_ms") for policy in ("base", "itpo")}
    diagnostics = _numbers(value.get("diagnostics"), f"{name}: diagnostics")
    return Variant(world, _settings(name, value.get("settings", {})), tuple(seeds), base, itpo, latency_ms, diagnostics)


def _settings(name: str, values: Any) -> dict[str, Any]:
    """The settings that this version knows; InputError for invalid values."""
    kinds = {item.name: item.type for item in fields(ITPOConfig)}
    settings = {key: x for key, x in from_json(dict, values, f"{name}: settings").items() if key in kinds}
    settings = finite_or_infinite(settings)
    for key, x in settings.items():
        from_json(kinds[key], x, f"{name}: settings: {key}")
    # Raises InputError for values that the settings refuse.
    ITPOConfig(**settings)
    return settings


def _number(value: Any, name: str) -> float | None:
    """A number up to MOST, or None; InputError for anything else."""
    if value is None:
        return None
    fits = abs(from_json(float, value, name)) <= MOST
    require(fits, f"{name}: expected numbers up to {MOST:g}, got {shorten(value)}")
    return float(value)


def _numbers(values: Any, name: str) -> dict[str, float]:
    """Numbers by name, without those that are None; empty for None."""
    numbers = {key: _number(x, f"{name}: {key}") for key, x in (from_json(dict | None, values, name) or {}).items()}
    return {key: x for key, x in numbers.items() if x is not None}


def _scores(values: Any, name: str) -> tuple[float, ...]:
    """Scores, one per episode."""
    return tuple(_number(score, name) for score in from_json(list[float], values, name))


def _require_one_table(evaluations: list[Evaluation]) -> None:
    """Raise InputError unless evaluations of a task have the same episodes, and all have the same default settings."""
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
