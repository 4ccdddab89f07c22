"""bench/gpu.sh without a GPU: plan, imports, listed tests, time limits, kept results."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import HANG_S, run
from processes import until

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import gpu  # noqa: E402

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def call(out: Path, *arguments: str, without: tuple[str, ...] = ()):
    """Run bench/gpu.sh from another folder, with these packages missing."""
    blocked = out / "blocked"
    blocked.mkdir(parents=True)
    (blocked / "sitecustomize.py").write_text(BLOCK.format(names=without))
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), arguments[0], str(out / "results"), *arguments[1:]]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(blocked)}
    return subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, timeout=HANG_S)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Keep steps, which run pytest, from acting as workers of this run of pytest."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)


def statuses(out: Path, name: str) -> dict[str, str]:
    rows = json.loads((out / "results" / f"{name}.json").read_text())["rows"]
    return {row["step"]: row["status"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu.PLANS)
def test_a_dry_run_lists_every_step(name, tmp_path):
    result = call(tmp_path, name, "--dry-run")
    assert result.returncode == 0, result.stdout + (tmp_path / "results" / f"{name}.log").read_text()
    assert statuses(tmp_path, name) == {step.name: "ok" for step in gpu.PLANS[name]()}
    assert "cuda" in (tmp_path / "results" / f"{name}.log").read_text()


@pytest.mark.slow
def test_without_a_simulator_all_but_the_evaluation_runs(tmp_path):
    result = call(tmp_path, "first", "--dry-run", without=("gymnasium", "mujoco", "minari", "tyro", "nvtx"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "evaluation: skipped: needs gymnasium, mujoco, tyro" in result.stdout
    others = {step.name: "ok" for step in gpu.PLANS["first"]() if not step.needs}
    assert statuses(tmp_path, "first") == others | {"evaluation": "skipped"}


def test_missing_packages_are_named_in_one_line(tmp_path, monkeypatch):
    for name in ("pytest_benchmark", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run(ROOT / "bench" / "gpu.py", "first", tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "cannot import pytest_benchmark, safetensors" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path):
    result = run(ROOT / "bench" / "gpu.py", "second", tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "no GPU" in line


@pytest.mark.parametrize("name", gpu.PLANS)
def test_the_budgets_leave_time_to_write_the_results(name):
    assert sum(step.seconds for step in gpu.PLANS[name]()) <= gpu.TOTAL_S - gpu.GRACE_S


def session(monkeypatch, out: Path, *steps: gpu.Step) -> gpu.Session:
    monkeypatch.setitem(gpu.PLANS, "first", lambda: list(steps))
    return gpu.Session("first", out, dry=False)


SLOW_BENCHMARKS = """
import pathlib, time

def test_fast(benchmark):
    benchmark.pedantic(lambda: None, rounds=3)
    benchmark.extra_info["done"] = True

def test_endless():
    pathlib.Path({started!r}).touch()
    time.sleep(1000)
"""


@pytest.fixture
def interruptible():
    """Enable interrupts as the command does; a shell disables them for its background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def out_of_time(tmp_path, monkeypatch):
    """Path of a file with which a step's process ends its own time."""
    file = tmp_path / "started"

    class Impatient(subprocess.Popen):
        def wait(self, timeout=None):
            until(lambda: file.exists() or self.poll() is not None)
            if file.exists():
                file.unlink()
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Impatient)
    monkeypatch.setattr(gpu, "GRACE_S", HANG_S)
    return file


@pytest.mark.usefixtures("interruptible")
def test_a_step_out_of_time_keeps_what_it_measured(out_of_time, monkeypatch, tmp_path):
    (tmp_path / "test_slow.py").write_text(SLOW_BENCHMARKS.format(started=str(out_of_time)))
    file = ("-m", "pytest", str(tmp_path / "test_slow.py"), "-c", os.devnull, "--benchmark-json=OUT/slow.json")
    steps = gpu.Step("slow", 1, file), gpu.Step("next", 1, ("-c", "pass"))
    assert session(monkeypatch, tmp_path, *steps).run() == 1
    rows = json.loads((tmp_path / "first.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["out of time", "ok"]
    (benchmark,) = json.loads((tmp_path / "slow.json").read_text())["benchmarks"]
    assert benchmark["extra_info"] == {"done": True}


def test_a_failed_step_does_not_stop_the_next(monkeypatch, tmp_path):
    content = json.dumps({"title": "numbers", "rows": [{"speed": 0.25}]})
    keep = ("-c", f"import pathlib; pathlib.Path('OUT/numbers.json').write_text({content!r})")
    steps = gpu.Step("bad", 5, ("-c", "raise SystemExit(3)")), gpu.Step("good", 5, keep)
    monkeypatch.setattr(gpu, "TOTAL_S", HANG_S)
    assert session(monkeypatch, tmp_path, *steps).run() == 1
    table = (tmp_path / "table.md").read_text()
    assert "| bad | failed (3) |" in table
    assert "| 0.25 |" in table


@pytest.mark.parametrize("name, count", [("replays", 2), ("updates", 3)])
def test_long_runs_write_their_rows(name, count, tmp_path):
    file = tmp_path / "rows.json"
    done = run(ROOT / "bench" / "endurance.py", name, "--count", count, "--device", "cpu", "--json", file)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    if name == "replays":
        assert {(row["operation"], row["world"]) for row in rows} == {
            (operation, world) for operation in ("rollout gradient", "decision") for world in ("diffusion", "meanflow")
        }
        assert all(row["different"] == 0 and row["replays"] == count for row in rows)
    else:
        assert [row["operation"] for row in rows] == [
            f"{p} updates" for p in ("rebrac", "diffusion", "meanflow", "reward")
        ]
        assert all(row["finite"] and row["updates_per_s"] > 0 for row in rows)


def test_differing_bits_are_counted():
    import endurance

    values = iter([1.0, 1.0, 2.0, float("nan"), 1.0])
    assert endurance.differing(lambda: (torch.tensor([next(values)]), torch.zeros(2)), 4) == 2


@pytest.mark.slow
def test_a_profile_needs_no_simulator(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCK.format(names=("gymnasium", "mujoco", "nvtx")))
    command = [sys.executable, "profiles/decisions.py", "--device", "cpu", "--steps", "1", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{blocked}:{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in json.loads((tmp_path / "profile.json").read_text())["rows"]]
    assert names[0] == "decision" and any(name.startswith("aten::") for name in names)
