"""Runs what is missing of a sweep, and tells how it goes."""

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
from fastdwm.engines.interface import Died, Ended, Job, run
from fastdwm.errors import first_line
from fastdwm.files import write_json
from fastdwm.jobs.sweep import one_machine
from fastdwm.sweep.estimates import Estimates
from fastdwm.sweep.job import CellFailed, CellKilled, Work, run_cell
from fastdwm.sweep.plan import Plan
from fastdwm.sweep.stages import Cell

LOG_LINES = 8


class Sweep:
    """A plan that is being carried out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.finished = dict(plan.finished)
        self.failed = dict(plan.failed)
        self._estimates = Estimates(plan.finished.values())
        self._todo = {cell.name: cell for cell in plan.todo}
        self._started: dict[str, float] = {}
        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)

    def run(self) -> None:
        """Run what is missing; a cell that fails is told and recorded, and the others go on."""
        jobs = [Job(cell.name, run_cell, (self._work(cell),), self.plan.after(cell)) for cell in self._todo.values()]
        for folder in ("cells", "failed", "logs", "bundles"):
            (self.plan.folders.out / folder).mkdir(exist_ok=True)
        if not jobs:
            return
        with contextlib.closing(engines.start(self.plan.config, self.plan.config.workers)) as engine:
            self._console.print(f"{len(jobs)} of {len(self.plan.cells)} cells to run, {engine.places} at once")
            with self._live() as show:
                run(engine, jobs, self._on_ended, lambda running: show(running, engine.places))

    def status(self, cell: Cell) -> str:
        """`finished`, `failed` or `not run`."""
        if cell.name in self.finished:
            return "finished"
        return "failed" if cell.name in self.failed else "not run"

    def _work(self, cell: Cell) -> Work:
        plan = self.plan
        bundle = plan.folders.bundle(cell, plan.source(cell))
        known = plan.commands(cell), plan.identity(cell)
        return Work(cell, plan.config, plan.folders, bundle, *known, cwd=Path.cwd())

    def _on_ended(self, ended: Ended) -> None:
        name = ended.job.name
        cell = self._todo.pop(name)
        if not ended.started:
            self._say(f"{name}: not run, what it needs has not finished")
        elif ended.error is None:
            self.finished[name] = ended.value
            self._estimates.add(ended.value)
            (self.plan.folders.out / "failed" / f"{name}.json").unlink(missing_ok=True)
            self._say(f"{name}: finished in {clock(ended.value['wall_s'])}; {self._counts()}")
        elif isinstance(ended.error, Died | CellKilled):
            self._say(f"{name}: not run: {_reason(ended.error)}; give the same command again; {self._counts()}")
        else:
            self.failed[name] = failure = self._failure(cell, ended.error)
            self._say(f"{name}: failed: {failure['error']}; {self._counts()}", *failure["log"])
            # Where the disk is full there is no room for this either; then the cell simply is not finished.
            with contextlib.suppress(OSError):
                write_json(self.plan.folders.out / "failed" / f"{name}.json", failure)

    def _failure(self, cell: Cell, error: BaseException) -> dict[str, Any]:
        log = self._work(cell).log
        tail = last_lines(log) if log.exists() else []
        return {"error": _reason(error), "log": tail, "file": str(log), "identity": self.plan.identity(cell)}

    def _counts(self) -> str:
        counts = Counter(self.status(cell) for cell in self.plan.cells)
        return f"{counts['finished']} of {len(self.plan.cells)} cells done, {counts['failed']} failed"

    @contextlib.contextmanager
    def _live(self) -> Iterator[Any]:
        """Yields show(running, places): one line that changes on a terminal, nothing in a log."""
        with self._console.status("") as status:

            def show(running: list[str], places: int) -> None:
                now = time.monotonic()
                self._started = {name: self._started.get(name, now) for name in running}
                status.update(f"{self._counts()}, {len(running)} running, {clock(self._left(now, places))} left")

            yield show

    def _left(self, now: float, places: int) -> float:
        """Seconds until the sweep ends, the elapsed part of the running cells taken off."""
        elapsed = sum(
            min(now - start, self._estimates.seconds(self._todo[name].stage)) for name, start in self._started.items()
        )
        return max(self._estimates.duration(self._todo.values(), places) - elapsed / places, 0.0)

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._console.print(line)


def _reason(error: BaseException) -> str:
    """One line; without the type of the error where that is known."""
    line = first_line(error)
    return line.partition(": ")[2] if isinstance(error, CellFailed | Died) else line


def last_lines(path: Path, most: int = LOG_LINES) -> list[str]:
    """The end of a log, in printable characters."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 16_384, 0))
        text = file.read().decode(errors="replace")
    lines = ["".join(c if c.isprintable() else " " for c in line).rstrip() for line in text.splitlines()]
    return [line for line in lines if line][-most:]


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:20:02."""
    return str(timedelta(seconds=round(seconds)))


def summary(sweep: Sweep, about: dict[str, Any]) -> dict[str, Any]:
    """sweep.json."""
    cells = [
        dataclasses.asdict(cell)
        | {"name": cell.name, "status": sweep.status(cell)}
        | {name: sweep.finished.get(cell.name, {}).get(name) for name in ("wall_s", "peak_memory_mb")}
        | {"error": sweep.failed.get(cell.name, {}).get("error")}
        for cell in sweep.plan.cells
    ]
    timed = [record for record in sweep.finished.values() if record["stage"] == "eval"]
    machines = {"one_machine": one_machine(timed)}
    return {**about, "config": dataclasses.asdict(sweep.plan.config), **machines, "cells": cells}
