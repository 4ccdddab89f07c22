"""python -m fastdwm.collect --steer: an ant's policy led through a maze, where episodes start and how they end."""

import json

import numpy as np
import pytest
from commands import refused, run
from onnx_policies import policy_bytes, weights

from fastdwm.collect.ant import Walker, is_on_its_back, turned, turned_back
from fastdwm.collect.behaviour import read_walker
from fastdwm.collect.steering import COURSES, MOST_BACK_STEPS, Guide, next_cells
from fastdwm.data import replay
from fastdwm.data.dataset import load
from fastdwm.tasks import get_task

UMAZE = get_task("antmaze-umaze")
OUT = "mine/antmaze/tiny-v0"
ANT = weights(111, 8)


@pytest.fixture
def ant(tmp_path):
    """Path of an untrained policy of the ant, whose actions are random for non-zero noise."""
    (tmp_path / "ant.onnx").write_bytes(policy_bytes(ANT, std=0.3))
    return tmp_path / "ant.onnx"


def record(ant, tmp_path, *flags, env="antmaze-umaze", transitions=300):
    flags = f"--policy={ant}", f"--out={OUT}", f"--transitions={transitions}", "--workers=1", *flags
    return run("collect", env, *flags, env={"MINARI_DATASETS_PATH": tmp_path / "minari"})


def test_train_reads_what_was_steered(ant, tmp_path, monkeypatch, private_folders):
    done = record(ant, tmp_path, "--steer", "--noise=0.2")
    assert done.returncode == 0, done.stderr
    data = load(UMAZE, OUT)
    assert data.env.id == "AntMaze_UMaze-v4" and data.env.kwargs | UMAZE.env.kwargs == data.env.kwargs
    assert data.n >= 300 and data.obs.shape[1] == 29
    # The task of umaze starts where the evaluation does.
    assert np.abs(data.obs[data.episode_starts, :2] - (-4, -4)).max() <= 1
    replay.check(data)
    about = json.loads((tmp_path / "minari" / OUT / "data" / "metadata.json").read_text())
    assert "fastdwm.collect antmaze-umaze --policy ant.onnx" in about["description"]
    assert "--noise 0.2 --steer" in about["description"]
    assert "gymnasium-robotics==1.4.2" in about["requirements"]


def test_the_same_command_gives_the_same_bytes(ant, tmp_path):
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        assert record(ant, tmp_path / name, "--steer", env="antmaze-medium-play").returncode == 0
        contents.append((tmp_path / name / "minari" / OUT / "data" / "main_data.hdf5").read_bytes())
    assert contents[0] == contents[1]


def test_an_ant_may_act_in_a_maze_without_being_steered(tmp_path, private_folders):
    done = record("random", tmp_path, env="antmaze-large-diverse")
    assert done.returncode == 0, done.stderr
    assert load(get_task("antmaze-large-diverse"), OUT).env.kwargs["continuing_task"] is False


BAD = {
    "steer: expected one of antmaze-umaze, antmaze-umaze-diverse, ": {"env": "hopper"},
    "antmaze-large-diverse, got AntMaze_UMaze-v4": {"env": "AntMaze_UMaze-v4"},
    "steer: expected the maze of antmaze-umaze without env_kwargs": {
        "flags": ['--env-kwargs={"reward_type": "sparse"}']
    },
    "policy: expected an .onnx file of an ant's policy to steer, got random": {"policy": "random"},
    "111 observations and 8 actions, it has 11 and 3": {"sizes": (11, 3)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_exit_2(tmp_path, message):
    case = {"env": "antmaze-umaze", "policy": tmp_path / "p.onnx", "flags": [], "sizes": (111, 8)} | BAD[message]
    (tmp_path / "p.onnx").write_bytes(policy_bytes(weights(*case["sizes"])))
    refused(record(case["policy"], tmp_path, "--steer", *case["flags"], env=case["env"]), message)


@pytest.mark.parametrize("turns", range(4))
def test_the_renamed_ant_moves_as_the_real_one_in_a_turned_world(turns):
    rng, heading = np.random.default_rng(turns), 0.7
    action = rng.uniform(-1, 1, 8)
    with replay.Simulator(UMAZE.env) as simulator:
        obs, _ = simulator.env.reset(seed=0)
        # Above the walls, and with the legs bent.
        obs[2], obs[7:15], obs[15:] = 4, obs[7:15] + 0.2 * rng.normal(size=8), rng.normal(size=14)
        real, _, _ = simulator.step(obs, turned_back(action, turns))
        renamed, _, _ = simulator.step(np.concatenate([obs[:2], turned(obs, heading, turns)]), action)
    assert np.abs(real - obs).max() > 0.1
    np.testing.assert_allclose(turned(real, heading, turns), renamed[2:], atol=1e-6)


def test_the_path_leads_around_walls():
    free = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 1), (3, 2), (3, 3)]
    steps = next_cells((1, 1), free)
    cell, path = (3, 1), []
    while cell != (1, 1):
        cell = steps[cell]
        path.append(cell)
    assert path == [(3, 2), (3, 3), (2, 3), (1, 3), (1, 2), (1, 1)]
    assert (3, 1) not in next_cells((1, 1), free[:4])


