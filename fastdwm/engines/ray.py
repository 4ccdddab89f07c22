"""Tasks of a Ray cluster. Ray itself is imported only when this engine is asked for."""

import os
import socket
from collections.abc import Collection
from types import ModuleType
from typing import Any

from fastdwm.checks import require
from fastdwm.engines.config import EngineConfig
from fastdwm.engines.interface import Died, Job
from fastdwm.errors import InputError, first_line


class Ray:
    """One task per job; what crashes, with its process or its machine, is started again by Ray, what raises is not."""

    def __init__(self, config: EngineConfig, workers: int | None) -> None:
        self._ray = _connect(config, workers)
        self._workers = workers
        needs = {"CPU": config.cell_cpus, "GPU": config.cell_gpus, "memory": (config.cell_memory or 0) * 2**30}
        self._needs = {name: amount for name, amount in needs.items() if amount}
        self._task = self._ray.remote(
            num_cpus=config.cell_cpus,
            num_gpus=config.cell_gpus,
            memory=needs["memory"] or None,
            max_retries=config.crash_retries,
            retry_exceptions=False,
        )(_call)

    @property
    def places(self) -> int:
        """As many as fit into the cluster as it is now, and at least one: Ray may be waiting for machines."""
        if self._workers is not None:
            return self._workers
        there = self._ray.cluster_resources()
        return max(1, min(int(there.get(name, 0) / amount) for name, amount in self._needs.items()))

    def submit(self, job: Job) -> Any:
        return self._task.options(name=job.name).remote(job.function, *job.args)

    def wait(self, handles: Collection[Any], timeout_s: float) -> list[Any]:
        return self._ray.wait(list(handles), num_returns=1, timeout=timeout_s)[0]

    def outcome(self, handle: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(handle)
        except errors.RayTaskError as error:
            error.cause.add_note(str(error))
            raise error.cause from None
        except errors.RayError as error:
            raise Died(first_line(error)) from None

    def cancel(self, handle: Any) -> None:
        self._ray.cancel(handle, force=True)

    def close(self) -> None:
        self._ray.shutdown()


def _connect(config: EngineConfig, workers: int | None) -> ModuleType:
    """Ray, connected to the cluster at the address; InputError where either is missing."""
    # Read when Ray is imported: nothing is reported to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if config.address == "local":
        # Without clusters Ray listens on the loopback address alone (on any system, whatever the name says); with them,
        # on all addresses, and it runs whatever comes.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise InputError("engine: Ray is not installed; pip install 'fastdwm[cluster]'") from None
    _answers(config.address)
    local = {}
    if config.address == "local":
        # Otherwise tasks that a machine kills for memory are started again for ever.
        os.environ.setdefault("RAY_task_oom_retries", str(config.crash_retries))
        local = {"include_dashboard": False, "_temp_dir": config.ray_dir and str(config.ray_dir.absolute())}
        local["num_cpus"] = workers and max(1, round(workers * config.cell_cpus))
    try:
        ray.init(address=config.address, logging_level="ERROR", log_to_driver=False, **local)
    # What it raises depends on what is missing: a cluster, a folder, a short enough name of one.
    except (ConnectionError, ValueError, OSError, RuntimeError) as error:
        raise InputError(f"address: no Ray cluster at {config.address!r} ({first_line(error)})") from None
    return ray


def _answers(address: str) -> None:
    """Raise InputError unless somebody listens at HOST:PORT; Ray itself would try for a minute."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address:
        return
    try:
        require(port.isdecimal(), f"address: expected local, auto or HOST:PORT, got {address!r}")
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"address: no Ray cluster at {address!r} ({first_line(error)})") from None


def _call(function: Any, *args: Any) -> Any:
    return function(*args)
