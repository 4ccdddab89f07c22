"""Engines: order of jobs, failures, killed processes, clean ends, and Ray with a machine that dies."""

import os
import subprocess
import sys
import time
from contextlib import closing, suppress
from functools import cache
from pathlib import Path

import engine_jobs as jobs
import pytest
from commands import input_error
from processes import descendants, gone, until

from fastdwm import engines
from fastdwm.engines.config import EngineConfig
from fastdwm.engines.interface import Died, Job, run_all, run_jobs
from fastdwm.engines.processes import Processes
from fastdwm.errors import InputError


def run_to_end(engine, todo):
    """Ends of all jobs by name, in the order in which they ended."""
    ended = {}
    run_jobs(engine, todo, lambda end: ended.update({end.job.name: end}))
    return ended


@pytest.fixture
def processes():
    with closing(Processes(2)) as engine:
        yield engine


def test_jobs_run_in_order_and_after_what_they_need(processes, tmp_path):
    names = ["a", "b", "c", "d"]
    todo = [Job(name, jobs.write, (tmp_path / "log",)) for name in names]
    todo[1:2] = [Job("b", jobs.write, (tmp_path / "log", 1.0))]
    todo[2:3] = [Job("c", jobs.write, (tmp_path / "log",), after=("a", "b"))]
    ended = run_to_end(processes, todo)
    assert list(ended) == ["a", "d", "b", "c"]
    assert len({ended[name].value for name in names}) == 2


def test_no_more_jobs_run_at_once_than_there_are_places(tmp_path):
    snapshots = []
    todo = [Job(str(i), jobs.write, (tmp_path / "log", 0.05)) for i in range(4)]
    with closing(Processes(1)) as engine:
        run_jobs(engine, todo, lambda end: None, lambda running: snapshots.append(tuple(running)), period_s=0.01)
    assert {running for running in snapshots if running} == {("0",), ("1",), ("2",), ("3",)}


def test_a_job_that_fails_takes_with_it_only_what_comes_after_it(processes, tmp_path):
    todo = [Job("bad", jobs.refuse, (tmp_path / "log",)), Job("after", jobs.write, (tmp_path / "no",), ("bad",))]
    todo += [Job("last", jobs.write, (tmp_path / "no",), ("after",)), Job("other", jobs.write, (tmp_path / "other",))]
    ended = run_to_end(processes, todo)
    assert isinstance(ended["bad"].error, InputError) and str(ended["bad"].error) == "expected another job"
    assert "engine_jobs.py" in ended["bad"].error.__notes__[0]
    assert not ended["after"].started and not ended["last"].started and not (tmp_path / "no").exists()
    assert ended["other"].error is None and ended["other"].started


def test_errors_come_back_whole_or_at_least_their_words(processes):
    ended = run_to_end(processes, [Job("full", jobs.fill_disk), Job("stubborn", jobs.fail_stubbornly)])
    assert (ended["full"].error.errno, ended["full"].error.filename) == (28, "cell.json")
    assert "this and that" in str(ended["stubborn"].error)


def test_a_killed_process_costs_its_own_job_alone(processes, tmp_path):
    todo = [Job("dies", jobs.die), *(Job(str(i), jobs.write, (tmp_path / "log", 0.1)) for i in range(4))]
    ended = run_to_end(processes, todo)
    assert isinstance(ended["dies"].error, Died) and "signal 9 (Killed" in str(ended["dies"].error)
    assert all(ended[str(i)].error is None for i in range(4))


def test_what_is_raised_on_the_way_ends_the_running_jobs(processes, tmp_path):
    def stop(end):
        raise KeyboardInterrupt

    todo = [Job("quick", jobs.write, (tmp_path / "quick",)), Job("slow", jobs.write, (tmp_path / "slow", 60.0))]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(processes, todo, stop)
    assert not (tmp_path / "slow").exists()


def test_jobs_of_most_work_run_first_and_their_values_come_in_order(tmp_path):
    shares, sizes = [], {"a": 1, "b": 3, "c": 2, "d": 4}
    todo = [Job(name, jobs.write, (tmp_path / name,), work=work) for name, work in sizes.items()]
    values = run_all(Processes(1), todo, lambda done, total: shares.append((done, total)), finished=["d"])
    assert list(values) == ["a", "b", "c"] and shares == [(4, 10), (7, 10), (9, 10), (10, 10)]
    assert not (tmp_path / "d").exists()


