"""python -m fastdwm.study TASK: what each world model gains, and what a decision costs with it.

Every finished cell of the grid is a file of its own, so a study that was stopped goes on with the same command.
Heavy packages are imported inside the functions: --help answers before torch, numpy and the simulator are loaded.
"""

import dataclasses
import json
import os
import signal
import threading
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from fastdwm import command
from fastdwm.config import EvalConfig, require
from fastdwm.errors import InputError
from fastdwm.measure.record import circumstances, prepare_output, write_json
from fastdwm.shipped import shipped_folder
from fastdwm.study.grid import BASE, Cell, Grid, StudyConfig
from fastdwm.tasks import get_task

if TYPE_CHECKING:
    from fastdwm.agent import Agent
    from fastdwm.bundle import Bundle

# Increase when the meaning of a cell's file changes.
FORMAT = 3
# Episodes that a process runs in lockstep: more save nothing on a CPU, and need memory for each one's particles.
AT_ONCE = 10

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """What all cells share."""

    bundle: "Bundle"
    config: StudyConfig
    seeds: list[int]
    max_steps: int
    identity: dict[str, Any]
    """whatever makes the cells comparable: those of another identity are never mixed in"""
    folder: Path
    """of the cells' files; its name tells what they are for"""

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def agent(self, cell: Cell, seed: int) -> "Agent":
        from fastdwm.measure.simulate import make_agent

        # Cells that do not imagine have no such setting.
        steps = cell.world_steps or None
        config = EvalConfig(
            world=cell.world_model,
            world_steps=steps,
            itpo=cell.itpo(self.config.itpo),
            device=self.config.device,
            backend=self.config.backend,
        )
        return make_agent(self.bundle, config, seed)


def main(task_name: str, config: StudyConfig) -> None:
    """Run ITPO with every world model over a grid of settings, and the base policy, on the same tuning seeds; then the
    base policy and the best cell on the seeds of evaluations, which nothing was chosen on.

    The table, what the one-step models keep of the gain and the confirmation go to stdout; study.md, .csv, .png, .json
    and one file per cell to the folder of the study; progress to stderr. The same command takes up a study that was
    stopped.
    """
    task = get_task(task_name)
    out = config.out or Path("results", f"study-{task.name}")
    folder, confirmed = prepare_output(out / "cells", task.name).parent, out / "confirmation"
    if config.confirm:
        prepare_output(confirmed, task.name)
    grid = config.resolved()
    command.set_up_torch(config.threads, config.device)
    from fastdwm.bundle import Bundle
    from fastdwm.study import tradeoff

    weights = config.bundle or shipped_folder(task.name)
    bundle = Bundle.load(weights, config.trust_env)
    came = bundle.task.name
    require(came == task.name, f"bundle: expected one for {task.name}, {weights} is for {came}")
    held = held_worlds(bundle)
    cells = grid.cells(held)
    for cell in cells:
        # Raises InputError for a number of network calls that the world model cannot do.
        bundle.world(cell.world_model, steps=cell.world_steps or None)
        cell.itpo(config.itpo)
    study = plan(bundle, config, grid.episodes, config.seed, folder)
    again = plan(bundle, config, grid.episodes, config.confirm_seed, confirmed)
    finished(study), finished(again)
    with command.progress() as report:
        run_cells(study, cells, report)
        measure_latencies(study, cells, report)
        records = read(study, cells)
        rows = tradeoff.summarise(records, study.identity)
        chosen = tradeoff.best(cells, rows)
        if config.confirm:
            run_cells(again, [BASE, chosen], report)
    found = tradeoff.confirmation(read(again, [BASE, chosen]), chosen) if config.confirm else None
    conclude(study, grid, rows, tradeoff.verdict(records, rows, grid.centre(held)), found, out)


def held_worlds(bundle: "Bundle") -> dict[str, int]:
    """Network calls per imagined transition, unless asked otherwise, of each world model in the bundle."""
    from fastdwm.models.table import network_calls

    return {name: network_calls(bundle.world(name).dynamics) for name in bundle.worlds}


