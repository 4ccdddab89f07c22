"""What runs jobs beside the command that asked for them: processes of this machine, or tasks of a Ray cluster."""

from fastdwm.engines.config import EngineConfig
from fastdwm.engines.interface import Engine


def start(config: EngineConfig, workers: int | None) -> Engine:
    """The engine, ready for jobs; to be closed.

    workers: jobs at once; none: as many as this machine has CPUs, or as the Ray cluster has room for.
    Raises InputError where Ray is not installed or has no cluster at the address.
    """
    if config.engine == "ray":
        from fastdwm.engines.ray import Ray

        return Ray(config, workers)
    from fastdwm.engines.processes import Processes, cpus

    return Processes(workers or cpus())
