"""python -m fastdwm.sweep: files, resumed runs after a kill or a failure, refused folders."""

import json
import resource
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import argv, environment, refused, run, spawn
from processes import descendants, gone, until
from toy_data import training_flags, write_dataset

from fastdwm.bundle import Bundle

SMALL = " ".join(training_flags(60))
SMALL += " --trust-env --log-every 20 --save-every 20 --eval-episodes 0"
SHORT = "--episodes 2 --max-steps 5 --backend reference --itpo.inner-steps 0 --diagnose-every 1000"
STAGES = ("--stages", "train", "eval", "--variants", "default", "meanflow")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Path of a D4RL file, with {task} for the task in its name."""
    return write_dataset(tmp_path_factory.mktemp("data") / "hopper-medium.hdf5").with_name("{task}.hdf5")


def flags(data, out, *more):
    where = ("--dataset", str(data), "--out", str(out))
    small = ("--train-flags", SMALL, "--eval-flags", SHORT, "--workers", "2")
    return ("--tasks", "hopper-medium", "--seeds", "2", *STAGES, *small, *where, *more)


def cells(out, folder="cells"):
    """Records of finished jobs, by name."""
    return {path.stem: json.loads(path.read_text()) for path in Path(out, folder).glob("*.json")}


def weights(out, name):
    return Bundle.load(out / "train" / name / "bundle").fingerprint


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Process and folder of a finished sweep of two trainings and their evaluations."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    done = run("sweep", *flags(data, out))
    assert done.returncode == 0, done.stderr
    return done, out


NAMES = {f"hopper-medium-s{seed}-{stage}" for seed in (0, 1) for stage in ("train", "eval")}


@pytest.mark.slow
def test_a_sweep_leaves_cells_bundles_logs_and_a_summary(finished):
    done, out = finished
    records = cells(out)
    assert records.keys() == NAMES and not cells(out, "failed")
    for name, record in records.items():
        assert name == f"{record['task']}-s{record['seed']}-{record['stage']}"
        assert record["identity"]["versions"].keys() == {"mujoco", "gymnasium"}
        assert str(out) not in str(record["identity"]) and str(out) in str(record["commands"])
        assert record["wall_s"] > 0 and record["peak_memory_mb"] > 50
        assert (out / "logs" / f"{name}.log").read_text().startswith(f"$ {record['commands'][0]}\n")
    summary = json.loads((out / "sweep.json").read_text())
    assert {cell["name"]: cell["status"] for cell in summary["cells"]} == dict.fromkeys(NAMES, "finished")
    assert "fastdwm.sweep" in summary["command"] and summary["versions"]["torch"] and summary["one_machine"] is True
    assert "4 of 4 jobs done, 0 failed" in done.stderr and done.stdout.splitlines()[-2:] == [
        str(out / "sweep.json"),
        f"next: python -m fastdwm.report paper {out}",
    ]
    # The table of scores has those of each evaluation.
    for seed in (0, 1):
        variants = records[f"hopper-medium-s{seed}-eval"]["result"]["variants"]
        scores = [np.mean(variants[name]["itpo"]["scores"]) for name in ("default", "meanflow")]
        assert all(f"{score:.1f} (" in done.stdout for score in scores)


@pytest.mark.slow
def test_an_evaluations_cell_has_the_scores_of_its_own_trainings_bundle(finished):
    _, out = finished
    for seed in (0, 1):
        record = cells(out)[f"hopper-medium-s{seed}-eval"]
        result, identity = record["result"], record["identity"]
        assert result["weights_sha256"] == identity["weights_sha256"] == weights(out, f"hopper-medium-s{seed}")
        assert list(result["variants"]) == ["default", "meanflow"] and "diffusion" in result["errors"]
        assert result["weights_sha256"] == cells(out)[f"hopper-medium-s{seed}-train"]["result"]["weights_sha256"]
        for variant, world in (("default", "diffusion"), ("meanflow", "meanflow")):
            ran = result["variants"][variant]
            assert ran["world"] == world and ran["seeds"] == [10000, 10001] and ran["itpo"]["lengths"] == [5, 5]
            assert len(ran["base"]["scores"]) == 2 and ran["latency_ms"]["itpo"]["p50_ms"] > 0
        evaluation = json.loads(next((out / "eval" / f"hopper-medium-s{seed}" / "default").glob("*.json")).read_text())
        scores = [episode["score_pct"] for episode in evaluation["episodes"]["itpo"]]
        assert result["variants"]["default"]["itpo"]["scores"] == scores
        assert record["machine"].keys() >= {"host", "cpu", "threads"} and record["machine"]["threads"] == 1
    assert weights(out, "hopper-medium-s0") != weights(out, "hopper-medium-s1")


def copy_of(old, out, *patterns):
    """Copy the sweep's files that match a pattern to another folder."""
    for path in (path for pattern in patterns for path in old.glob(pattern) if path.is_file()):
        (out / path.relative_to(old)).parent.mkdir(parents=True, exist_ok=True)
        (out / path.relative_to(old)).write_bytes(path.read_bytes())
    return out


