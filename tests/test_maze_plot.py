"""The picture of an evaluation in a maze."""

import numpy as np
import pytest
import torch
from toy_bundles import make_bundle

from fastdwm.config import ITPOConfig
from fastdwm.eval import __main__ as eval
from fastdwm.eval.config import EvalConfig
from fastdwm.eval.maze_plot import POINTS_PER_CELL, Track, value_field
from fastdwm.models.policy import mlp_policy
from fastdwm.models.rebrac import q_values
from fastdwm.tasks import get_task

pytest.importorskip("gymnasium_robotics")
TASK = get_task("antmaze-umaze")


def observations(*tilts):
    """Observations (T, 29) at x = 0, 1, ..., of ants turned about their x axis by these angles in degrees."""
    obs = np.zeros((len(tilts), 29))
    obs[:, 0] = np.arange(len(tilts))
    half = np.radians(tilts) / 2
    obs[:, 3], obs[:, 4] = np.cos(half), np.sin(half)
    return obs


def test_an_evaluation_in_a_maze_leaves_a_picture_of_it(tmp_path, capsys, quick):
    make_bundle(task=TASK).save(tmp_path / "bundle")
    itpo = ITPOConfig(horizon=2, particles=2, optimiser="sgd", inner_lr=0.1)
    config = EvalConfig(tmp_path / "bundle", episodes=2, max_steps=5, itpo=itpo, out=tmp_path / "out", plot=True)
    eval.main("antmaze-umaze", config)
    (path,) = (tmp_path / "out").glob("*-maze.png")
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "tilts, fall", [((0, 30, 60), None), ((0, 170, 10), None), ((0, 80, 100, 180), 2), ((180, 180), 0)]
)
def test_a_fall_is_where_the_ant_turned_over_for_good(tilts, fall):
    place = Track(observations(*tilts), np.zeros(2), reached=False).fall
    assert place is None if fall is None else place[0] == fall


def test_the_value_is_that_of_the_critics_at_the_position():
    bundle = make_bundle(task=TASK)
    with TASK.env.make() as simulator:
        maze = simulator.unwrapped.maze
        posture = simulator.reset(seed=0)[0]
    field = value_field(bundle, maze, posture[None])
    # The first free cell is the second of the second row; here is its upper left point.
    n = POINTS_PER_CELL
    corner = maze.cell_rowcol_to_xy(np.array([1, 1])) + np.array([-1, 1]) * maze.maze_size_scaling * (n - 1) / (2 * n)
    again = value_field(bundle, maze, np.concatenate([corner + 100, posture[2:]])[None])
    assert np.isnan(field[:n]).all() and np.isfinite(field[n : 2 * n, n : 2 * n]).all()
    np.testing.assert_allclose(field, again)
    obs = torch.from_numpy(np.concatenate([corner, posture[2:]])).float()[None]
    assert field[n, n] == pytest.approx(float(q_values(bundle.critics, obs, mlp_policy(bundle.policy, obs)).amin()))
