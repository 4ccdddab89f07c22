"""The settings of the engines, as flags of the commands that use them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastdwm.checks import require_choices, require_not_negative, require_positive


@dataclass(frozen=True)
class EngineConfig:
    """Where the cells run. All but `engine` is for Ray."""

    engine: Literal["processes", "ray"] = "processes"
    """processes of this machine, or tasks of Ray (pip install 'fastdwm[cluster]')"""
    address: str = "local"
    """of the Ray cluster: local starts one on this machine for as long as the command runs, which listens on the
    loopback address alone; auto finds the one that runs here, HOST:PORT names one"""
    cell_cpus: float = 1.0
    """CPUs that a cell reserves"""
    cell_gpus: float = 0.0
    """GPUs that a cell reserves, with 0.25 four share one; what runs in it has to be told too, with `--device cuda`"""
    cell_memory: float | None = None
    """memory that a cell reserves, in GiB; none: whatever there is"""
    crash_retries: int = 3
    """times that a cell is started again when its process or machine died; one that failed by itself is not"""
    ray_dir: Path | None = None
    """folder of a local Ray's own files; none: Ray's default"""

    def __post_init__(self) -> None:
        require_choices(self)
        require_positive(self, "cell_cpus", "cell_memory")
        require_not_negative(self, "cell_gpus", "crash_retries")
