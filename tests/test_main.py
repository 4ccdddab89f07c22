"""`fastdwm` and `fastdwm doctor`."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import refused, run

from fastdwm import __main__ as entry
from fastdwm import __version__
from fastdwm.tasks import TASKS

ROOT = Path(__file__).parent.parent


def fastdwm(*args):
    return subprocess.run([sys.executable, "-m", "fastdwm", *args], capture_output=True, text=True)


def test_it_lists_all_commands_and_tasks_without_torch():
    code = "import sys, runpy; sys.argv = ['fastdwm']\ntry: runpy.run_module('fastdwm', run_name='__main__')\n"
    code += "except SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, modules = done.stdout.splitlines()
    assert not {"torch", "numpy", "gymnasium"} & set(modules.split())
    listed = {line.split()[0] for line in lines if line.startswith("  ")}
    folders = {path.parent.name for path in (ROOT / "fastdwm").glob("*/__main__.py")}
    assert folders <= listed
    levels = {
        (a.split()[0], level.strip(" *")) for a in lines if "-  " in a for level in a.split(None, 1)[1].split(",")
    }
    assert levels == {(f"{family}-", level) for family, _, level in (name.partition("-") for name in TASKS)}


def test_a_command_runs_by_its_name_and_a_wrong_name_is_refused():
    assert fastdwm("--version").stdout == f"fastdwm {__version__}\n"
    assert "usage: python -m fastdwm.eval" in fastdwm("eval", "--help").stdout
    refused(fastdwm("eval", "nowhere"), "nowhere")
    refused(fastdwm("evaluate"), "expected a command, one of eval, ", "got 'evaluate'")


def test_the_installed_command_is_the_same():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"fastdwm": "fastdwm.__main__:main"} and callable(entry.main)


def lines_of(done):
    assert done.returncode == 0, done.stderr
    return dict(line.split(None, 1) for line in done.stdout.splitlines())


@pytest.fixture
def folders(private_folders, tmp_path, monkeypatch):
    """A dataset, a cache of 3 MB and a trained bundle."""
    (tmp_path / "minari/mine/walker-v0/data").mkdir(parents=True)
    (tmp_path / "minari/mine/walker-v0/data/main_data.hdf5").touch()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/x.safetensors").write_bytes(bytes(3 * 2**20))
    (tmp_path / "runs/mine/bundle").mkdir(parents=True)
    (tmp_path / "runs/mine/bundle/bundle.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


def test_doctor_describes_the_installation_in_ten_lines(folders, tmp_path):
    lines = lines_of(run("doctor"))
    assert len(lines) == 10
    assert lines["fastdwm"].startswith(__version__)
    assert lines["cache"] == f"1 files, 3 MB, {tmp_path / 'cache'}"
    assert lines["datasets"] == f"1 (mine/walker-v0), {tmp_path / 'minari'}"
    assert lines["bundles"] == f"18 shipped, 1 in {tmp_path / 'runs'}"
    assert "bits" in lines["processor"]


def test_doctor_names_versions_that_differ(monkeypatch):
    version = importlib.metadata.version
    other = {"mujoco": "3.9.0", "numpy": "1.0"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: other.get(name) or version(name))
    lines = lines_of(run("doctor"))
    made = json.loads((ROOT / "fastdwm/bundles/halfcheetah-expert/bundle.json").read_text())["versions"]["mujoco"]
    assert f"mujoco 3.9.0 in place of {made}" in lines["scores"]
    assert "numpy 1.0 in place of " in lines["packages"] and "mujoco 3.9.0 in place of " in lines["packages"]
