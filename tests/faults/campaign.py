"""Case after case to a worker process with limits on time and memory, and what became of them."""

import json
import os
import random
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic

LIMIT_S = 120.0
"""for one case, which takes a hundredth of a second: what has not answered by then hangs, however slow the machine"""
START_S = 600.0
LEAST = 100
"""cases of a kind, so that some are good and some are bad"""

Make = Callable[[random.Random, Path], tuple[str, bool]]
"""writes a case into an empty folder; returns what was done, and whether the case must be refused"""


@dataclass
class Tally:
    """`clean`: refused in one line; `accepted`: loaded, and usable; the others must not happen."""

    counts: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    kinds: Counter = field(default_factory=Counter)

    def add(self, case: str, outcome: str, detail: str) -> None:
        self.counts[outcome] += 1
        if outcome not in ("clean", "accepted"):
            self.failures.append(f"{case}: {outcome}: {detail}")

    def __str__(self) -> str:
        names = ("clean", "accepted", "traceback", "hang", "wrongly accepted", "control characters")
        return f"{self.counts.total()} cases: " + ", ".join(f"{self.counts[name]} {name}" for name in names)


class Worker:
    """One process for all cases; another takes its place when it hangs or dies."""

    def __init__(self):
        self.process = None

    def ask(self, **request) -> dict:
        """What the worker says of a request; {"outcome": "hang"} or {"outcome": "traceback"} if it says nothing."""
        self.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            return self._answer(request.get("limit_s", LIMIT_S))
        except (OSError, ValueError):
            code = self.process.wait(5)
            self.close()
            return {"outcome": "traceback", "detail": f"the process died ({code})"}

    def start(self) -> None:
        """Have the process ready; it takes seconds to import what it needs."""
        if self.process is not None:
            return
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
        # Where a damaged folder is taken for none, nothing is to be downloaded.
        nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "MINARI_DATASETS_PATH": ""}
        env = os.environ | nowhere | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        argv, pipe = [sys.executable, str(Path(__file__).with_name("worker.py"))], subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env)
        assert self._answer(START_S) == {"outcome": "ready"}

    def _answer(self, limit_s: float) -> dict:
        if not select.select([self.process.stdout], [], [], limit_s)[0]:
            self.close()
            return {"outcome": "hang", "detail": f"no answer in {limit_s} s"}
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def cases(seconds: float, least: int) -> Iterator[int]:
    """Numbers, as long as there is time; at least so many."""
    end = monotonic() + seconds
    for i in count():
        if i >= least and monotonic() > end:
            return
        yield i


def run(worker: Worker, kind: str, make: Make, seed: int, seconds: float, folder: Path) -> Tally:
    """Run LEAST cases of a kind that the worker knows, and more as long as there is time.

    Each follows from seed and number alone.
    """
    tally = Tally()
    for i in cases(seconds, LEAST):
        place = folder / "case"
        place.mkdir()
        name, must_refuse = make(random.Random(f"{seed}-{kind}-{i}"), place)
        answer = worker.ask(kind=kind, path=str(place))
        outcome = answer["outcome"]
        if outcome == "accepted" and must_refuse:
            outcome = "wrongly accepted"
        tally.kinds[name] += 1
        tally.add(f"seed {seed}, case {i} ({name})", outcome, answer.get("detail", ""))
        shutil.rmtree(place)
    return tally
