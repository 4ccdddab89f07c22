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
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), "--seconds", "600", str(out / "results"), *arguments]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(blocked)}
    return subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True, timeout=HANG_S)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Keep steps, which run pytest, from acting as workers of this run of pytest."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)


def statuses(out: Path) -> dict[str, str]:
    rows = json.loads((out / "session.json").read_text())["rows"]
    return {row["step"]: row["status"] for row in rows}


NAMES = [step.name for step in gpu.plan()]


@pytest.mark.slow
def test_a_dry_run_lists_every_step(tmp_path):
    result = call(tmp_path, "--dry-run")
    log = (tmp_path / "results" / "session.log").read_text()
    assert result.returncode == 0, result.stdout + log
    assert statuses(tmp_path / "results") == dict.fromkeys(NAMES, "ok")
    assert (
        "test_noise_is_the_reference[cuda]" in log and "rollout_gradient[diffusion-B1-M64-K10-H5-D256-cuda-jax]" in log
    )


@pytest.mark.slow
def test_what_a_bare_machine_lacks_is_needed_by_the_evaluation_alone(tmp_path):
    result = call(tmp_path, "--dry-run", without=("gymnasium", "mujoco", "minari", "tyro", "nvtx", "numba", "jax"))
    assert result.returncode == 0, result.stdout + (tmp_path / "results" / "session.log").read_text()
    assert "evaluation: skipped: needs gymnasium, mujoco, tyro" in result.stdout
    assert statuses(tmp_path / "results") == dict.fromkeys(NAMES, "ok") | {"evaluation": "skipped"}


def test_the_most_important_steps_come_first():
    assert NAMES[:4] == ["smoke", "tests", "decisions", "evaluation"]


def test_without_git_the_commit_is_unknown(monkeypatch):
    import provenance

    monkeypatch.setenv("PATH", "")
    assert provenance.git("rev-parse", "HEAD") is None


def test_missing_packages_are_named_in_one_line(tmp_path, monkeypatch):
    for name in ("pytest_benchmark", "safetensors"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run(ROOT / "bench" / "gpu.py", "--seconds", 600, tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "cannot import pytest_benchmark, safetensors" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path):
    result = run(ROOT / "bench" / "gpu.py", "--seconds", 600, tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "no GPU" in line


def session(monkeypatch, out: Path, *steps: gpu.Step, seconds: float = HANG_S) -> gpu.Session:
    monkeypatch.setattr(gpu, "plan", lambda: list(steps))
    return gpu.Session(seconds, out, dry=False)


def test_a_step_without_time_left_is_not_begun(monkeypatch, tmp_path):
    steps = [gpu.Step(name, 5, ("-c", "raise SystemExit(1)")) for name in ("first", "second")]
    assert session(monkeypatch, tmp_path, *steps, seconds=gpu.GRACE_S).run() == 0
    assert statuses(tmp_path) == dict.fromkeys(["first", "second"], "no time left")


def test_a_step_takes_no_more_than_its_time_and_what_is_left(monkeypatch, tmp_path):
    limits = []
    monkeypatch.setattr(gpu, "run_limited", lambda command, limit_s, log: limits.append(limit_s) or "ok")
    monkeypatch.setattr(gpu, "monotonic", lambda: 0.0)
    steps = [gpu.Step(str(seconds), seconds, ("-c", "pass")) for seconds in (30, 500)]
    assert session(monkeypatch, tmp_path, *steps, seconds=100).run() == 0
    assert limits == [30, 100 - gpu.GRACE_S]


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
    steps = gpu.Step("slow", HANG_S, file), gpu.Step("next", HANG_S, ("-c", "pass"))
    assert session(monkeypatch, tmp_path, *steps, seconds=10 * HANG_S).run() == 1
    assert statuses(tmp_path) == {"slow": "out of time", "next": "ok"}
    (benchmark,) = json.loads((tmp_path / "slow.json").read_text())["benchmarks"]
    assert benchmark["extra_info"] == {"done": True}


WRONG = """
import torch
from problems import Size

def test_wrong(race):
    race("sum", Size(), "fused", lambda: torch.ones(3), lambda: torch.full((3,), 2.0))
"""


@pytest.mark.slow
def test_a_wrong_result_fails_and_is_kept_with_its_error_and_time(tmp_path):
    (tmp_path / "test_wrong.py").write_text(WRONG)
    command = [
        "-m",
        "pytest",
        tmp_path,
        "-c",
        os.devnull,
        "-p",
        "conftest",
        "--benchmark-json",
        tmp_path / "wrong.json",
    ]
    environment = gpu.environment(ROOT)
    environment["PYTHONPATH"] += os.pathsep + str(ROOT / "bench")
    done = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "fused is off by 0.5 of the reference" in done.stdout
    (benchmark,) = json.loads((tmp_path / "wrong.json").read_text())["benchmarks"]
    assert benchmark["extra_info"]["error"] == 0.5 and benchmark["stats"]["median"] > 0


def test_a_failed_step_does_not_stop_the_next(monkeypatch, tmp_path):
    content = json.dumps({"title": "numbers", "rows": [{"speed": 0.25}]})
    keep = ("-c", f"import pathlib; pathlib.Path('OUT/numbers.json').write_text({content!r})")
    steps = gpu.Step("bad", HANG_S, ("-c", "raise SystemExit(3)")), gpu.Step("good", HANG_S, keep)
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
        parts = ("rebrac", "fqe", "reward", "diffusion", "meanflow", "mlp")
        assert [row["operation"] for row in rows] == [f"{part} updates" for part in parts]
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
    environment = gpu.environment(ROOT)
    environment["PYTHONPATH"] = f"{blocked}:{environment['PYTHONPATH']}"
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in json.loads((tmp_path / "profile.json").read_text())["rows"]]
    assert names[0] == "decision" and any(name.startswith("aten::") for name in names)
