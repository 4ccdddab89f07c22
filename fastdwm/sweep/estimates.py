"""How long the cells of a sweep take and how much memory they need: told from those that have finished."""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from fastdwm.sweep.stages import TUNE_MINUTES, Cell

# Seconds and MB of a cell on one core of a server of 2023, with the settings that a stage has by itself.
GUESSES = {"collect": (150, 700), "train": (1200, 1500), "tune": (60 * TUNE_MINUTES, 700), "eval": (300, 700)}


class Estimates:
    """Seconds and MB per stage; a guess until one cell of the stage has finished."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._seconds: dict[str, list[float]] = {}
        self._memory: dict[str, list[float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Learn from a finished cell."""
        for known, name in ((self._seconds, "wall_s"), (self._memory, "peak_memory_mb")):
            known.setdefault(record["stage"], []).extend([record[name]] if name in record else [])

    def seconds(self, stage: str) -> float:
        return median(self._seconds.get(stage) or [GUESSES[stage][0]])

    def memory_mb(self, stage: str) -> float:
        return max(self._memory.get(stage) or [GUESSES[stage][1]])

    def duration(self, cells: Iterable[Cell], places: int) -> float:
        """Seconds until all have ended: no less than the longest chain, no less than the work shared out."""
        chains: dict[str, float] = {}
        for cell in cells:
            chains[cell.run] = chains.get(cell.run, 0.0) + self.seconds(cell.stage)
        return max(sum(chains.values()) / places, max(chains.values(), default=0.0))
