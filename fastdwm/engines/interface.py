"""The interface of all engines, and the loop that drives them."""

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from fastdwm.command import StageProgress, unwatched
from fastdwm.errors import RunError


@dataclass(frozen=True)
class Job:
    """A function call to run in another process."""

    name: str
    function: Callable[..., Any]
    """a function at the top level of a module, so that the other process can import it"""
    args: tuple = ()
    """arguments, which are pickled"""
    after: tuple[str, ...] = ()
    """names of the jobs that must succeed before this one starts"""
    work: float = 1
    """expected duration relative to the other jobs, in any unit"""


class Engine(Protocol):
    """Runs jobs. `submit` returns a hashable handle, which only the engine can read."""

    @property
    def slots(self) -> int:
        """Number of jobs that may run at once; it may change while jobs run."""

    def submit(self, job: Job) -> Any:
        """Start the job."""

    def wait(self, handles: Collection[Any], timeout_s: float) -> list[Any]:
        """Handles of the jobs that have ended: at least one, unless the timeout passes."""

    def result(self, handle: Any) -> Any:
        """Return what the function of an ended job returned, or raise its error, or Died. Call it once per job."""

    def cancel(self, handle: Any) -> None:
        """Kill the job."""

    def close(self) -> None:
        """End all processes."""


class Died(RunError):
    """The process of a job ended without a result."""


@dataclass(frozen=True)
class Ended:
    """A job that has succeeded, has failed, or will never start."""

    job: Job
    value: Any = None
    error: BaseException | None = None
    """none: the job succeeded, or never started"""
    started: bool = True


def run_jobs(
    engine: Engine,
    jobs: Sequence[Job],
    on_ended: Callable[[Ended], None],
    on_wait: Callable[[list[str]], None] = lambda running: None,
    period_s: float = 0.5,
) -> None:
    """Run all jobs in their order. If one fails, the jobs that depend on it do not start; all others run.

    on_wait(names of the running jobs): called at least every `period_s`. If a callback raises an error, the running
    jobs are cancelled.
    """
    waiting, running = {job.name: job for job in jobs}, {}
    lost: set[str] = set()
    try:
        while waiting or running:
            for job in _without_hope(waiting, lost):
                on_ended(Ended(job, started=False))
            for job in _ready(waiting, running.values(), engine.slots - len(running)):
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
    """Run independent jobs, the longest first, and close the engine; returns their values by name.

    The first error cancels the other jobs and is raised, with the name of its job in a note.
    finished: names of jobs that an earlier run has finished.   on_progress(work done, total work).
    on_wait: as in `run_jobs`.
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
        run_jobs(engine, sorted(left, key=lambda job: -job.work), on_ended, on_wait)
    return {job.name: values[job.name] for job in left}


def _without_hope(waiting: dict[str, Job], lost: set[str]) -> list[Job]:
    """Remove from `waiting`, and return, the jobs that depend on lost ones; they become lost as well."""
    dropped = []
    for job in list(waiting.values()):
        if lost.intersection(job.after):
            dropped.append(waiting.pop(job.name))
            lost.add(job.name)
    return dropped


def _ready(waiting: dict[str, Job], running: Collection[Job], slots: int) -> list[Job]:
    """The first jobs whose dependencies have ended, at most as many as there are slots."""
    open_jobs = waiting.keys() | {job.name for job in running}
    return [job for job in waiting.values() if not open_jobs.intersection(job.after)][: max(slots, 0)]


def _ended(engine: Engine, handle: Any, job: Job) -> Ended:
    try:
        return Ended(job, engine.result(handle))
    except Exception as error:
        return Ended(job, error=error)
