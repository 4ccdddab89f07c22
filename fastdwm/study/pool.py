"""The processes of a study: each runs one cell at a time, and ends with the study."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from typing import Any

from fastdwm import command
from fastdwm.study.cells import Study, finished, run_cell
from fastdwm.study.grid import Cell


def run_cells(study: Study, cells: list[Cell], on_progress: command.Progress) -> None:
    """Run the episodes of the cells that are not finished."""
    done = finished(study)
    # The longest first: at the end the processes finish at about the same time.
    todo = sorted((cell for cell in cells if cell.name not in done), key=lambda cell: -cell.work)
    if not todo:
        return
    # Compiles the CPU kernels if no run before has: here, where it shows, and once for all processes.
    on_progress("preparation (the first run compiles)", 0, 1)
    study.agent(todo[0], study.seeds[0])
    on_progress("preparation (the first run compiles)", 1, 1)
    context = get_context("spawn")
    shares = context.RawArray("d", len(todo))
    total, left = (sum(cell.work for cell in some) for some in (cells, todo))
    stage = f"{study.folder.name}, {len(todo)} of {len(cells)} cells to run (per mille of the work)"

    def tell(complete: bool) -> None:
        work = sum(share * cell.work for share, cell in zip(shares, todo, strict=True))
        # Until the processes have started there is nothing to estimate the time left from.
        if work > 0:
            on_progress(stage, 1000 if complete else round(1000 * (total - left + work) / total), 1000)

    workers = min(study.config.workers, len(todo))
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(study, shares))
    try:
        _watch({pool.submit(_run, cell, i): cell for i, cell in enumerate(todo)}, tell)
    finally:
        pool.shutdown(cancel_futures=True)


def _watch(futures: dict[Future, Cell], tell: Callable[[bool], None]) -> None:
    """Wait for all; raises the error of the first that fails, with the name of its cell.   tell(all have ended)."""
    pending = set(futures)
    while pending:
        ended, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
        for future in ended:
            if error := future.exception():
                error.add_note(f"cell: {futures[future].name}")
                raise error
        tell(not pending)


# In a worker: the study, and the share of each cell's decisions that is done, which the parent sees.
_study: Study | None = None
_shares: Any = None


def _start_worker(study: Study, shares: Any) -> None:
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


def _run(cell: Cell, index: int) -> None:
    def on_share(share: float) -> None:
        _shares[index] = share

    run_cell(_study, cell, on_share)