@pytest.mark.slow
def test_finished_cells_are_not_repeated_and_a_missing_one_is(finished, data, tmp_path):
    _, old = finished
    out = copy_of(old, tmp_path / "out", "*.json", "cells/*", "train/**/*")
    (out / "cells" / "hopper-medium-s1-eval.json").unlink()
    done = run("sweep", *flags(data, out))
    assert done.returncode == 0 and "1 of 4 jobs to run" in done.stderr, done.stderr
    before, after = cells(old), cells(out)
    again = after.pop("hopper-medium-s1-eval")
    assert all(before[name] == record for name, record in after.items()) and len(after) == 3
    default = before["hopper-medium-s1-eval"]["result"]["variants"]["default"]
    assert again["result"]["variants"]["default"]["itpo"]["scores"] == default["itpo"]["scores"]
    # If all jobs are finished, the command only writes the summary again.
    assert run("sweep", *flags(data, out)).stderr == ""


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_and_goes_on_to_the_same_weights(finished, data, tmp_path):
    _, reference = finished
    out = tmp_path / "out"
    args = (*flags(data, out), "--stages", "train")
    process = subprocess.Popen(
        argv("sweep", *args), env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    assert until(lambda: (out / "train" / "hopper-medium-s0" / "reward.safetensors").exists())
    # Two workers with a training each.
    there = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(there) >= 4 and until(lambda: all(map(gone, there)))
    before = cells(out)
    assert len(before) < 2

    done = run("sweep", *args)
    assert done.returncode == 0, done.stderr
    assert len(cells(out)) == 2 and all(cells(out)[name] == record for name, record in before.items())
    for name in ("hopper-medium-s0", "hopper-medium-s1"):
        assert weights(out, name) == weights(reference, name)


@pytest.mark.slow
def test_a_failed_cell_is_reported_and_stops_only_its_dependents(finished, data, tmp_path):
    out = copy_of(finished[1], tmp_path / "out", "settings.json", "cells/*-s0-train.json", "train/*-s0/**/*")
    both = ("--tasks", "hopper-medium", "walker2d-medium", *flags(data, out)[2:])
    one = ("--seeds", "1")
    copied = data.with_name("walker2d-medium.hdf5")
    # Observations of the wrong size.
    copied.write_bytes(data.with_name("hopper-medium.hdf5").read_bytes())
    done = run("sweep", *both, *one)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert cells(out).keys() == {"hopper-medium-s0-train", "hopper-medium-s0-eval"}
    (failure,) = cells(out, "failed").values()
    assert failure["error"].startswith("exit code 2: python -m fastdwm.train walker2d-medium")
    assert "error: " in failure["log"][-1] and failure["log"][-1] in done.stderr
    assert "walker2d-medium-s0-eval: not run, a job that it depends on has not finished" in done.stderr
    assert "walker2d-medium-s0-train failed: exit code 2" in done.stdout and "not run" in done.stdout
    status = {cell["name"]: cell["status"] for cell in json.loads((out / "sweep.json").read_text())["cells"]}
    assert (status["walker2d-medium-s0-train"], status["walker2d-medium-s0-eval"]) == ("failed", "not run")

    # The command does not repeat the failed job, and shows its error again.
    again = run("sweep", *both, *one)
    assert again.returncode == 1 and again.stderr == "" and failure["log"][-1] in again.stdout
    log = out / "logs" / "walker2d-medium-s0-train.log"
    tried = log.read_text().count("$ python")
    retried = run("sweep", *both, *one, "--retry")
    assert retried.returncode == 1 and "2 of 4 jobs to run" in retried.stderr
    assert log.read_text().count("$ python") == tried + 1


@pytest.mark.slow
def test_a_full_disk_fails_the_cell_and_damages_nothing(finished, data, tmp_path):
    _, old = finished
    out = copy_of(old, tmp_path / "out", "settings.json", "cells/*-train.json", "train/**/*")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # The limit is enough for the driver's files, and too little for an evaluation's.
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))  # noqa: E731
    args = (*flags(data, out), "--seeds", "1")
    done = spawn("sweep", *args, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (failure,) = cells(out, "failed").values()
    assert "File too large" in "".join(failure["log"]) and not list(out.glob("cells/*-eval.json"))
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "settings.json")
    assert run("sweep", *args, "--retry").returncode == 0
    assert "hopper-medium-s0-eval" in cells(out) and not cells(out, "failed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--train-flags", SMALL.replace("60", "70", 1)], "train.flags: "),
        (["--eval-flags", SHORT + " --seed 5"], "eval.flags: "),
        (["--variants", "default"], "eval.variants: ['default', 'meanflow'], now ['default']"),
        (["--dataset", "other-{task}.hdf5"], "train.dataset: "),
    ],
    ids=["train", "eval", "variants", "dataset"],
)
def test_a_folder_of_another_sweep_is_refused_and_kept(finished, data, change, message):
    _, out = finished
    before = cells(out)
    done = run("sweep", *flags(data, out), *change)
    refused(done, f"holds another sweep ({message}", "--out")
    assert cells(out) == before


