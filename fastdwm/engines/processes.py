"""Processes of this machine, each with one job at a time. They end with the process that started them."""

import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from typing import Any

from fastdwm.engines.interface import Died, Job


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


class Processes:
    """At most `places` processes, started when they are first needed.

    A pool of the standard library is lost as a whole when one of its processes is killed; here only that job is.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []

    def submit(self, job: Job) -> "_Worker":
        # By pickle itself: torch's tensors, which multiprocessing would share, are copied.
        content = pickle.dumps((job.function, job.args))
        worker = next((worker for worker in self._idle if worker.process.is_alive()), None)
        self._idle = [other for other in self._idle if other is not worker]
        worker = worker or _Worker()
        self._workers.add(worker)
        # From a worker that has died already, `outcome` finds the pipe at its end.
        with suppress(ConnectionError):
            worker.end.send_bytes(content)
        return worker

    def wait(self, handles: Collection["_Worker"], timeout_s: float) -> list["_Worker"]:
        ready = connection.wait([worker.end for worker in handles], timeout_s)
        return [worker for worker in handles if worker.end in ready]

    def outcome(self, handle: "_Worker") -> Any:
        try:
            answer = handle.end.recv_bytes()
        # OSError: it died in the middle of its answer.
        except (EOFError, OSError):
            handle.process.join()
            self.cancel(handle)
            raise Died(_how_it_ended(handle.process.exitcode)) from None
        well, value = pickle.loads(answer)
        self._idle.append(handle)
        if well:
            return value
        raise value

    def cancel(self, handle: "_Worker") -> None:
        self._workers.discard(handle)
        handle.process.kill()
        handle.process.join()
        handle.end.close()

    def close(self) -> None:
        for worker in list(self._workers):
            self.cancel(worker)


class _Worker:
    """A process and our end of the pipe to it."""

    def __init__(self) -> None:
        # Not forked: threads that torch or others have started would be gone there.
        context = get_context("spawn")
        self.end, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=False)
        self.process.start()
        # With the only copy in the worker, its death ends the pipe.
        theirs.close()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"a worker process ended with exit code {code}"
    hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"a worker process was ended by signal {-code} ({signal.strsignal(-code)}{hint})"


def _serve(end: connection.Connection) -> None:
    """What a worker does: one job after another."""
    # Ctrl-C reaches all processes of a terminal; here the parent says what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError):
        while True:
            function, args = pickle.loads(end.recv_bytes())
            end.send_bytes(_answer(function, args))


def _end_with_parent() -> None:
    """A killed command leaves no process behind that would slow down the one that takes its work up."""
    parent_process().join()
    os._exit(1)


def _answer(function: Callable[..., Any], args: tuple) -> bytes:
    """Whether the call ended well, and its value or error, pickled."""
    try:
        return pickle.dumps((True, function(*args)))
    except Exception as error:
        told = traceback.format_exc()
        error.add_note(told)
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)
        except Exception:
            return pickle.dumps((False, RuntimeError(told)))
        return answer
