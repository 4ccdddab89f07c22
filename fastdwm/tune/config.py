"""The settings of the command `tune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked


@dataclass(frozen=True)
class TuneConfig(Checked):
    """What is tuned, on which seeds, for how long."""

    bundle: Path | None = None
    """folder of trained weights, into which the choice is written; none: the one shipped for the task, of which a copy
    with the choice goes to OUT"""
    minutes: Annotated[float, POSITIVE] = 10.0
    """how long to search; more time means more episodes for the better candidates"""
    episodes: Annotated[int, POSITIVE] = 4
    """of each candidate in the first round; every other round, of the better half, has twice as many in all"""
    seed: Annotated[int, NOT_NEGATIVE] = 20_000
    """environment seed of the first episode; episode i uses seed + i: tuning seeds, apart from those of evaluations"""
    max_steps: Annotated[int | None, POSITIVE] = None
    """cut episodes after this many steps; none: the environment's own limit"""
    write: bool = True
    """write the choice into the bundle, or the copy; without, it is only shown and left in the JSON"""
    out: Path = Path("results")
    """folder of the JSON, and of the copy of a shipped bundle"""
    threads: Annotated[int, POSITIVE] = 1
    """CPU threads of torch"""
    device: str = "cpu"
    """where the imagination runs: cpu, cuda or cuda:N"""
    trust_env: bool = False
    """build whatever simulator the bundle names, with any settings: this may run code that came with it"""