def plan(bundle: "Bundle", config: StudyConfig, episodes: int, first_seed: int, folder: Path) -> Study:
    """The study, with what its cells must share; raises InputError without a limit on the length of an episode."""
    from fastdwm.measure.simulate import step_limit

    seeds = [first_seed + i for i in range(episodes)]
    max_steps = step_limit(bundle.task.env, config.max_steps)
    here = circumstances(config.device)
    identity = {
        "format": FORMAT,
        "task": bundle.task.name,
        "bundle": bundle.fingerprint,
        **{f"task.{name}": value for name, value in bundle.task.record().items() if name != "name"},
        **{f"worlds.{name}": json.loads(json.dumps(dataclasses.asdict(x.config))) for name, x in bundle.worlds.items()},
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "max_steps": max_steps,
        "latency_decisions": config.latency_decisions,
        **config.common(),
        "device": config.device,
        "backend": config.backend,
        **{f"versions.{name}": version for name, version in here["versions"].items()},
        **{f"machine.{name}": value for name, value in here["machine"].items()},
    }
    return Study(bundle, config, seeds, max_steps, identity, folder)


def finished(study: Study) -> dict[str, Record]:
    """Records of the finished cells by name; InputError, naming the difference, if one belongs to another study."""
    records = {}
    for path in sorted(study.folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            identity = record["identity"]
            differing = [key for key in identity | study.identity if identity.get(key) != study.identity.get(key)]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"out: {path} is not a cell of a study ({error}); move it away") from None
        if differing:
            came = "; ".join(f"{key}: {identity.get(key)}, now {study.identity.get(key)}" for key in differing)
            raise InputError(f"out: {study.folder.parent} holds another study ({came}); give this one its own --out")
        records[path.stem] = record
    return records


def read(study: Study, cells: list[Cell]) -> dict[Cell, Record]:
    """The records of the cells, all of which are finished."""
    records = finished(study)
    return {cell: records[cell.name] for cell in cells}


def run_cells(study: Study, cells: list[Cell], report: command.Report) -> None:
    """Run the episodes of the cells that are not finished, one cell per process at a time."""
    done = finished(study)
    # The longest first: at the end the processes finish at about the same time.
    cells = sorted(cells, key=lambda cell: -cell.work)
    todo = [cell for cell in cells if cell.name not in done]
    if not todo:
        return
    # Compiles the CPU kernels if no run before has: here, where it shows, and once for all processes.
    report("preparation (the first run compiles)", 0, 1)
    study.agent(todo[0], study.seeds[0])
    report("preparation (the first run compiles)", 1, 1)
    context = get_context("spawn")
    shares = context.RawArray("d", [float(cell.name in done) for cell in cells])
    total = sum(cell.work for cell in cells)
    already = sum(cell.work for cell in cells if cell.name in done)
    stage = f"{study.folder.name}, {len(todo)} of {len(cells)} cells to run (per mille of the work)"
    workers = min(study.config.workers, len(todo))
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(shares, study))
    try:
        running = {pool.submit(run_cell, cell, cells.index(cell)): cell for cell in todo}
        pending = set(running)
        while pending:
            ended, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
            for future in ended:
                if error := future.exception():
                    error.add_note(f"cell: {running[future].name}")
                    raise error
            work = sum(share * cell.work for share, cell in zip(shares, cells, strict=True))
            # Until the processes have started there is nothing to estimate the time left from.
            if work > already:
                report(stage, round(1000 * work / total) if pending else 1000, 1000)
    finally:
        pool.shutdown(cancel_futures=True)


# In a worker: the study, and the share of each cell's decisions that is done, shared with the parent.
_study: Study | None = None
_shares: Any = None


def _start_worker(shares: Any, study: Study) -> None:
    global _study, _shares
    _study, _shares = study, shares
    command.set_up_torch(study.config.threads, study.config.device)
    # A worker that is interrupted leaves no half-written file and has nothing to say; the parent does.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed study leaves no process behind that would slow down the one that takes it up."""
    parent_process().join()
    os._exit(1)


def run_cell(cell: Cell, index: int) -> None:
    """All episodes of the cell, in batches of AT_ONCE; the file appears when the last one has ended."""
    from fastdwm.measure.simulate import Protocol, run_episodes

    study, start = _study, perf_counter()
    # Diagnoses cost time and are no part of a study: this leaves only that of the first decision.
    protocol = Protocol(study.max_steps, cell.horizon, study.bundle.discount, diagnose_every=study.max_steps + 1)
    batches = [study.seeds[i : i + AT_ONCE] for i in range(0, len(study.seeds), AT_ONCE)]
    runs = []

    def on_progress(done: int, total: int) -> None:
        _shares[index] = (len(runs) + done / total) / len(batches)

    for seeds in batches:
        # As in an evaluation, the first seed stands for the whole batch: each episode has the noise of its own seed.
        runs.append(run_episodes(study.agent(cell, seeds[0]), study.bundle.task.env, seeds, protocol, on_progress))
    write_json(study.path(cell), describe(study, cell, runs) | {"wall_s": perf_counter() - start})


