"""bench/gpu.sh first|second DIR [--dry-run]: run everything that needs a GPU, in two calls of nine minutes each.

The first call runs the gpu tests, decisions with their peers and an evaluation; the second runs sweeps, repeatability,
training and a profile. Every step has its own time plus what earlier steps left over, and is interrupted rather than
killed, so that its measurements are kept. DIR gets a log, JSON files and one table.md.

--dry-run uses no GPU: it checks the imports and lists the tests and benchmarks of every step.
Exit status: 0; 1 if a step failed; 2 for wrong arguments, a missing package or no GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any
from xml.etree import ElementTree

from trees import environment

ROOT = Path(__file__).resolve().parent.parent

TOTAL_S = 540
GRACE_S = 20
"""time from the interrupt of a step to its end, in which pytest-benchmark writes its JSON"""

REQUIRED = ("torch", "triton", "numba", "numpy", "pytest", "pytest_benchmark", "rich", "safetensors")
WORKERS = 8
"""processes of the gpu tests, which mostly compile kernels, if pytest-xdist is installed"""


@dataclass(frozen=True)
class Step:
    """One command; OUT in it stands for DIR."""

    name: str
    seconds: int
    """share of TOTAL_S"""
    command: tuple[str, ...]
    """arguments of Python"""
    needs: tuple[str, ...] = ()
    """packages without which it is skipped"""

    def dry(self) -> tuple[str, ...]:
        """Command that only lists the tests, or prints the help."""
        return (*self.command, "--collect-only") if "pytest" in self.command else (*self.command, "--help")


def tests() -> Step:
    # Other test files may need packages that a machine with a GPU lacks.
    files = sorted(p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text())
    parallel = ("-n", str(WORKERS)) if not absent(("xdist",)) else ()
    command = ("-m", "pytest", *(str(p.relative_to(ROOT)) for p in files), "-m", "gpu", "-q", *parallel)
    return Step("tests", 190, (*command, "--junitxml=OUT/tests.xml"))


def bench(name: str, seconds: int, file: str, *flags: str) -> Step:
    command = ("-m", "pytest", f"bench/{file}", "--benchmark-only", "--device", "cuda", "-q", *flags)
    return Step(name, seconds, (*command, f"--benchmark-json=OUT/{name}.json"))


def endurance(name: str, seconds: int, count: int) -> Step:
    return Step(name, seconds, ("bench/endurance.py", name, "--count", str(count), "--json", f"OUT/{name}.json"))


EVALUATION = ("-m", "fastdwm.eval", "hopper-medium", "--episodes", "100", "--device", "cuda", "--out", "OUT")
PROFILE = ("profiles/decisions.py", "--backend", "fused", "--device", "cuda", "--out", "OUT")

PLANS: dict[str, Callable[[], list[Step]]] = {
    "first": lambda: [
        tests(),
        bench("decisions", 120, "test_time_decision.py"),
        Step("evaluation", 100, EVALUATION, needs=("gymnasium", "mujoco", "tyro")),
        bench("rollouts", 110, "test_time_rollout.py", "-k", "gradient and not compile"),
    ],
    "second": lambda: [
        bench("sweep", 230, "test_time_sweep.py"),
        endurance("replays", 80, 1000),
        endurance("updates", 120, 2000),
        Step("profile", 80, PROFILE),
    ],
}


class Session:
    """The steps of one call, their log and their results."""

    def __init__(self, name: str, out: Path, dry: bool):
        self.name, self.out, self.dry, self.start = name, out, dry, monotonic()
        self.steps, self.rows = PLANS[name](), []
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / f"{name}.log"
        self.log.write_text("")

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self.log.open("a") as file:
            file.write(line + "\n")

    def run(self) -> int:
        """Run all steps and write all measurements, also after an error; returns 1 if a step failed."""
        reserved = sum(step.seconds for step in self.steps)
        self.say(f"== {self.name}: {len(self.steps)} steps, {reserved} of {TOTAL_S} s")
        try:
            for step in self.steps:
                reserved -= step.seconds
                self.take(step, TOTAL_S - GRACE_S - reserved - (monotonic() - self.start))
        finally:
            self.write()
        return int(any(row["status"] not in ("ok", "skipped") for row in self.rows))

    def take(self, step: Step, limit_s: float) -> None:
        """Run one step in at most `limit_s` seconds."""
        missing = absent(step.needs)
        if missing:
            self.say(f"== {step.name}: skipped: needs {', '.join(missing)}")
            self.rows.append({"step": step.name, "status": "skipped", "budget_s": step.seconds})
            return
        command = step.dry() if self.dry else step.command
        command = [sys.executable, *(part.replace("OUT", str(self.out)) for part in command)]
        self.say(f"== {step.name}, {step.seconds} s: {' '.join(command[1:])}")
        start, status = monotonic(), "interrupted"
        try:
            with self.log.open("a") as log:
                status = run_limited(command, limit_s, log)
        finally:
            row = {"step": step.name, "status": status, "budget_s": step.seconds, "s": round(monotonic() - start, 1)}
            self.rows.append(row | self.counts(step))
            self.say(f"== {step.name}: {status} after {row['s']} s")

    def counts(self, step: Step) -> dict[str, int]:
        """Numbers of tests, failures, errors and skipped tests, from JUnit's file."""
        file = self.out / f"{step.name}.xml"
        if self.dry or not file.exists():
            return {}
        (suite,) = ElementTree.parse(file).iter("testsuite")
        return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}

    def write(self) -> None:
        """Write the steps as JSON, and one table of all results."""
        content = {"title": f"steps of {self.name}", "rows": self.rows}
        (self.out / f"{self.name}.json").write_text(json.dumps(content, indent=1))
        results = [path for path in sorted(self.out.glob("*.json")) if tabular(path)]
        command = [sys.executable, str(ROOT / "bench" / "table.py"), *map(str, results), "--markdown"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(ROOT))
        (self.out / "table.md").write_text(done.stdout)
        self.say(done.stdout + done.stderr)


def tabular(path: Path) -> bool:
    """Whether bench/table.py can read the file; a killed step leaves an empty one."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return bool({"benchmarks", "rows"} & content.keys())


def run_limited(command: list[str], limit_s: float, log: Any) -> str:
    """Run in the repository, interrupt after `limit_s`; returns "ok", "failed (N)" or "out of time"."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment(ROOT), start_new_session=True)
    try:
        code = process.wait(max(limit_s, 1))
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        stop(process)
    return "ok" if code == 0 else f"failed ({code})"


def stop(process: subprocess.Popen) -> None:
    """Interrupt the process and its children if it still runs, and kill them after GRACE_S."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def absent(names: tuple[str, ...]) -> list[str]:
    """Packages that cannot be imported."""
    missing = []
    for name in names:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def obstacle(dry: bool) -> str | None:
    """Reason why nothing can run here, in one line; none if it can."""
    missing = absent(REQUIRED)
    if missing:
        return f"cannot import {', '.join(missing)}: install what pyproject.toml lists, extra `test` included"
    import torch

    if not dry and not torch.cuda.is_available():
        return "no GPU: torch sees no CUDA device; nothing was run"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("call", choices=tuple(PLANS))
    parser.add_argument("out", type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="use no GPU, and list the steps' tests and benchmarks")
    args = parser.parse_args()
    reason = obstacle(args.dry_run)
    if reason is not None:
        print(f"bench/gpu.sh: {reason}", file=sys.stderr)
        return 2
    # A shell may have disabled interrupts for its background jobs; the steps need them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    return Session(args.call, args.out.resolve(), args.dry_run).run()


if __name__ == "__main__":
    raise SystemExit(main())
