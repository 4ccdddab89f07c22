"""Simulators that files name: only known ones, without running code, reading paths or silently changing scores."""

import dataclasses
import json
import subprocess
import sys
from functools import partial

import pytest
from commands import input_error, refused, run
from toy_bundles import make_bundle

from fastdwm import Bundle, InputError
from fastdwm.envs import EnvSpec, read_spec
from fastdwm.tasks import get_task

HOPPER, WALKER, MAZE = (get_task(name) for name in ("hopper-medium", "walker2d-medium", "antmaze-umaze"))
CONTINUING = {"continuing_task": True}


def read(task=HOPPER, id="Hopper-v5", kwargs=None, max_episode_steps=1000, trust_env=False):
    values = {"id": id, "kwargs": kwargs or {}, "max_episode_steps": max_episode_steps}
    return read_spec(values, trust_env, task.env)


@pytest.fixture
def intruder(tmp_path):
    """Folder of a bundle and of a module that its simulator's id makes Gymnasium import; the module creates a file."""
    (tmp_path / "hopper_env.py").write_text("from pathlib import Path\nPath('trace').touch()\nimport gymnasium\n")
    task = dataclasses.replace(HOPPER, env=EnvSpec("hopper_env:Hopper-v5", {}, 1000))
    make_bundle(task=task).save(tmp_path / "bundle")
    return tmp_path


@pytest.fixture
def evaluate(intruder, monkeypatch, quick):
    """Function that evaluates that bundle in its folder, from which modules can be imported."""
    monkeypatch.chdir(intruder)
    monkeypatch.syspath_prepend(intruder)
    yield partial(run, "eval", "hopper-medium", "--bundle=bundle", "--episodes=1", "--max-steps=3")
    sys.modules.pop("hopper_env", None)


def test_a_bundle_cannot_make_the_command_import_a_module(evaluate, intruder):
    refused(evaluate(), "hopper_env:Hopper-v5", "--trust-env")
    assert not (intruder / "trace").exists()


def test_the_user_may_vouch_for_a_simulator_which_the_table_then_names(evaluate, intruder):
    done = evaluate("--trust-env", "--out=out")
    assert done.returncode == 0, done.stderr
    assert (intruder / "trace").exists()
    assert "not the task's own simulator: id 'hopper_env:Hopper-v5'" in " ".join(done.stdout.split())
    record = json.loads(next((intruder / "out").glob("*.json")).read_text())
    assert record["env_departures"] == ["id 'hopper_env:Hopper-v5'"]


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"xml_file": "/etc/passwd"}, "xml_file"),
        ({"xml_file": "./hopper.xml"}, "xml_file"),
        ({"xml_file": "walker2d.xml"}, "xml_file"),
        ({"healthy_reward": 30}, "healthy_reward"),
        ({"healthy_reward": True}, "healthy_reward"),
        ({"frame_skip": 10**9}, "frame_skip"),
        ({"reset_noise_scale": "0.1"}, "reset_noise_scale"),
        ({"reset_noise_scale": float("nan")}, "reset_noise_scale"),
        ({"reset_noise_scale": -0.0}, "reset_noise_scale"),
        ({"terminate_when_unhealthy": 0}, "terminate_when_unhealthy"),
        ({"id": "Ant-v5"}, "id"),
    ],
)
def test_settings_that_are_not_known_are_refused(kwargs, name):
    with input_error(f"'{name}' = .*--trust-env"):
        read(kwargs=kwargs)


@pytest.mark.parametrize("steps", [0, -1, 10**9, True, 10.0, "1000"])
def test_the_cap_of_an_episode_is_a_sane_number_or_none(steps):
    with pytest.raises(InputError, match="max_episode_steps: expected"):
        read(max_episode_steps=steps, trust_env=True)


@pytest.mark.parametrize("id", ["Hopper-v3", "Walker2d-v5", "Hopper", "os:Hopper-v5", "ale_py:ALE/Pong-v5"])
def test_simulators_of_other_tasks_are_refused(id):
    with pytest.raises(InputError, match="expected one of Hopper-v4, Hopper-v5, got"):
        read(id=id)


def test_what_datasets_legitimately_name_is_known():
    assert read(WALKER, "Walker2d-v5", {"xml_file": "walker2d.xml"}).make().spec.id == "Walker2d-v5"
    assert read(kwargs={"render_mode": None, "healthy_reward": 1.0}).kwargs == {"healthy_reward": 1.0}
    recorded = {"reward_type": "sparse", "continuing_task": True, "reset_target": False, **MAZE.env.kwargs}
    assert read(MAZE, "AntMaze_UMaze-v4", recorded).kwargs == recorded


@pytest.mark.parametrize("maze", [[[0, 1], [1]], [[0.0]], [[True]], [["x"]], [[1] * 51], "11", [[]], [[["r"]]]])
def test_a_maze_is_a_rectangle_of_known_cells(maze):
    with pytest.raises(InputError, match="maze_map"):
        read(MAZE, "AntMaze_UMaze-v4", {"maze_map": maze})


@pytest.mark.parametrize(
    ("task", "spec", "expected"),
    [
        (HOPPER, EnvSpec("Hopper-v4", {"healthy_reward": 1.0}, None), []),
        (HOPPER, EnvSpec("Hopper-v5", {"terminate_when_unhealthy": False}, 1000), ["terminate_when_unhealthy = False"]),
        (HOPPER, EnvSpec("Hopper-v5", {}, 7), ["max_episode_steps = 7"]),
        (MAZE, EnvSpec("AntMaze_UMaze-v4", dict(MAZE.env.kwargs), 700), []),
        (MAZE, EnvSpec("AntMaze_UMaze-v4", MAZE.env.kwargs | CONTINUING, 700), ["continuing_task = True"]),
        (MAZE, EnvSpec("AntMaze_UMaze-v4", {}, 700), ["continuing_task = True", "maze_map = None"]),
        (WALKER, EnvSpec("Walker2d-v5", {"xml_file": "walker2d.xml"}, 1000), ["xml_file = 'walker2d.xml'"]),
    ],
)  # fmt: skip
def test_a_simulator_that_is_not_the_tasks_own_is_described(task, spec, expected):
    assert dataclasses.replace(task, env=spec).departures() == expected


def test_a_simulator_that_refuses_its_settings_is_refused_in_one_line():
    with input_error("cannot build the simulator Hopper-v5: TypeError"):
        EnvSpec("Hopper-v5", {"healthy_z_range": 3, "nonsense": 1}, None).make()


def test_loading_needs_the_users_word_as_well(intruder):
    with pytest.raises(InputError, match="--trust-env"):
        Bundle.load(intruder / "bundle")
    assert Bundle.load(intruder / "bundle", trust_env=True).task.env.id == "hopper_env:Hopper-v5"


def test_a_warning_of_a_simulator_is_shown_once_and_not_for_every_episode(tmp_path):
    (tmp_path / "own.py").write_text(
        "import gymnasium, numpy as np\n"
        "class Env(gymnasium.Env):\n"
        "    def __init__(self):\n"
        "        self.observation_space = gymnasium.spaces.Box(np.zeros(2), np.ones(2), dtype=np.float32)\n"
        "        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)\n"
        "gymnasium.register('Rounding-v0', Env)\n"
    )
    code = "import own; from fastdwm import EnvSpec\nfor i in range(3): EnvSpec('Rounding-v0', {}, 5).make()"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True)
    # One for the lower and one for the upper bounds.
    assert done.stderr.count("precision lowered") == 2, done.stderr
