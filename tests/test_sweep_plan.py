"""python -m fastdwm.sweep before anything runs: plans and refused input."""

import re
import subprocess
import sys

import pytest
from commands import refused, run

from fastdwm.errors import InputError
from fastdwm.sweep import __main__ as sweep

HOPPER = ["--tasks", "hopper-medium"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stages", "trian"], "stages: expected some of collect, train, tune, eval, got 'trian'"),
        (["--tasks", "hoper-medium", "--stages", "eval"], "unknown task 'hoper-medium'; nearest: "),
        (["--seeds", "0"], "seeds: expected a positive number, got 0"),
        (["--workers", "0"], "workers: expected a positive number, got 0"),
        (["--variants", "best"], "variants: expected some of default, tuned, meanflow, critic, drift, got 'best'"),
        (["--train-flags", "'x y"], "train_flags: No closing quotation"),
        (["--stages", "collect"], "policies: the stage collect needs the folder"),
        (["--stages", "collect", "--policies", "x", "--dataset", "y"], "dataset: expected none with the stage collect"),
        (["--dataset", "x.hdf5"], "dataset: expected {task} in it, with several tasks, got 'x.hdf5'"),
        (["--engine", "slurm"], "--engine"),
        ([*HOPPER, "--stages", "eval", "--seeds", "2"], "seeds: without the stage train there is one bundle per task"),
        (["--tasks", "antmaze-umaze", "--stages", "eval"], "no bundle is shipped for antmaze-umaze"),
        (["--tasks", "walker2d-random", "--stages", "train"], "dataset deepope/walker2d/random-v0 is not in /nowhere"),
    ],
    ids=lambda value: "-".join(text.lstrip("-") for text in value)[:40] if isinstance(value, list) else "",
)
def test_wrong_flags_are_refused_in_one_line(args, message, monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/nowhere")
    refused(run("sweep", *args, "--out", tmp_path), message)
    assert not list(tmp_path.rglob("cells"))


@pytest.mark.parametrize("engine", ["not installed", "no cluster"])
def test_an_engine_that_is_not_there_is_refused_before_anything_runs(engine, monkeypatch, tmp_path):
    address = []
    if engine == "not installed":
        monkeypatch.setitem(sys.modules, "ray", None)
    else:
        pytest.importorskip("ray")
        address = ["--address", "127.0.0.1:1"]
    args = [*HOPPER, "--stages", "eval", "--out", str(tmp_path), "--engine", "ray", *address]
    with pytest.raises(InputError, match="Ray is not installed" if not address else "no Ray cluster at '127.0.0.1:1'"):
        sweep.main(sweep.parse(args))
    assert not list((tmp_path / "logs").iterdir())


def test_a_plan_names_cells_commands_time_and_memory_and_runs_nothing(tmp_path):
    out = tmp_path / "out"
    args = ("--tasks", "locomotion", "--seeds", "10", "--dataset", "{task}.hdf5", "--out", out, "--plan")
    done = run("sweep", *args, "--workers", "2", "--stages", "eval", "train", "tune")
    assert done.returncode == 0 and done.stderr == "" and not out.exists()
    lines = done.stdout.splitlines()
    names = [line.partition(":")[0] for line in lines if not line.startswith(" ") and "-s" in line.partition(":")[0]]
    assert len(names) == len(set(names)) == 18 * 10 * 3
    assert names[:4] == [f"hopper-medium-{x}" for x in ("s0-train", "s0-tune", "s0-eval", "s1-train")]
    assert lines[-1].startswith("540 of 540 jobs to run, 2 at once: about ") and "MB" in lines[-1]
    bundle = f"{out}/train/hopper-medium-s9/bundle"
    (train,) = [line for line in lines if "fastdwm.train hopper-medium " in line and "s9" in line]
    assert "--dataset hopper-medium.hdf5" in train and "--seed 9" in train
    tune = f"python -m fastdwm.tune hopper-medium --bundle {bundle} --minutes 20"
    flags = {"tuned": "", "default": "", "meanflow": "--world meanflow ", "critic": "--itpo.horizon 0 "}
    flags |= {"drift": "--control "}
    evals = [
        f"--preset {'tuned' if name == 'tuned' else 'default'} --bundle {bundle} --episodes 50 {more}"
        f"--out {out}/eval/hopper-medium-s9/{name}"
        for name, more in flags.items()
    ]
    assert all(any(text in line for line in lines) for text in (tune, *evals))


def hours(tmp_path, stage, *more):
    """Estimated hours of one job of a stage on hopper-medium."""
    args = ("--stages", stage, "--dataset", "x.hdf5", "--out", tmp_path / "out", "--plan", *more)
    done = run("sweep", *HOPPER, *args)
    assert done.returncode == 0, done.stderr
    clock = re.search(r"hopper-medium-s0-\w+: (\d+):(\d+):(\d+),", done.stdout.replace(" days, ", "")).groups()
    return sum(int(part) / 60**i for i, part in enumerate(clock))


def test_a_plan_knows_the_budgets_in_the_flags(tmp_path):
    default = {stage: hours(tmp_path, stage) for stage in ("train", "tune", "eval")}
    assert 0.2 < default["train"] < 1 and default["tune"] == pytest.approx(1 / 3, rel=0.01)
    assert hours(tmp_path, "tune", "--tune-flags", "--minutes 60") == pytest.approx(1, rel=0.02)
    assert hours(tmp_path, "eval", "--eval-flags", "--episodes 500") > 5 * default["eval"]
    assert hours(tmp_path, "eval", "--variants", "default") < default["eval"] / 3
    short = " ".join(f"--{part}.updates 10" for part in ("rebrac", "diffusion", "meanflow", "reward"))
    assert hours(tmp_path, "train", "--train-flags", short) < 0.05 * default["train"]
    refused(
        run("sweep", *HOPPER, "--stages", "train", "--dataset", "x", "--plan", "--train-flags", "--rebrac.updates no")
    )


def test_a_shipped_bundle_is_tuned_as_a_copy(tmp_path):
    done = run("sweep", *HOPPER, "--stages", "tune", "eval", "--out", tmp_path / "out", "--plan")
    copy = f"{tmp_path}/out/bundles/hopper-medium-s0"
    assert (
        f"bundles/hopper-medium {copy}\n" in done.stdout
        and f"fastdwm.tune hopper-medium --bundle {copy} " in done.stdout
    )


def test_data_are_collected_once_for_all_seeds(tmp_path):
    pytest.importorskip("fastdwm.collect.published")
    args = ("--stages", "collect", "train", "--policies", "policies", "--out", tmp_path / "out", "--plan")
    done = run("sweep", "--tasks", "locomotion", "--seeds", "3", *args, "--collect-flags", "--transitions 1000")
    assert done.returncode == 0, done.stderr
    collects = [line for line in done.stdout.splitlines() if "python -m fastdwm.collect" in line]
    assert len(collects) == 18 and all("--transitions 1000" in line for line in collects)
    assert "-s0-collect" in done.stdout and "-s1-collect" not in done.stdout
    assert all("--policy policies/" in line or "random" in line for line in collects)


def test_the_driver_imports_neither_torch_nor_the_simulator(tmp_path):
    code = "import sys; from fastdwm.sweep.__main__ import main, parse; from fastdwm.sweep import driver, job\n"
    code += "main(parse(sys.argv[1:])); print(*sys.modules)"
    args = [*HOPPER, "--stages", "eval", "--plan", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "fastdwm.sweep.plan" in loaded
    assert not loaded & {"torch", "numpy", "gymnasium", "mujoco", "minari", "ray", "matplotlib"}
