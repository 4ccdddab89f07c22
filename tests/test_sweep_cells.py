"""Jobs of a sweep: each runs once, failures and kills differ, and tables hold comparable results."""

import json
from pathlib import Path

import pytest

from fastdwm.errors import InputError
from fastdwm.jobs import sweep as files
from fastdwm.sweep import __main__ as sweep
from fastdwm.sweep.config import SweepConfig
from fastdwm.sweep.job import JobContext, JobFailed, run_job
from fastdwm.sweep.stages import NAMED, Folders, SweepJob

DATASET = "deepope/hopper/medium-v0"


def record(**changes):
    """Record of a finished evaluation."""
    identity = {"commands": ["python -m fastdwm.eval"], "versions": {"mujoco": "3.4.0"}}
    about = {"task": "hopper-medium", "seed": 0, "stage": "eval", "identity": identity}
    return {"format": 1, **about, "machine": files.host(), "wall_s": 1.0, "result": {}} | changes


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Job that collects a dataset of ten steps; every run of its command adds a character to the file `ran`."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    for folder in ("cells", "logs", f"data/{DATASET}/data"):
        (tmp_path / folder).mkdir(parents=True)
    path = tmp_path / "data" / DATASET / "data" / "metadata.json"
    code = f"open({str(path)!r}, 'w').write('{{\"total_steps\": 10}}'); open('ran', 'a').write('x'); print('said')"
    config = SweepConfig(tasks=("hopper-medium",), stages=("collect",), policies=tmp_path, out=tmp_path)
    identity = {"commands": ["collect"], "versions": files.physics()}
    folders = Folders(tmp_path, NAMED.shipped, tmp_path)
    commands = [["python", "-c", code]]
    return JobContext(SweepJob("hopper-medium", 0, "collect"), config, folders, tmp_path, commands, identity, tmp_path)


def changed(work, **changes):
    return JobContext(**{**work.__dict__, **changes})


def test_a_cells_file_appears_when_its_commands_have_ended_well(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_job(work)
    assert result == json.loads((tmp_path / "cells" / "hopper-medium-s0-collect.json").read_text())
    assert result["result"] == {"dataset": DATASET, "metadata": {"total_steps": 10}}
    assert result["wall_s"] > 0 and result["peak_memory_mb"] > 1 and result["versions"]["python"]
    log = (tmp_path / "logs" / "hopper-medium-s0-collect.log").read_text()
    assert log.startswith("$ python -c ") and log.endswith("said\n")


def test_a_finished_cell_is_not_run_a_second_time(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_job(work) == run_job(work)
    assert (tmp_path / "ran").read_text() == "x"


def test_data_that_are_there_are_kept(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / DATASET / "data" / "metadata.json").write_text('{"total_steps": 7}')
    assert run_job(work)["result"]["metadata"] == {"total_steps": 7}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [("import sys; sys.exit(3)", "exit code 3"), ("import os; os.kill(os.getpid(), 9)", "ended by signal 9")],
    ids=["fails", "killed"],
)
def test_a_command_that_does_not_end_well_fails_the_cell(code, message, work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobFailed, match=message):
        run_job(changed(work, commands=[["python", "-c", code], *work.commands]))
    assert not (tmp_path / "ran").exists() and not list(tmp_path.glob("cells/*"))


@pytest.mark.parametrize(
    ("who", "how"),
    [
        ("fastdwm.eval", "os.kill(os.getpid(), 15)"),
        ("fastdwm.eval", "os._exit(130)"),
        ("--multiprocessing-fork", "os.kill(os.getpid(), 9)"),
    ],
    ids=["command", "ctrl-c", "engine"],
)
def test_a_cell_that_was_killed_is_run_again_by_the_same_command(who, how, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    argv = ["--tasks", "hopper-medium", "--stages", "eval", "--workers", "1", "--out", str(tmp_path / "out")]
    # The second attempt fails, which is quicker than an evaluation.
    for how_now, status in ((how, "not run"), ("os._exit(3)", "failed")):
        where = who if status == "not run" else "fastdwm.eval"
        (tmp_path / "sitecustomize.py").write_text(f"import os, sys\nif {where!r} in sys.orig_argv: {how_now}\n")
        assert not sweep.main(sweep.parse(argv))
        assert "1 of 1 jobs to run" in capfd.readouterr().err
        (cell,) = json.loads((tmp_path / "out" / "sweep.json").read_text())["cells"]
        assert cell["status"] == status and len(list(tmp_path.glob("out/failed/*"))) == (status == "failed")


def test_a_machine_with_another_simulator_runs_nothing(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobFailed, match="expected {'mujoco': '1.0'}"):
        run_job(changed(work, identity={"versions": {"mujoco": "1.0"}}))
    assert not (tmp_path / "ran").exists()


def test_scores_of_two_machines_share_a_table_and_latencies_do_not():
    here, there = record(), record(machine=files.host() | {"host": "other"})
    files.require_one_physics({"a": here, "b": there})
    assert files.one_machine([here, here]) and not files.one_machine([here, there])
    assert not files.one_machine([here, record(machine=files.host() | {"threads": 2})])


WRONG_CELLS = [
    {"format": 2},
    {"format": True},
    {"identity": "x"},
    {"stage": None},
    {"stage": []},
    {"wall_s": "nan"},
    {"wall_s": 1e300},
    {"wall_s": -1},
    {"peak_memory_mb": "x"},
    {"machine": [1]},
]


@pytest.mark.parametrize("change", WRONG_CELLS, ids=str)
def test_only_files_of_finished_cells_are_read(change, tmp_path):
    path = Path(tmp_path / "cell.json")
    path.write_text(json.dumps({name: x for name, x in (record() | change).items() if x is not None}))
    with pytest.raises(InputError, match="cell.json is not a finished job of a sweep"):
        files.read_job(path)
