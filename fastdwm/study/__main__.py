"""python -m fastdwm.study TASK: compare the gain of each world model with the latency of its decisions.

Every finished grid point has a file of its own, so the same command resumes a study that was stopped.
Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import contextlib
import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdwm import command
from fastdwm.errors import InputError
from fastdwm.files import prepare_folder, reserved, write_atomically, write_json
from fastdwm.measure.record import circumstances, output_name
from fastdwm.shipped import bundle_of
from fastdwm.study.config import StudyConfig
from fastdwm.study.grid import BASE, Grid, GridPoint, parse_world
from fastdwm.tables import csv_text

if TYPE_CHECKING:
    from fastdwm.bundle import Bundle
    from fastdwm.study.cells import Study


def main(task_name: str, config: StudyConfig) -> None:
    """Run ITPO with every world model over a grid of settings, and the base policy, on the same tuning seeds. Then run
    the base policy and the best grid point on the seeds of evaluations, which were not used to choose it.

    The table, the share of the gain that one-step models keep, and the confirmation go to stdout; study.md, .csv, .png,
    .json and one file per grid point to the study's folder; progress to stderr. The same command resumes a study that
    was stopped.
    """
    source = bundle_of(task_name, config.bundle)
    out = config.out or Path("results", f"study-{output_name(task_name, source)}")
    for folder in (out / "cells", *([out / "confirmation"] if config.confirm else [])):
        prepare_folder(folder)
    with reserved(out):
        grid = config.resolved()
        command.set_up_torch(config.threads, config.device)
        from fastdwm.measure.bundle import load_for

        bundle = load_for(task_name, source, config.trust)
        run_study(bundle, grid, config, out)


def run_study(bundle: "Bundle", grid: Grid, config: StudyConfig, out: Path) -> None:
    """Run the missing grid points, choose the best, confirm it, and write the results."""
    from fastdwm.study import tradeoff
    from fastdwm.study.cells import finished, held_worlds, measure_latencies, plan, read, run_points

    if config.worlds is None:
        grid = dataclasses.replace(grid, worlds=possible(grid.worlds, bundle))
    held = held_worlds(bundle)
    points = grid.points(held)
    check(points, bundle, config)
    study = plan(bundle, config, grid.episodes, config.seed, out / "cells")
    confirming = plan(bundle, config, grid.episodes, config.confirm_seed, out / "confirmation")
    # Raises InputError, before anything runs, for files of another study.
    finished(study), finished(confirming)
    with command.progress() as on_progress:
        run_points(study, points, on_progress)
        measure_latencies(study, points, on_progress)
        records = read(study, points)
        rows = tradeoff.summarise(records, study.identity)
        chosen = tradeoff.best(points, rows)
        if config.confirm:
            run_points(confirming, [BASE, chosen], on_progress)
    confirmation = tradeoff.confirmation(read(confirming, [BASE, chosen]), chosen) if config.confirm else None
    conclude(study, grid, rows, tradeoff.verdict(records, rows, grid.centre(held)), confirmation, out)


def possible(worlds: tuple[str, ...], bundle: "Bundle") -> tuple[str, ...]:
    """The world models that the bundle holds and that can make so many network calls."""
    held = []
    for world in worlds:
        name, calls = parse_world(world)
        with contextlib.suppress(InputError):
            bundle.world(name, steps=calls)
            held.append(world)
    return tuple(held)


def check(points: list[GridPoint], bundle: "Bundle", config: StudyConfig) -> None:
    """Raise InputError, before anything runs, for grid points that cannot run, such as with too many network calls."""
    for point in points:
        if point.imagines:
            bundle.world(point.world, steps=point.world_steps)
        point.itpo(config.common)


def conclude(
    study: "Study", grid: Grid, rows: list[dict], verdict: list[str], confirmation: dict[str, Any] | None, out: Path
) -> None:
    """Write the table as Markdown and CSV, the picture and study.json; print the table and the conclusions."""
    from fastdwm.study import tables, tradeoff

    here = circumstances(study.config.device)
    departures, score = study.bundle.task.departures(), study.bundle.task.score_name
    title = f"{study.bundle.task.name}, {len(study.seeds)} episodes per grid point"
    title += f", not the task's own simulator: {', '.join(departures)}" if departures else ""
    sentences = verdict + ([tables.confirmed(confirmation, score)] if confirmation else [])
    summary = {
        "task": study.bundle.task.name,
        **here,
        "verdict": verdict,
        "confirmation": confirmation,
        "config": dataclasses.asdict(study.config),
        "grid": dataclasses.asdict(grid),
        "seeds": study.seeds,
        "identity": study.identity,
        "env": study.bundle.task.env.record(),
        "env_departures": departures,
        "cells": rows,
    }
    write_json(out / "study.json", summary)
    write_atomically(out / "study.csv", csv_text(rows).encode())
    tradeoff.save_plot(rows, out / "study.png", title, score)
    title = f"{title}, environment seeds {study.identity['seeds']}"
    tables.write_markdown(rows, out / "study.md", title, sentences, here, score)
    tables.print_study(rows, title, score)
    print("\n".join(sentences))
    for kind in ("md", "csv", "png", "json"):
        print(out / f"study.{kind}")


# No presets: the named grids serve instead.
parse = partial(command.read, StudyConfig(), "python -m fastdwm.study", main.__doc__, task=command.TASK)


if __name__ == "__main__":
    command.finish(lambda: main(*parse(sys.argv[1:])), resumes=True)
