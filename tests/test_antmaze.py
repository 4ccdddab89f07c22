"""The simulator of AntMaze is the one that the scores were made with, and its states follow from observations."""

import dataclasses
import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from commands import input_error, refused, run
from toy_bundles import make_bundle

from fastdwm.data import replay
from fastdwm.data.dataset import Transitions
from fastdwm.data.recordings import derive
from fastdwm.envs import ROBOTICS
from fastdwm.tasks import get_task

UMAZE = get_task("antmaze-umaze")
# Middle of the start's and the goal's cell in the simulator, whose origin is the middle of the maze (m), and the cap.
MAZES = {
    "antmaze-umaze": ((-4.0, -4.0), (-4.0, 4.0), 700),
    "antmaze-medium-play": ((-10.0, 10.0), (10.0, -10.0), 1000),
    "antmaze-large-diverse": ((-18.0, 12.0), (14.0, -12.0), 1000),
}


@pytest.mark.parametrize("name", MAZES)
def test_the_ant_starts_in_one_cell_and_the_goal_lies_in_another(name):
    start, goal, _ = MAZES[name]
    with get_task(name).env.make() as env:
        starts, goals = [], []
        for seed in range(40):
            starts.append(env.reset(seed=seed)[0][:2])
            goals.append(env.unwrapped.goal.copy())
    for points, centre in ((starts, start), (goals, goal)):
        distance = np.abs(np.array(points) - centre)
        # Uniform within 1 m of the centre.
        assert distance.max() <= 1 and distance.max(0).min() > 0.9


@pytest.mark.parametrize("name", MAZES)
def test_an_episode_without_success_is_truncated_at_the_cap(name):
    with get_task(name).env.make() as env:
        env.reset(seed=0)
        steps = [env.step(np.zeros(8, np.float32))[1:4] for _ in range(MAZES[name][2])]
    assert steps[:-1] == [(0.0, False, False)] * (len(steps) - 1) and steps[-1] == (0.0, False, True)


@pytest.mark.parametrize("distance", [0.43, 0.47])
def test_within_45_cm_of_the_goal_the_episode_ends_with_reward_1(distance):
    with UMAZE.env.make() as env:
        obs, _ = env.reset(seed=0)
        maze, success = env.unwrapped, distance < 0.45
        maze.ant_env.set_state(np.append(maze.goal + [0, distance], obs[2:15]), np.zeros(14))
        obs, reward, terminated, truncated, _ = env.step(np.zeros(8, np.float32))
        assert np.linalg.norm(obs[:2] - maze.goal) == pytest.approx(distance, abs=0.01)
        assert (reward, terminated, truncated) == (float(success), success, False)


def test_an_observation_is_the_whole_state_with_the_position_first():
    with UMAZE.env.make() as env:
        env.reset(seed=0)
        for _ in range(20):
            obs, *_ = env.step(env.action_space.sample())
        data = env.unwrapped.data
        np.testing.assert_array_equal(obs, np.concatenate([data.qpos, data.qvel]))


def test_a_simulator_leaves_no_file():
    with UMAZE.env.make() as env:
        assert env.unwrapped.tmp_xml_file_path and not Path(env.unwrapped.tmp_xml_file_path).exists()


def record(seed=3, steps=150):
    """Transitions of one episode of random actions."""
    rng = np.random.default_rng(seed)
    columns = {name: [] for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated")}
    with UMAZE.env.make() as env:
        obs, _ = env.reset(seed=seed)
        for t in range(steps):
            action = rng.uniform(-1, 1, 8).astype(np.float32)
            next_obs, reward, terminated, *_ = env.step(action)
            row = obs, action, reward, next_obs, terminated, t == steps - 1
            for values, value in zip(columns.values(), row, strict=True):
                values.append(value)
            obs = next_obs
    kinds = {"terminated": bool, "truncated": bool}
    arrays = {name: np.array(values, kinds.get(name, np.float32)) for name, values in columns.items()}
    return Transitions(**derive(arrays | {"next_obs_known": np.ones(steps, bool)}), source="random", env=UMAZE.env)


def test_a_recorded_trajectory_replays_from_its_observations():
    recorded = record()
    with replay.Simulator(UMAZE.env, reward_scale=100.0) as simulator:
        for obs, action, next_obs in zip(recorded.obs, recorded.action, recorded.next_obs, strict=True):
            values, reward, terminated = simulator.step(obs.astype(float), action)
            np.testing.assert_allclose(values, next_obs, atol=1e-5)
            assert (reward, terminated) == (0.0, False)
    replay.check(recorded)


@pytest.mark.parametrize("change", [{"action": 0.5}, {"obs": 1.01, "next_obs": 1.01}])
def test_data_of_another_scale_are_refused(change):
    recorded = record()
    scaled = {name: factor * getattr(recorded, name) for name, factor in change.items()}
    with input_error("random: replayed in AntMaze_UMaze-v4, observations are off by"):
        replay.check(dataclasses.replace(recorded, **scaled))


def test_a_report_measures_the_gradients_of_a_maze(tmp_path):
    make_bundle(task=UMAZE).save(tmp_path / "bundle")
    flags = "--episodes=1", "--max-steps=20", "--jacobian-states=2", "--return-states=2", "--particles=2"
    done = run("report", "models", tmp_path / "bundle", f"--out={tmp_path}/out", *flags)
    assert done.returncode == 0, done.stderr
    assert "d next observation / d action" in done.stdout and "nan" not in done.stdout


def test_the_table_shows_the_success_rate(tmp_path, quick):
    make_bundle(task=UMAZE).save(tmp_path / "bundle")
    small = "--episodes=2", "--max-steps=3", "--backend=reference", "--itpo.particles=1", "--itpo.horizon=1"
    done = run("eval", "antmaze-umaze", f"--bundle={tmp_path}/bundle", f"--out={tmp_path}/out", *small)
    assert done.returncode == 0, done.stderr
    # No success in two episodes: Wilson's upper end is z^2 / (2 + z^2).
    assert done.stdout.count("0.0 [0.0, 65.8]") == 2 and "success rate in %" in done.stdout
    assert "Wilson's of a rate" in done.stdout and "interquartile mean" not in done.stdout
    summary = json.loads(next((tmp_path / "out").glob("*.json")).read_text())["summary"]
    assert summary["itpo"]["success_pct"]["high"] == pytest.approx(65.76, abs=0.01)


@pytest.mark.parametrize("version", ["1.3.1", "none"])
def test_another_version_of_the_simulator_is_one_line(monkeypatch, tmp_path, version):
    actual = metadata.version

    def other(name):
        if name != "gymnasium-robotics":
            return actual(name)
        if version == "none":
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", other)
    make_bundle(task=UMAZE).save(tmp_path / "bundle")
    done = run("eval", "antmaze-umaze", f"--bundle={tmp_path}/bundle", f"--out={tmp_path}/out", "--episodes=1")
    refused(done, f"expected gymnasium-robotics {ROBOTICS}", f"{version} is installed; pip install 'fastdwm[antmaze]'")


def test_a_simulator_that_cannot_be_imported_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with input_error("AntMaze: gymnasium-robotics cannot be imported"):
        UMAZE.env.make()


def test_the_extra_installs_the_version_of_the_scores():
    root = Path(__file__).parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pin = f"gymnasium-robotics=={ROBOTICS}"
    assert extras["antmaze"] == [pin] and pin in extras["test"]
    assert pin in (root / "constraints.txt").read_text().splitlines()
