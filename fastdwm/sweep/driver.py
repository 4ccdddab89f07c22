"""Run the missing jobs of a sweep and report progress."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from fastdwm import engines
from fastdwm.engines.interface import Died, Ended, Job, run_jobs
from fastdwm.errors import first_line
from fastdwm.files import write_json
from fastdwm.jobs.sweep import one_machine
from fastdwm.sweep.estimates import Estimates
from fastdwm.sweep.job import JobContext, JobFailed, JobKilled, run_job
from fastdwm.sweep.plan import Plan
from fastdwm.sweep.stages import SweepJob

LOG_LINES = 8


class Sweep:
    """The running of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.finished = dict(plan.finished)
        self.failed = dict(plan.failed)
        self._estimates = Estimates.of(plan)
        self._todo = {job.name: job for job in plan.todo}
        self._started: dict[str, float] = {}
        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)

    def run(self) -> None:
        """Run the missing jobs. A job that fails is reported and recorded, and the others continue."""
        jobs = [Job(job.name, run_job, (self._context(job),), self.plan.after(job)) for job in self._todo.values()]
        for folder in ("cells", "failed", "logs", "bundles"):
            (self.plan.folders.out / folder).mkdir(exist_ok=True)
        if not jobs:
            return
        with contextlib.closing(engines.start(self.plan.config, self.plan.config.workers)) as engine:
            self._console.print(f"{len(jobs)} of {len(self.plan.jobs)} jobs to run, {engine.slots} at once")
            with self._live() as show:
                run_jobs(engine, jobs, self._on_ended, lambda running: show(running, engine.slots))

    def status(self, job: SweepJob) -> str:
        """`finished`, `failed` or `not run`."""
        if job.name in self.finished:
            return "finished"
        return "failed" if job.name in self.failed else "not run"

    def _context(self, job: SweepJob) -> JobContext:
        plan = self.plan
        bundle = plan.folders.bundle(job, plan.source(job))
        return JobContext(
            job, plan.config, plan.folders, bundle, plan.commands(job), plan.identity(job), cwd=Path.cwd()
        )

    def _on_ended(self, ended: Ended) -> None:
        name = ended.job.name
        job = self._todo.pop(name)
        if not ended.started:
            self._say(f"{name}: not run, a job that it depends on has not finished")
        elif ended.error is None:
            self.finished[name] = ended.value
            self._estimates.add(ended.value)
            (self.plan.folders.out / "failed" / f"{name}.json").unlink(missing_ok=True)
            self._say(f"{name}: finished in {clock(ended.value['wall_s'])}; {self._counts()}")
        elif isinstance(ended.error, Died | JobKilled):
            self._say(f"{name}: not run: {_reason(ended.error)}; give the same command again; {self._counts()}")
        else:
            self.failed[name] = failure = self._failure(job, ended.error)
            self._say(f"{name}: failed: {failure['error']}; {self._counts()}", *failure["log"])
            # On a full disk this fails too; the job then counts as not run.
            with contextlib.suppress(OSError):
                write_json(self.plan.folders.out / "failed" / f"{name}.json", failure)

    def _failure(self, job: SweepJob, error: BaseException) -> dict[str, Any]:
        log = self._context(job).log
        tail = last_lines(log) if log.exists() else []
        return {"error": _reason(error), "log": tail, "file": str(log), "identity": self.plan.identity(job)}

    def _counts(self) -> str:
        counts = Counter(self.status(job) for job in self.plan.jobs)
        return f"{counts['finished']} of {len(self.plan.jobs)} jobs done, {counts['failed']} failed"

    @contextlib.contextmanager
    def _live(self) -> Iterator[Any]:
        """Yield show(running, slots), which updates a status line on a terminal and prints nothing to a log."""
        with self._console.status("") as status:

            def show(running: list[str], slots: int) -> None:
                now = time.monotonic()
                self._started = {name: self._started.get(name, now) for name in running}
                status.update(f"{self._counts()}, {len(running)} running, {clock(self._left(now, slots))} left")

            yield show

    def _left(self, now: float, slots: int) -> float:
        """Estimated seconds until the sweep ends, without the elapsed part of the running jobs."""
        elapsed = sum(
            min(now - start, self._estimates.seconds(self._todo[name].stage)) for name, start in self._started.items()
        )
        return max(self._estimates.duration(self._todo.values(), slots) - elapsed / slots, 0.0)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._console.print(line)


def _reason(error: BaseException) -> str:
    """The error in one line; without its type for JobFailed and Died."""
    line = first_line(error)
    return line.partition(": ")[2] if isinstance(error, JobFailed | Died) else line


def last_lines(path: Path, most: int = LOG_LINES) -> list[str]:
    """The last lines of a log that are not empty; characters that cannot be printed become spaces."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 16_384, 0))
        text = file.read().decode(errors="replace")
    lines = ["".join(c if c.isprintable() else " " for c in line).rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-most:]


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:20:02."""
    return str(timedelta(seconds=round(seconds)))


def summary(sweep: Sweep, about: dict[str, Any]) -> dict[str, Any]:
    """Content of sweep.json."""
    jobs = [
        dataclasses.asdict(job)
        | {"name": job.name, "status": sweep.status(job)}
        | {name: sweep.finished.get(job.name, {}).get(name) for name in ("wall_s", "peak_memory_mb")}
        | {"error": sweep.failed.get(job.name, {}).get("error")}
        for job in sweep.plan.jobs
    ]
    timed = [record for record in sweep.finished.values() if record["stage"] == "eval"]
    machines = {"one_machine": one_machine(timed)}
    return {**about, "config": dataclasses.asdict(sweep.plan.config), **machines, "cells": jobs}
