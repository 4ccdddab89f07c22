"""Estimate time and memory of a sweep's jobs from those that have finished."""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from fastdwm.sweep.stages import TUNE_MINUTES, SweepJob

# Seconds and MB of a job on one core of a server from 2023, with the default settings of its stage.
GUESSES = {"collect": (150, 700), "train": (1200, 1500), "tune": (60 * TUNE_MINUTES, 700), "eval": (300, 700)}


class Estimates:
    """Seconds and MB per stage; a guess until one job of the stage has finished."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._memory: dict[str, list[float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Include a finished job."""
        for samples, name in ((self._seconds, "wall_s"), (self._memory, "peak_memory_mb")):
            samples.setdefault(record["stage"], []).extend([record[name]] if name in record else [])

    def seconds(self, stage: str) -> float:
        return median(self._seconds.get(stage) or [GUESSES[stage][0]])

    def memory_mb(self, stage: str) -> float:
        return max(self._memory.get(stage) or [GUESSES[stage][1]])

    def duration(self, jobs: Iterable[SweepJob], slots: int) -> float:
        """Seconds until all jobs have ended: their sum over the slots, but at least the longest training's sequence."""
        sequences: dict[str, float] = {}
        for job in jobs:
            sequences[job.training] = sequences.get(job.training, 0.0) + self.seconds(job.stage)
        return max(sum(sequences.values()) / slots, max(sequences.values(), default=0.0))
