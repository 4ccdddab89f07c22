"""Run cases in a worker process with limits on time and memory, and count their outcomes."""

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
"""time for one case, which usually takes a hundredth of a second; a worker without an answer by then hangs"""
START_S = 600.0
LEAST = 100
"""least cases of a kind, so that some are accepted and some refused"""

Make = Callable[[random.Random, Path], tuple[str, bool]]
"""write a case into an empty folder; returns the kind of damage, and whether the case must be refused"""


@dataclass
class Tally:
    """Counts of outcomes. `clean`: refused in one line; `accepted`: loaded, and usable; the others must not happen."""

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
    """Process for all cases, which is replaced when it hangs or dies."""

    def __init__(self):
        self.process = None

    def ask(self, **request) -> dict:
        """Answer of the worker to a request; {"outcome": "hang"} or {"outcome": "traceback"} if there is none."""
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
        """Start the process, whose imports take seconds."""
        if self.process is not None:
            return
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
        # Nothing may be downloaded if a damaged folder is not recognised.
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
    """Numbers of cases, at least `least` and as many as the time allows."""
    end = monotonic() + seconds
    for i in count():
        if i >= least and monotonic() > end:
            return
        yield i


def run(worker: Worker, kind: str, make: Make, seed: int, seconds: float, folder: Path) -> Tally:
    """Run at least LEAST cases of a kind, and as many as the time allows; seed and number determine each case."""
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
