"""Engines run jobs in other processes: processes of this machine, or tasks of a Ray cluster."""

from fastdwm.engines.config import EngineConfig
from fastdwm.engines.interface import Engine


def start(config: EngineConfig, workers: int | None) -> Engine:
    """Start an engine; the caller closes it.

    workers: jobs that run at once; none: one per CPU of this machine, or as many as fit into the Ray cluster.
    Raises InputError where Ray is not installed or has no cluster at the address.
    """
    if config.engine == "ray":
        from fastdwm.engines.ray import Ray

        return Ray(config, workers)
    from fastdwm.engines.processes import Processes, cpus

    return Processes(workers or cpus())
