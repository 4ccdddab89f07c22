"""The processes that record: each one chunk at a time; they end with the command."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from fastdwm.collect.behaviour import Act
from fastdwm.collect.episodes import Chunk, Portion, Recorder, record, save, start
from fastdwm.command import StageProgress
from fastdwm.engines.interface import Ended, Job, run
from fastdwm.engines.processes import Processes


def record_chunks(
    portions: Sequence[Portion], recorder: Recorder, folder: Path, workers: int, on_progress: StageProgress
) -> None:
    """Record the portions' chunks that have no file in the folder yet; raises the error of the first that fails."""
    chunks = {chunk.file: chunk for portion in portions for chunk in portion.chunks}
    todo = [chunk for chunk in chunks.values() if not (folder / chunk.file).exists()]
    total = sum(chunk.transitions for chunk in chunks.values())
    done = total - sum(chunk.transitions for chunk in todo)
    on_progress(done, total)

    def on_ended(ended: Ended) -> None:
        nonlocal done
        if ended.error:
            raise ended.error
        done += chunks[ended.job.name].transitions
        on_progress(done, total)

    with contextlib.closing(Processes(min(workers, max(len(todo), 1)))) as engine:
        run(engine, [Job(chunk.file, _record, (chunk, recorder, folder)) for chunk in todo], on_ended)


# In a worker: what was recorded last, and what acts in it.
_last: tuple[Recorder, list[Act]] | None = None


def _record(chunk: Chunk, recorder: Recorder, folder: Path) -> None:
    global _last
    if _last is None or _last[0] != recorder:
        _last = recorder, start(recorder)
    save(chunk, record(chunk, recorder, _last[1]), folder)
