"""The processes that record: each one chunk at a time; they end with the command."""

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path

from fastdwm.collect.behaviour import Act
from fastdwm.collect.episodes import Chunk, Portion, Recorder, record, save, start
from fastdwm.command import StageProgress


def record_chunks(
    portions: Sequence[Portion], recorder: Recorder, folder: Path, workers: int, on_progress: StageProgress
) -> None:
    """Record the portions' chunks that have no file in the folder yet; raises the error of the first that fails."""
    chunks = [chunk for portion in portions for chunk in portion.chunks]
    todo = [chunk for chunk in chunks if not (folder / chunk.file).exists()]
    total = sum(chunk.transitions for chunk in chunks)
    done = total - sum(chunk.transitions for chunk in todo)
    on_progress(done, total)
    if not todo:
        return
    context = get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(todo)), context, initializer=_begin, initargs=(recorder, folder))
    try:
        futures = {pool.submit(_record, chunk): chunk for chunk in todo}
        for future in as_completed(futures):
            future.result()
            done += futures[future].transitions
            on_progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)


# In a worker: what is recorded, where to, and what acts.
_job: tuple[Recorder, Path, list[Act]] | None = None


def _begin(recorder: Recorder, folder: Path) -> None:
    global _job
    # A worker that is interrupted leaves no half-written file and has nothing to say; the parent does.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _job = recorder, folder, start(recorder)


def _end_with_parent() -> None:
    """A killed command leaves no process behind that would slow down the one that takes it up."""
    parent_process().join()
    os._exit(1)


def _record(chunk: Chunk) -> None:
    recorder, folder, acts = _job
    save(chunk, record(chunk, recorder, acts), folder)
