"""Run jobs in processes of this machine, one job per process at a time. They end with the process that started them."""

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
    """At most `slots` processes, started when they are first needed.

    When a process is killed, only its job is lost; a pool of the standard library would break as a whole.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []

    def submit(self, job: Job) -> "_Worker":
        # pickle itself copies torch's tensors, which multiprocessing would share.
        content = pickle.dumps((job.function, job.args))
        worker = next((worker for worker in self._idle if worker.process.is_alive()), None)
        self._idle = [other for other in self._idle if other is not worker]
        worker = worker or _Worker()
        self._workers.add(worker)
        # If the worker has died already, `result` reads the end of the pipe.
        with suppress(ConnectionError):
            worker.end.send_bytes(content)
        return worker

    def wait(self, handles: Collection["_Worker"], timeout_s: float) -> list["_Worker"]:
        ready = connection.wait([worker.end for worker in handles], timeout_s)
        return [worker for worker in handles if worker.end in ready]

    def result(self, handle: "_Worker") -> Any:
        try:
            answer = handle.end.recv_bytes()
        # OSError: it died while it sent its answer.
        except (EOFError, OSError):
            handle.process.join()
            self.cancel(handle)
            raise Died(_how_it_ended(handle.process.exitcode)) from None
        succeeded, value = pickle.loads(answer)
        self._idle.append(handle)
        if succeeded:
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
        # Not forked: a fork would lack the threads that torch and other libraries have started.
        context = get_context("spawn")
        self.end, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=False)
        self.process.start()
        # Only the worker keeps its end open, so the pipe ends when the worker dies.
        theirs.close()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"a worker process ended with exit code {code}"
    hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"a worker process was ended by signal {-code} ({signal.strsignal(-code)}{hint})"


def _serve(end: connection.Connection) -> None:
    """Main loop of a worker: receive a job, call its function, send the answer."""
    # Ctrl-C reaches all processes of a terminal; the parent decides what happens to its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError):
        while True:
            function, args = pickle.loads(end.recv_bytes())
            end.send_bytes(_answer(function, args))


def _end_with_parent() -> None:
    """Exit when the parent dies, so that a killed command leaves no processes behind."""
    parent_process().join()
    os._exit(1)


def _answer(function: Callable[..., Any], args: tuple) -> bytes:
    """Pickled (succeeded, value or error) of the call."""
    try:
        return pickle.dumps((True, function(*args)))
    except Exception as error:
        trace = traceback.format_exc()
        error.add_note(trace)
        try:
            answer = pickle.dumps((False, error))
            pickle.loads(answer)
        except Exception:
            return pickle.dumps((False, RuntimeError(trace)))
        return answer
