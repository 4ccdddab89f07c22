"""Run the grid points of a study and write one file for each, from which a stopped study resumes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from fastdwm import command, engines
from fastdwm.agent import Agent
from fastdwm.bundle import Bundle
from fastdwm.command import Progress
from fastdwm.engines.interface import Job, run_all
from fastdwm.files import strict, write_json
from fastdwm.jobs.results import Record, read_all
from fastdwm.measure.latency import TIMED_DECISIONS, UNTIMED_DECISIONS, decision_latency, latency_ms
from fastdwm.measure.record import circumstances
from fastdwm.measure.simulate import Run, run_episodes, step_limit
from fastdwm.models.registry import network_calls
from fastdwm.study.config import StudyConfig
from fastdwm.study.grid import BASE, GridPoint

# Increase when the meaning of a grid point's file changes.
FORMAT = 5
# Episodes that a process runs in lockstep; more save no time on a CPU and need more memory for their particles.
AT_ONCE = 10


@dataclasses.dataclass(frozen=True)
class Study:
    """The bundle and the settings that all grid points share."""

    bundle: Bundle
    config: StudyConfig
    seeds: list[int]
    max_steps: int
    identity: dict[str, Any]
    """everything that must agree for grid points to be comparable"""
    folder: Path
    """folder of the grid points' files; its name is shown as the stage of the progress"""

    def path(self, point: GridPoint) -> Path:
        return self.folder / f"{point.name}.json"

    def agent(self, point: GridPoint, seed: int) -> Agent:
        # A grid point with H = 0 does not use its world model.
        world = point.world if point.imagines else next(iter(self.bundle.worlds))
        settings = {"world": world, "world_steps": point.world_steps or None}
        where = {"device": self.config.device, "backend": self.config.backend}
        return Agent.of(self.bundle, point.itpo(self.config.common), seed=seed, **settings, **where)


def held_worlds(bundle: Bundle) -> dict[str, int]:
    """Default number of network calls per imagined transition, for each world model in the bundle."""
    return {name: network_calls(bundle.world(name).dynamics) for name in bundle.worlds}


def plan(bundle: Bundle, config: StudyConfig, episodes: int, first_seed: int, folder: Path) -> Study:
    """The study with its identity; raises InputError if the length of an episode has no limit."""
    seeds = [first_seed + i for i in range(episodes)]
    max_steps = step_limit(bundle.task.env, config.max_steps)
    here = circumstances(config.device)
    identity = {
        "format": FORMAT,
        "task": bundle.task.name,
        "bundle": bundle.fingerprint,
        "max_deviation": bundle.max_deviation,
        "discount": bundle.discount,
        **{f"task.{name}": value for name, value in bundle.task.record().items() if name != "name"},
        **{f"worlds.{name}": strict(dataclasses.asdict(x.config)) for name, x in bundle.worlds.items()},
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "max_steps": max_steps,
        "latency_decisions": config.latency_decisions,
        **config.flags(),
        "device": config.device,
        "backend": config.backend,
        **{f"versions.{name}": version for name, version in here["versions"].items()},
        **{f"machine.{name}": value for name, value in here["machine"].items()},
    }
    return Study(bundle, config, seeds, max_steps, identity, folder)


def finished(study: Study) -> dict[str, Record]:
    """Records of the finished grid points by name; InputError, which names the differences, for another study's."""
    return read_all(study.folder, "study", study.identity)


def read(study: Study, points: list[GridPoint]) -> dict[GridPoint, Record]:
    """Records of these grid points, which must all be finished."""
    records = finished(study)
    return {point: records[point.name] for point in points}


def run_points(study: Study, points: list[GridPoint], on_progress: Progress) -> None:
    """Run the episodes of the unfinished grid points; raises the first error."""
    done = finished(study)
    todo = [point for point in points if point.name not in done]
    if not todo:
        return
    # Compile the CPU kernels here, where progress is shown, and once for all processes.
    on_progress("preparation (the first run compiles)", 0, 1)
    study.agent(todo[0], study.seeds[0])
    on_progress("preparation (the first run compiles)", 1, 1)
    stage = f"{study.folder.name}, {len(todo)} of {len(points)} grid points to run (per mille of the work)"
    # Other machines share the file system, but not the working directory.
    there = dataclasses.replace(study, folder=Path.absolute(study.folder))
    jobs = [Job(point.name, run_point, (there, point), work=point.work) for point in points]
    engine = engines.start(study.config, min(study.config.workers, len(todo)))
    run_all(engine, jobs, lambda ran, total: on_progress(stage, round(1000 * ran / total), 1000), finished=done)


def run_point(study: Study, point: GridPoint) -> None:
    """Run all episodes of a grid point in batches of AT_ONCE, then write its file."""
    command.set_up_torch(study.config.threads, study.config.device)
    start = perf_counter()
    batches = [study.seeds[i : i + AT_ONCE] for i in range(0, len(study.seeds), AT_ONCE)]
    runs: list[Run] = []
    for seeds in batches:
        # The agent takes the first seed of the batch; each episode then draws noise from its own seed.
        agent = study.agent(point, seeds[0])
        runs.append(run_episodes(agent, study.bundle.task.env, seeds, max_steps=study.max_steps))
    write_json(study.path(point), point_record(study, point, runs) | {"wall_s": perf_counter() - start})


def point_record(study: Study, point: GridPoint, runs: Sequence[Run]) -> Record:
    """The record of a grid point before its latency is measured."""
    batch = latency_ms(runs[0].batch_latency_s()) | {"size": runs[0].batch_size}
    record = {"cell": dataclasses.asdict(point), "identity": study.identity, "batch_latency": batch}
    if point == BASE:
        # The latencies of all grid points are measured on these states.
        record["observations"] = [obs.tolist() for obs in runs[0].observations[: UNTIMED_DECISIONS + TIMED_DECISIONS]]
    return record | {"episodes": [episode.record(study.bundle.task) for run in runs for episode in run.episodes]}


def measure_latencies(study: Study, points: list[GridPoint], on_progress: Progress) -> None:
    """Time decisions of one episode alone, for one grid point after another in this process, on the same states."""
    records = finished(study)
    observations = np.array(records[BASE.name]["observations"])
    missing = [point for point in points if "latency" not in records[point.name]]
    for i, point in enumerate(missing):
        on_progress("latency of one episode alone, grid points", i, len(missing))
        agent = study.agent(point, study.seeds[0])
        seconds = decision_latency(agent, observations, decisions=study.config.latency_decisions)
        write_json(study.path(point), {**records[point.name], "latency": latency_ms(seconds)})
    if missing:
        on_progress("latency of one episode alone, grid points", len(missing), len(missing))
