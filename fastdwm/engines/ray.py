"""Run jobs as tasks of a Ray cluster. Ray is imported only when this engine is used."""

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
    """One task per job. Ray restarts a task whose process or machine has crashed, but not one that raised an error."""

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
    def slots(self) -> int:
        """Number of jobs that fit into the cluster at present, but at least one: Ray may be waiting for machines."""
        if self._workers is not None:
            return self._workers
        resources = self._ray.cluster_resources()
        return max(1, min(int(resources.get(name, 0) / amount) for name, amount in self._needs.items()))

    def submit(self, job: Job) -> Any:
        return self._task.options(name=job.name).remote(job.function, *job.args)

    def wait(self, handles: Collection[Any], timeout_s: float) -> list[Any]:
        return self._ray.wait(list(handles), num_returns=1, timeout=timeout_s)[0]

    def result(self, handle: Any) -> Any:
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
    """The module ray, connected to the cluster at the address; InputError if Ray or the cluster is missing."""
    # Ray reads it when it is imported, and then sends no usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if config.address == "local":
        # Without multi-node clusters Ray listens on the loopback address alone, on every system; otherwise it listens
        # on all addresses and runs whatever code it receives.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise InputError("engine: Ray is not installed; pip install 'fastdwm[cluster]'") from None
    _check_address(config.address)
    local = {}
    if config.address == "local":
        # By default Ray restarts tasks that were killed for lack of memory without end.
        os.environ.setdefault("RAY_task_oom_retries", str(config.crash_retries))
        local = {"include_dashboard": False, "_temp_dir": config.ray_dir and str(config.ray_dir.absolute())}
        local["num_cpus"] = workers and max(1, round(workers * config.cell_cpus))
    try:
        ray.init(address=config.address, logging_level="ERROR", log_to_driver=False, **local)
    # The type depends on what is missing: a cluster, a folder, or a short enough path.
    except (ConnectionError, ValueError, OSError, RuntimeError) as error:
        raise InputError(f"address: no Ray cluster at {config.address!r} ({first_line(error)})") from None
    return ray


def _check_address(address: str) -> None:
    """Raise InputError unless a process listens at HOST:PORT; Ray itself would try for a minute."""
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
