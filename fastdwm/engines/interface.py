"""The interface of all engines, and the one loop that drives them."""

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from fastdwm.command import StageProgress, unwatched
from fastdwm.errors import RunError


@dataclass(frozen=True)
class Job:
    """A function to be called in another process."""

    name: str
    function: Callable[..., Any]
    """of a module, so that the other process can import it"""
    args: tuple = ()
    """whatever pickle takes"""
    after: tuple[str, ...] = ()
    """names of the jobs that have to end well before this one starts"""
    work: float = 1
    """how long it takes, in any unit, beside the other jobs"""


class Engine(Protocol):
    """Runs jobs. What `submit` returns is hashable, and means nothing to the caller."""

    @property
    def places(self) -> int:
        """Jobs that run at once, at the moment; no more are submitted."""

    def submit(self, job: Job) -> Any:
        """Start the job."""

    def wait(self, handles: Collection[Any], timeout_s: float) -> list[Any]:
        """Those that have ended: at least one, unless the time runs out."""

    def outcome(self, handle: Any) -> Any:
        """What the function returned, or raises what it raised, or Died; once, of a job that has ended."""

    def cancel(self, handle: Any) -> None:
        """End the job at once, half done as it is."""

    def close(self) -> None:
        """Leave no process behind."""


class Died(RunError):
    """The process of a job ended without an answer."""


@dataclass(frozen=True)
class Ended:
    """A job that has ended, well or not, or that will never start."""

    job: Job
    value: Any = None
    error: BaseException | None = None
    """none: it ended well"""
    started: bool = True


def run(
    engine: Engine,
    jobs: Sequence[Job],
    on_ended: Callable[[Ended], None],
    on_wait: Callable[[list[str]], None] = lambda running: None,
    period_s: float = 0.5,
) -> None:
    """Run all jobs, those in front first. One that fails takes with it those that come after it, and no other.

    on_wait: sees the names of the running jobs every `period_s` or more often. What the callbacks raise ends the run,
    and the running jobs with it.
    """
    waiting, running = {job.name: job for job in jobs}, {}
    lost: set[str] = set()
    try:
        while waiting or running:
            for job in _without_hope(waiting, lost):
                on_ended(Ended(job, started=False))
            for job in _ready(waiting, running.values(), engine.places - len(running)):
                running[engine.submit(job)] = waiting.pop(job.name)
            on_wait([job.name for job in running.values()])
            for handle in engine.wait(running, period_s) if running else ():
                ended = _ended(engine, handle, running.pop(handle))
                lost |= {ended.job.name} if ended.error else set()
                on_ended(ended)
    finally:
        for handle in running:
            engine.cancel(handle)


def run_all(
    engine: Engine,
    jobs: Sequence[Job],
    on_progress: StageProgress = unwatched,
    on_wait: Callable[[list[str]], None] = lambda running: None,
    finished: Collection[str] = (),
) -> dict[str, Any]:
    """Run jobs that wait for no other, the longest first, and close the engine; returns their values by name.

    Raises the error of the first that fails, with the name of its job in a note; the others end then.
    finished: names of jobs that an earlier run has left nothing to do for.   on_progress(work done, work of all jobs).
    on_wait: as in `run`.
    """
    values, total = dict.fromkeys(finished), sum(job.work for job in jobs)
    left = [job for job in jobs if job.name not in values]

    def show() -> None:
        on_progress(sum(job.work for job in jobs if job.name in values), total)

    def on_ended(ended: Ended) -> None:
        if ended.error:
            ended.error.add_note(f"job: {ended.job.name}")
            raise ended.error
        values[ended.job.name] = ended.value
        show()

    show()
    with closing(engine):
        # The longest first: at the end the processes finish at about the same time.
        run(engine, sorted(left, key=lambda job: -job.work), on_ended, on_wait)
    return {job.name: values[job.name] for job in left}


def _without_hope(waiting: dict[str, Job], lost: set[str]) -> list[Job]:
    """The jobs, taken out of `waiting`, that come after lost ones, and are lost with them."""
    found = []
    for job in list(waiting.values()):
        if lost.intersection(job.after):
            found.append(waiting.pop(job.name))
            lost.add(job.name)
    return found


def _ready(waiting: dict[str, Job], running: Collection[Job], places: int) -> list[Job]:
    """The first jobs that nothing holds up, at most as many as there are places."""
    open_jobs = waiting.keys() | {job.name for job in running}
    return [job for job in waiting.values() if not open_jobs.intersection(job.after)][: max(places, 0)]


def _ended(engine: Engine, handle: Any, job: Job) -> Ended:
    try:
        return Ended(job, engine.outcome(handle))
    except Exception as error:
        return Ended(job, error=error)