@pytest.mark.parametrize("name", COURSES)
def test_episodes_start_and_go_where_the_task_says(name):
    rng, course = np.random.default_rng(0), COURSES[name]
    points, starts = [], []
    with get_task(name).env.make() as env:
        guide = Guide(env, course)
        act = guide.steered(lambda obs, rng: np.zeros(8))
        for seed in range(60):
            obs, _ = env.reset(seed=seed, options=guide.start(rng))
            act(obs, rng)
            starts.append(tuple(guide.maze.cell_xy_to_rowcol(obs[:2]).tolist()))
            points.append(guide.target)
    assert (len(set(starts)) == 1) == course.fixed_start
    assert guide.goal not in starts and guide.maze.maze_map[starts[0][0]][starts[0][1]] in (0, "r")
    expected = {"goal": {guide.goal}, "any": set(guide.free)}.get(course.targets) or set(course.targets)
    assert set(points) <= expected and len(set(points)) > 0.6 * len(expected)
    assert all(point in guide.free for point in expected)


def test_an_ant_on_its_back_is_truncated():
    upright, on_back = np.zeros(29), np.zeros(29)
    upright[3], on_back[4] = 1, 1
    assert is_on_its_back(on_back) and not is_on_its_back(upright)
    with UMAZE.env.make() as env:
        env.reset(seed=0)
        guide = Guide(env, COURSES["antmaze-umaze"])
        guide.start(None)
        assert not any(guide.is_stuck(on_back) for _ in range(MOST_BACK_STEPS - 1))
        assert guide.is_stuck(on_back)
        assert not guide.is_stuck(upright) and not guide.is_stuck(on_back)


def test_the_legs_are_renamed_for_large_changes_of_the_direction_alone():
    bodies = []
    walker = Walker(lambda obs, rng: bodies.append(obs) or np.zeros(8))
    obs = np.zeros(29)
    obs[2:4] = 0.75, 1
    turns = []
    # The ant's yaw is 0, that of its walk 20 degrees to the left of the direction.
    for degrees in (-20, 20, 30, 45, 90, 45):
        angle = np.radians(degrees)
        walker(obs, 3 * np.array([np.cos(angle), np.sin(angle)]), None)
        turns.append(walker.turns)
    assert turns == [0, 0, 0, 1, 1, 1]
    assert all(len(body) == 111 and body[1] > 0.5 and not body[27:].any() for body in bodies)


def test_a_steered_sampler_takes_its_likeliest_actions(ant):
    act = read_walker(str(ant), (111, 8)).start()
    obs, rng = np.linspace(-1, 1, 111), np.random.default_rng(0)
    np.testing.assert_array_equal(act(obs, rng), act(obs, rng))
    hidden = np.maximum(obs @ ANT["w0"] + ANT["b0"], 0)
    np.testing.assert_allclose(act(obs, rng), np.tanh(hidden @ ANT["w1"] + ANT["b1"]), atol=1e-5)