def test_the_first_error_ends_all_jobs_and_names_its_own(tmp_path):
    todo = [Job("slow", jobs.write, (tmp_path / "slow", 60.0)), Job("bad", jobs.refuse, (tmp_path / "bad",))]
    with pytest.raises(InputError, match="expected another job") as error:
        run_all(Processes(2), todo)
    assert "job: bad" in error.value.__notes__ and not (tmp_path / "slow").exists()


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    code = "import sys; from pathlib import Path; from fastdwm.engines.processes import Processes\n"
    code += "import engine_jobs as jobs; from fastdwm.engines.interface import Job\n"
    code += "if __name__ == '__main__':\n"
    code += " engine = Processes(1); worker = engine.submit(Job('slow', jobs.write, (Path(sys.argv[1]), 60.0)))\n"
    code += " print(worker.process.pid, flush=True); worker.process.join()\n"
    (tmp_path / "main.py").write_text(code)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    argv = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "log")]
    parent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
    worker = int(parent.stdout.readline())
    time.sleep(0.5)
    assert not gone(worker)
    parent.kill()
    parent.wait()
    assert until(lambda: gone(worker)) and not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell_cpus": 0}, "cell_cpus: expected a positive number, got 0"),
        ({"cell_gpus": -1}, "cell_gpus: expected a number >= 0, got -1"),
        ({"crash_retries": -1}, "crash_retries: expected a number >= 0, got -1"),
        ({"engine": "slurm"}, "engine: expected one of processes, ray, got 'slurm'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        EngineConfig(**settings)


def test_without_ray_its_engine_is_an_input_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"engine: Ray is not installed; pip install 'fastdwm\[cluster\]'"):
        engines.start(EngineConfig(engine="ray"), 1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "host:port", "auto"])
def test_no_cluster_at_the_address_is_an_input_error(address, monkeypatch, tmp_path):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Clusters of other tests on this machine do not count.
    monkeypatch.setattr("ray._private.utils.read_ray_address", lambda *args: None)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", cache(set))
    with input_error("address: .*" + address):
        engines.start(EngineConfig(engine="ray", address=address), 1)


@pytest.fixture
def cluster(monkeypatch):
    """Ray cluster of two machines with one CPU each; the test may remove the second."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    utils = pytest.importorskip("ray.cluster_utils")
    # Ray's tasks import the jobs from here.
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    before = set(descendants(os.getpid()))
    cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.before = before
    cluster.victim = cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def listening(pids):
    """Local addresses, in hexadecimal, on which the processes listen."""
    sockets = set()
    for fd in (fd for pid in pids for fd in Path(f"/proc/{pid}/fd").glob("*")):
        with suppress(OSError):
            sockets.add(os.readlink(fd).removeprefix("socket:[").rstrip("]"))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


@pytest.mark.slow
def test_ray_on_one_machine_listens_on_the_loopback_address_alone():
    pytest.importorskip("ray")
    code = (
        "from fastdwm import engines; from fastdwm.engines.config import EngineConfig; from contextlib import closing\n"
    )
    code += "with closing(engines.start(EngineConfig(engine='ray'), 1)): print('started', flush=True); input()"
    argv, pipe = [sys.executable, "-c", code], subprocess.PIPE
    paths = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=paths) as process:
        assert process.stdout.readline() == "started\n"
        addresses = listening([process.pid, *descendants(process.pid)])
        process.communicate("\n")
    # 127.0.0.1 in IPv4 and IPv6
    assert addresses and addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.slow
def test_ray_finishes_all_jobs_when_a_machine_dies_in_the_middle(cluster, tmp_path):
    names = [str(i) for i in range(8)]
    todo = [Job(name, jobs.write, (tmp_path / name, 1.0)) for name in names]
    todo += [Job("bad", jobs.refuse, (tmp_path / "bad",)), Job("dies", jobs.die_once, (tmp_path / "dies",))]
    ended = {}

    def on_ended(end):
        ended[end.job.name] = end
        if len(ended) == 2:
            cluster.remove_node(cluster.victim, allow_graceful=False)

    config = EngineConfig(engine="ray", address=cluster.address)
    with closing(engines.start(config, None)) as engine:
        assert engine.slots == 2
        run_jobs(engine, todo, on_ended)
        assert until(lambda: engine.slots == 1)
        processes = set(descendants(os.getpid())) - cluster.before
    assert all(ended[name].error is None and (tmp_path / name).exists() for name in names)
    # Jobs that raise are not repeated; killed ones are.
    assert str(ended["bad"].error) == "expected another job"
    assert len((tmp_path / "bad").read_text().splitlines()) == 1
    assert ended["dies"].error is None and len((tmp_path / "dies").read_text().splitlines()) == 2
    cluster.shutdown()
    assert processes and until(lambda: all(map(gone, processes)))