@pytest.mark.slow
def test_results_of_another_physics_are_refused(finished, data, tmp_path):
    out = copy_of(finished[1], tmp_path / "out", "cells/*")
    path = out / "cells" / "hopper-medium-s0-eval.json"
    record = json.loads(path.read_text())
    record["identity"]["versions"]["mujoco"] = "3.2.0"
    path.write_text(json.dumps(record))
    done = run("sweep", *flags(data, out))
    assert done.returncode == 2 and "different simulator versions" in done.stderr and "3.2.0" in done.stderr
    for other in out.glob("cells/*.json"):
        if other != path:
            other.unlink()
    done = run("sweep", *flags(data, out))
    assert done.returncode == 2 and "holds another sweep (versions.mujoco: 3.2.0, now" in done.stderr


@pytest.mark.slow
def test_cells_run_as_tasks_of_ray(finished, data, tmp_path):
    pytest.importorskip("ray")
    out = copy_of(finished[1], tmp_path / "out", "settings.json", "cells/*-train.json", "train/**/*")
    line = argv("sweep", *flags(data, out), "--seeds", "1", "--engine", "ray", "--workers", "1")
    # By default Ray gives its tasks the lowest priority.
    process = subprocess.Popen(line, env=environment(RAY_worker_niceness=0))
    there = set()
    assert until(lambda: there.update(descendants(process.pid)) or process.poll() is not None)
    assert process.returncode == 0 and "hopper-medium-s0-eval" in cells(out)
    assert there and until(lambda: all(map(gone, there)))
    assert cells(out)["hopper-medium-s0-eval"]["identity"] == cells(finished[1])["hopper-medium-s0-eval"]["identity"]
