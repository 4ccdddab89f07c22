"""The settings of the command `tune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastdwm.checks import NOT_NEGATIVE, POSITIVE
from fastdwm.env_config import EnvConfig


@dataclass(frozen=True)
class TuneConfig(EnvConfig):
    """The bundle to tune, the tuning seeds and the duration of the search."""

    bundle: Path | None = None
    """folder of the bundle to tune, into which the choice is written; none: the bundle shipped for the task, of which a
    copy with the choice is saved in OUT"""
    minutes: Annotated[float, POSITIVE] = 10.0
    """duration of the search in minutes; more time gives the better candidates more episodes"""
    episodes: Annotated[int, POSITIVE] = 4
    """episodes of each candidate in the first round; each later round keeps the better half of the candidates and
    doubles their episodes"""
    seed: Annotated[int, NOT_NEGATIVE] = 20_000
    """environment seed of the first episode; episode i uses seed + i. The default starts the tuning seeds, which
    evaluations do not use"""
    max_steps: Annotated[int | None, POSITIVE] = None
    """limit on the environment steps of an episode; none: the simulator's own limit"""
    write: bool = True
    """write the choice into the bundle or its copy; with --no-write it is only printed and saved in the JSON"""
    out: Path = Path("results")
    """folder for the JSON, and for the copy of a shipped bundle"""
    threads: Annotated[int, POSITIVE] = 1
    """CPU threads of torch"""
    device: str = "cpu"
    """device of the imagination: cpu, cuda or cuda:N"""
