"""bench/gpu.sh --seconds N DIR [--dry-run]: everything that needs a GPU, the most important first, as far as N s reach.

A few checks of everything, the gpu tests, decisions with their peers, an evaluation, rollouts, sweeps, repeatability,
training and a profile. A step takes at most the time that it is given, and one without time left is not begun. It is
interrupted rather than killed, so that what it has measured is kept. DIR gets a log, JSON files and one table.md.

--dry-run does everything but touch a GPU: checks the imports and lists the tests and benchmarks of every step.
Exit status: 0; 1 if a step failed; 2 for wrong arguments, a missing package or no GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any
from xml.etree import ElementTree

from trees import environment

ROOT = Path(__file__).resolve().parent.parent

GRACE_S = 20
"""time from the interrupt of a step to its end, in which pytest-benchmark writes its JSON"""
SHORTEST_S = 10
"""a step that has less time than this is not begun"""

REQUIRED = ("torch", "triton", "numpy", "pytest", "pytest_benchmark", "rich", "safetensors")
WORKERS = 8
"""processes of the gpu tests, which mostly compile kernels, if pytest-xdist is installed"""


@dataclass(frozen=True)
class Step:
    """One command; OUT in it stands for DIR."""

    name: str
    seconds: int
    """the most that it takes"""
    command: tuple[str, ...]
    """arguments of Python"""
    needs: tuple[str, ...] = ()
    """packages without which it is skipped"""

    def dry(self) -> tuple[str, ...]:
        """The command that only lists what would run."""
        return (*self.command, "--collect-only") if "pytest" in self.command else (*self.command, "--help")


SMOKE = ROOT / "tests" / "gpu" / "test_smoke.py"


def tests(name: str, seconds: int, files: list[Path]) -> Step:
    parallel = ("-n", str(WORKERS)) if not absent(("xdist",)) else ()
    command = ("-m", "pytest", *(str(file.relative_to(ROOT)) for file in files), "-m", "gpu", "-q", *parallel)
    return Step(name, seconds, (*command, f"--junitxml=OUT/{name}.xml"))


def bench(name: str, seconds: int, file: str, *flags: str) -> Step:
    command = ("-m", "pytest", f"bench/{file}", "--benchmark-only", "--device", "cuda", "-q", *flags)
    return Step(name, seconds, (*command, f"--benchmark-json=OUT/{name}.json"))


def endurance(name: str, seconds: int, count: int) -> Step:
    return Step(name, seconds, ("bench/endurance.py", name, "--count", str(count), "--json", f"OUT/{name}.json"))


EVALUATION = ("-m", "fastdwm.eval", "hopper-medium", "--episodes", "100", "--device", "cuda", "--out", "OUT")
PROFILE = ("profiles/decisions.py", "--backend", "fused", "--device", "cuda", "--out", "OUT")


def plan() -> list[Step]:
    """All steps, the most important first."""
    # Only files with such tests: the others may need packages that a machine with a GPU lacks.
    files = sorted(p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text() and p != SMOKE)
    return [
        tests("smoke", 120, [SMOKE]),
        tests("tests", 150, files),
        bench("decisions", 100, "test_time_decision.py"),
        Step("evaluation", 80, EVALUATION, needs=("gymnasium", "mujoco", "tyro")),
        bench("rollouts", 90, "test_time_rollout.py", "-k", "gradient and not compile and not jax"),
        # XLA compiles for minutes, in which all the others would wait.
        bench("jax", 80, "test_time_rollout.py", "-k", "gradient and jax"),
        bench("sweep", 150, "test_time_sweep.py"),
        endurance("replays", 60, 1000),
        endurance("updates", 90, 2000),
        Step("profile", 60, PROFILE),
    ]


class Session:
    """The steps, their log and their results."""

    def __init__(self, seconds: float, out: Path, dry: bool):
        self.seconds, self.out, self.dry, self.start = seconds, out, dry, monotonic()
        self.steps, self.rows = plan(), []
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "session.log"
        self.log.write_text("")

    def say(self, line: str) -> None:
        print(line, flush=True)
        with self.log.open("a") as file:
            file.write(line + "\n")

    def run(self) -> int:
        """All steps; 1 if one failed. What was measured is written whatever happens."""
        self.say(f"== {len(self.steps)} steps in {self.seconds:g} s")
        try:
            for step in self.steps:
                self.take(step)
        finally:
            self.write()
        return int(any(row["status"] not in ("ok", "skipped", "no time left") for row in self.rows))

    def take(self, step: Step) -> None:
        """One step, in the time that it is given or that is left."""
        limit_s = min(step.seconds, self.start + self.seconds - GRACE_S - monotonic())
        missing = absent(step.needs)
        if missing or limit_s < SHORTEST_S:
            status, why = ("skipped", f": needs {', '.join(missing)}") if missing else ("no time left", "")
            self.say(f"== {step.name}: {status}{why}")
            self.rows.append({"step": step.name, "status": status, "budget_s": step.seconds})
            return
        command = step.dry() if self.dry else step.command
        command = [sys.executable, *(part.replace("OUT", str(self.out)) for part in command)]
        self.say(f"== {step.name}, {limit_s:.0f} s: {' '.join(command[1:])}")
        start, status = monotonic(), "interrupted"
        try:
            with self.log.open("a") as log:
                status = run_limited(command, limit_s, log)
        finally:
            row = {"step": step.name, "status": status, "budget_s": step.seconds, "s": round(monotonic() - start, 1)}
            self.rows.append(row | self.counts(step))
            self.say(f"== {step.name}: {status} after {row['s']} s")

    def counts(self, step: Step) -> dict[str, int]:
        """Tests, failures, errors and skipped ones, from JUnit's file."""
        file = self.out / f"{step.name}.xml"
        if self.dry or not file.exists():
            return {}
        (suite,) = ElementTree.parse(file).iter("testsuite")
        return {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}

    def write(self) -> None:
        """The steps as JSON, and one table of all results."""
        content = {"title": f"steps in {self.seconds:g} s", "rows": self.rows}
        (self.out / "session.json").write_text(json.dumps(content, indent=1))
        results = [path for path in sorted(self.out.glob("*.json")) if tabular(path)]
        command = [sys.executable, str(ROOT / "bench" / "table.py"), *map(str, results), "--markdown"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        (self.out / "table.md").write_text(done.stdout)
        self.say(done.stdout + done.stderr)


def tabular(path: Path) -> bool:
    """Whether bench/table.py knows the file; a step that was killed leaves an empty one."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return False
    return bool({"benchmarks", "rows"} & content.keys())


def run_limited(command: list[str], limit_s: float, log: Any) -> str:
    """Run in the repository: "ok", "failed (N)" or "out of time"; after `limit_s` it is interrupted, later killed."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment(ROOT), start_new_session=True)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        stop(process)
    return "ok" if code == 0 else f"failed ({code})"


def stop(process: subprocess.Popen) -> None:
    """Interrupt the process and its children if it still runs, kill what is left after GRACE_S."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def absent(names: tuple[str, ...]) -> list[str]:
    """Those that cannot be imported."""
    missing = []
    for name in names:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def obstacle(dry: bool) -> str | None:
    """Why nothing can run here, in one line."""
    missing = absent(REQUIRED)
    if missing:
        return f"cannot import {', '.join(missing)}: install what pyproject.toml lists, extra `test` included"
    import torch

    if not dry and not torch.cuda.is_available():
        return "no GPU: torch sees no CUDA device; nothing was run"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, required=True, metavar="N", help="time for all steps together")
    parser.add_argument("out", type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="do everything but touch a GPU")
    arguments = parser.parse_args()
    reason = obstacle(arguments.dry_run)
    if reason is not None:
        print(f"bench/gpu.sh: {reason}", file=sys.stderr)
        return 2
    # Ended from outside, a step still gets its interrupt, which a shell may have switched off for its background jobs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    return Session(arguments.seconds, arguments.out.resolve(), arguments.dry_run).run()


if __name__ == "__main__":
    raise SystemExit(main())
