"""The settings of the engines, as flags of the commands that use them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked


@dataclass(frozen=True)
class EngineConfig(Checked):
    """Where the cells run. All but `engine` is for Ray."""

    engine: Literal["processes", "ray"] = "processes"
    """processes of this machine, or tasks of Ray (pip install 'fastdwm[cluster]')"""
    address: str = "local"
    """of the Ray cluster: local starts one on this machine for as long as the command runs, which listens on the
    loopback address alone; auto finds the one that runs here, HOST:PORT names one"""
    cell_cpus: Annotated[float, POSITIVE] = 1.0
    """CPUs that a cell reserves"""
    cell_gpus: Annotated[float, NOT_NEGATIVE] = 0.0
    """GPUs that a cell reserves, with 0.25 four share one; what runs in it has to be told too, with `--device cuda`"""
    cell_memory: Annotated[float | None, POSITIVE] = None
    """memory that a cell reserves, in GiB; none: whatever there is"""
    crash_retries: Annotated[int, NOT_NEGATIVE] = 3
    """times that a cell is started again when its process or machine died; one that failed by itself is not"""
    ray_dir: Path | None = None
    """folder of a local Ray's own files; none: Ray's default"""
