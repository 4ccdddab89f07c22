"""The settings of the engines, as flags of the commands that use them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked


@dataclass(frozen=True)
class EngineConfig(Checked):
    """Processes or machines on which jobs run. All settings but `engine` are for Ray."""

    engine: Literal["processes", "ray"] = "processes"
    """run jobs in processes of this machine, or as tasks of a Ray cluster (pip install 'fastdwm[cluster]')"""
    address: str = "local"
    """address of the Ray cluster. local: start one on this machine, on the loopback address alone, and stop it with the
    command; auto: the cluster that runs on this machine; or HOST:PORT"""
    cell_cpus: Annotated[float, POSITIVE] = 1.0
    """CPUs that one job reserves on the cluster"""
    cell_gpus: Annotated[float, NOT_NEGATIVE] = 0.0
    """GPUs that one job reserves; with 0.25, four jobs share one GPU. The jobs need `--device cuda` as well"""
    cell_memory: Annotated[float | None, POSITIVE] = None
    """memory that one job reserves, in GiB; none: reserve no memory"""
    crash_retries: Annotated[int, NOT_NEGATIVE] = 3
    """restarts of a job whose process or machine has died; a job that raises an error is not restarted"""
    ray_dir: Path | None = None
    """folder for the files of a local Ray cluster; none: Ray's default. Its path has to be short"""
