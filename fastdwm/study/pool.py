"""The cells of a study as jobs of an engine."""

import contextlib
import dataclasses
from pathlib import Path

from fastdwm import command, engines
from fastdwm.engines.interface import Ended, Job, run
from fastdwm.study.cells import Study, finished, run_cell
from fastdwm.study.grid import Cell


def run_cells(study: Study, cells: list[Cell], on_progress: command.Progress) -> None:
    """Run the episodes of the cells that are not finished; raises the error of the first that fails."""
    done = finished(study)
    # The longest first: at the end the processes finish at about the same time.
    todo = sorted((cell for cell in cells if cell.name not in done), key=lambda cell: -cell.work)
    if not todo:
        return
    # Compiles the CPU kernels if no run before has: here, where it shows, and once for all processes.
    on_progress("preparation (the first run compiles)", 0, 1)
    study.agent(todo[0], study.seeds[0])
    on_progress("preparation (the first run compiles)", 1, 1)
    total = sum(cell.work for cell in cells)
    left = {cell.name: cell.work for cell in todo}
    stage = f"{study.folder.name}, {len(todo)} of {len(cells)} cells to run (per mille of the work)"

    def on_ended(ended: Ended) -> None:
        if ended.error:
            ended.error.add_note(f"cell: {ended.job.name}")
            raise ended.error
        left.pop(ended.job.name)
        on_progress(stage, 1000 - round(1000 * sum(left.values()) / total), 1000)

    on_progress(stage, 1000 - round(1000 * sum(left.values()) / total), 1000)
    # Other machines share the file system, not the folder that we are in.
    there = dataclasses.replace(study, folder=Path.absolute(study.folder))
    jobs = [Job(cell.name, _run, (there, cell)) for cell in todo]
    with contextlib.closing(engines.start(study.config, min(study.config.workers, len(todo)))) as engine:
        run(engine, jobs, on_ended)


def _run(study: Study, cell: Cell) -> None:
    command.set_up_torch(study.config.threads, study.config.device)
    run_cell(study, cell)
