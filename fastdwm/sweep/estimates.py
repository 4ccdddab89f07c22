"""Estimate time and memory of a sweep's jobs from those that have finished."""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from fastdwm.sweep.budgets import seconds_of
from fastdwm.sweep.plan import Plan
from fastdwm.sweep.stages import SweepJob

MEMORY_MB = {"collect": 700, "train": 1500, "tune": 700, "eval": 700}
"""memory of a job with the default settings of its stage"""


class Estimates:
    """Seconds and MB per stage; a guess from the flags until one job of the stage has finished."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = (), guesses: Mapping[str, float] | None = None) -> None:
        """guesses: seconds by stage."""
        self._guesses = guesses or {}
        self._seconds: dict[str, list[float]] = {}
        self._memory: dict[str, list[float]] = {}
        for record in records:
            self.add(record)

    @classmethod
    def of(cls, plan: Plan) -> "Estimates":
        """The estimates for the jobs of a plan; raises InputError for flags that a command refuses."""
        firsts = {job.stage: job for job in reversed(plan.jobs)}
        guesses = {stage: sum(map(seconds_of, plan.commands(job))) for stage, job in firsts.items()}
        return cls(plan.finished.values(), guesses)

    def add(self, record: Mapping[str, Any]) -> None:
        """Include a finished job."""
        for samples, name in ((self._seconds, "wall_s"), (self._memory, "peak_memory_mb")):
            samples.setdefault(record["stage"], []).extend([record[name]] if name in record else [])

    def seconds(self, stage: str) -> float:
        return median(self._seconds.get(stage) or [self._guesses.get(stage, 0.0)])

    def memory_mb(self, stage: str) -> float:
        return max(self._memory.get(stage) or [MEMORY_MB[stage]])

    def duration(self, jobs: Iterable[SweepJob], slots: int) -> float:
        """Seconds until all jobs have ended: their sum over the slots, but at least the longest training's sequence."""
        sequences: dict[str, float] = {}
        for job in jobs:
            sequences[job.training] = sequences.get(job.training, 0.0) + self.seconds(job.stage)
        return max(sum(sequences.values()) / slots, max(sequences.values(), default=0.0))