def describe(study: Study, cell: Cell, runs: list[Any]) -> Record:
    """The file of a cell, before its latency is known."""
    from fastdwm.eval.summary import latency_ms
    from fastdwm.measure.simulate import LATENCY_DECISIONS, WARM_UP

    task = study.bundle.task
    episodes = [
        {
            "seed": episode.seed,
            "score_pct": task.score_pct(episode.total),
            "return": episode.total,
            "length": episode.length,
            "terminated": episode.terminated,
            "discarded": episode.discarded,
        }
        for run in runs
        for episode in run.episodes
    ]
    batch = latency_ms(runs[0].batch_latency_s()) | {"size": runs[0].batch_size}
    record = {"cell": dataclasses.asdict(cell), "identity": study.identity, "batch_latency": batch}
    if cell == BASE:
        # The states that every cell's latency is measured on.
        record["observations"] = [obs.tolist() for obs in runs[0].observations[: WARM_UP + LATENCY_DECISIONS]]
    return record | {"episodes": episodes}


def measure_latencies(study: Study, cells: list[Cell], report: command.Report) -> None:
    """Time the decisions of one episode alone, one cell after another in this process, all on the same states."""
    import numpy as np

    from fastdwm.eval.summary import latency_ms
    from fastdwm.measure.simulate import decision_latency

    records = finished(study)
    visited = np.array(records[BASE.name]["observations"])
    missing = [cell for cell in cells if "latency" not in records[cell.name]]
    for i, cell in enumerate(missing):
        report("latency of one episode alone, cells", i, len(missing))
        agent = study.agent(cell, study.seeds[0])
        seconds = decision_latency(agent, visited, decisions=study.config.latency_decisions)
        write_json(study.path(cell), {**records[cell.name], "latency": latency_ms(seconds)})
    if missing:
        report("latency of one episode alone, cells", len(missing), len(missing))


def conclude(
    study: Study, grid: Grid, rows: list[Record], verdict: list[str], confirmation: Record | None, out: Path
) -> None:
    """Write the table as Markdown and CSV, the picture and study.json; print the table and what follows from it."""
    from fastdwm.study import tables as study_tables
    from fastdwm.study import tradeoff

    here = circumstances(study.config.device)
    foreign = study.bundle.task.departures()
    title = f"{study.bundle.task.name}, {len(study.seeds)} episodes per cell"
    title += f", not the task's own simulator: {', '.join(foreign)}" if foreign else ""
    sentences = verdict + ([study_tables.confirmed(confirmation)] if confirmation else [])
    summary = {
        "task": study.bundle.task.name,
        **here,
        "verdict": verdict,
        "confirmation": confirmation,
        "config": dataclasses.asdict(study.config),
        "grid": dataclasses.asdict(grid),
        "seeds": study.seeds,
        "identity": study.identity,
        "env": dataclasses.asdict(study.bundle.task.env),
        "env_departures": foreign,
        "cells": rows,
    }
    write_json(out / "study.json", summary)
    tradeoff.write_csv(rows, out / "study.csv")
    tradeoff.save_plot(rows, out / "study.png", title)
    title = f"{title}, environment seeds {study.identity['seeds']}"
    study_tables.write_markdown(rows, out / "study.md", title, sentences, here)
    study_tables.print_table(rows, title)
    print("\n".join(sentences))
    for kind in ("md", "csv", "png", "json"):
        print(out / f"study.{kind}")


def parse(argv: list[str]) -> tuple[str, StudyConfig]:
    """Task and settings; raises as `command.parse`. There is no preset: the grids take that part."""
    import tyro

    task = tyro.conf.arg(metavar="TASK", help="task, for example hopper-medium")
    fields = [
        ("task", Annotated[str, tyro.conf.Positional, task]),
        ("config", Annotated[StudyConfig, tyro.conf.arg(name="")], StudyConfig()),
    ]
    parsed = command.read(fields, "python -m fastdwm.study", main.__doc__ or "", argv)
    return parsed.task, parsed.config
