"""AntMaze recordings, which continue after the goal: an episode ends at its first success."""

import json
import math

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from commands import input_error
from minari.data_collector import EpisodeBuffer
from toy_data import filled

from fastdwm.data.dataset import load
from fastdwm.data.recordings import Form, read_d4rl
from fastdwm.tasks import get_task

# minari warns of missing metadata.
pytestmark = [pytest.mark.usefixtures("private_folders"), pytest.mark.filterwarnings("ignore::UserWarning:minari")]

UMAZE = get_task("antmaze-umaze")


@pytest.fixture
def antmaze_file(tmp_path):
    """Path of a D4RL file of four short recordings and a cut one; a row's observation is its number.

    Rows 0-3 reach the goal in row 1 and leave it, rows 4-6 never do, row 7 is there at once, rows 8-9 reach it with
    the timeout and the file stops in the middle of rows 10-11.
    """
    terminals, timeouts = np.zeros(12, np.float32), np.zeros(12, np.float32)
    terminals[[1, 2, 7, 9]], timeouts[[3, 6, 7, 9]] = 1, 1
    arrays = {"observations": filled(range(12), 29), "actions": filled(np.arange(12) / 16, 8)}
    path = tmp_path / "antmaze_umaze-v2.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in (arrays | {"rewards": terminals, "terminals": terminals, "timeouts": timeouts}).items():
            file[key] = values
    return path


def test_a_d4rl_trajectory_ends_at_its_first_terminal_or_its_timeout(antmaze_file):
    columns = read_d4rl(antmaze_file, "antmaze", pytest.fail, Form(ends_at_success=True))
    assert columns["obs"][:, 0].tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11]
    assert columns["terminated"].tolist() == [0, 1, 0, 0, 0, 1, 0, 1, 0, 0]
    assert columns["truncated"].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    # The next action is zero after an episode's last row.
    assert (16 * columns["next_action"][:, 0]).tolist() == [1, 0, 5, 6, 0, 0, 9, 0, 11, 0]
    assert columns["reward"].sum() == 3


def test_an_antmaze_file_of_d4rl_is_refused_before_it_is_read(antmaze_file):
    antmaze_file.write_bytes(b"never read")
    with input_error("AntMaze file cannot be used: it has another ant .*origin at the start, y mirrored"):
        load(UMAZE, str(antmaze_file))


def minari_maze(tmp_path, maze=None, id="AntMaze_UMaze-v4", contact_forces=0, **kwargs):
    """Write two episodes of a continuing task: one at the goal in steps 2 and 3 of 4, one that never is.

    maze: none: the metadata do not name the simulator.   kwargs: further arguments of the simulator.
    """
    size = 27 + contact_forces
    box = gymnasium.spaces.Box
    space = {"achieved_goal": box(-9, 9, (2,)), "desired_goal": box(-9, 9, (2,)), "observation": box(-9, 9, (size,))}
    spaces = {"observation_space": gymnasium.spaces.Dict(space), "action_space": box(-1, 1, (8,))}
    episodes = []
    for start, rewards in ((0, [0.0, 1.0, 1.0, 0.0]), (5, [0.0, 0.0])):
        n = len(rewards)
        rows = start + np.arange(n + 1)
        obs = {
            "achieved_goal": filled(rows, 2),
            "desired_goal": filled(rows, 2),
            "observation": filled(100 + rows, size),
        }
        flags = {"terminations": [False] * n, "truncations": [False] * (n - 1) + [True]}
        episodes.append(EpisodeBuffer(observations=obs, actions=filled([0.5] * n, 8), rewards=rewards, **flags))
    minari.create_dataset_from_buffers("toy/maze-v0", episodes, **spaces)
    if maze is not None:
        path = tmp_path / "minari/toy/maze-v0/data/metadata.json"
        kwargs = {"maze_map": maze, "continuing_task": True, "reset_target": False} | kwargs
        spec = {"id": id, "kwargs": kwargs, "max_episode_steps": 700}
        path.write_text(json.dumps({**json.loads(path.read_text()), "env_spec": json.dumps(spec)}))
    return "toy/maze-v0"


def marked(maze, start, goal):
    """Maze with cells marked r at `start` and g at `goal`; none: no such mark."""
    cells = [[1 if cell == 1 else 0 for cell in row] for row in maze]
    for mark, cell in (("r", start), ("g", goal)):
        if cell is not None:
            cells[cell[0]][cell[1]] = mark
    return cells


OWN = UMAZE.env.kwargs["maze_map"]


@pytest.mark.parametrize("maze", [None, OWN], ids=["none", "own"])
def test_a_minari_episode_ends_at_its_first_success(tmp_path, maze):
    data = load(UMAZE, minari_maze(tmp_path, maze))
    # A position, then the rest.
    assert data.obs[:, :3].tolist() == [[row, row, 100 + row] for row in (0, 1, 5, 6)]
    assert data.next_obs[:, 0].tolist() == [1, 2, 6, 7]
    assert data.terminated.tolist() == [0, 1, 0, 0] and data.truncated.tolist() == [0, 0, 0, 1]
    assert data.episode_returns().tolist() == [1, 0]
    assert data.env.kwargs["continuing_task"] is False and data.env.kwargs["maze_map"] == OWN


OTHER_MAZES = {
    "other goal": marked(OWN, (3, 1), (3, 3)),
    "mirrored": OWN[::-1],
    "walls": [row[::-1] for row in OWN],
    "size": get_task("antmaze-medium-play").env.kwargs["maze_map"],
    "nonsense": math.pi,
}


@pytest.mark.parametrize("maze", OTHER_MAZES.values(), ids=OTHER_MAZES)
def test_a_minari_dataset_of_another_maze_is_refused(tmp_path, maze):
    expected = "cannot be read" if maze is math.pi else "expected data of the maze of antmaze-umaze"
    with input_error(f"toy/maze-v0: {expected}"):
        load(UMAZE, minari_maze(tmp_path, maze))


def with_goals(*goals):
    """The task's maze with further goals."""
    cells = marked(OWN, (3, 1), (1, 1))
    for i, j in goals:
        cells[i][j] = "g"
    return cells


MOVING_GOALS = {
    "in any cell": {"maze": marked(OWN, None, None)},
    "several": {"maze": with_goals((1, 3))},
    "several cells of goal or start": {"maze": [["c" if cell == 0 else cell for cell in row] for row in OWN]},
    "reset": {"maze": OWN, "reset_target": True},
    "diverse": {"maze": OWN, "id": "AntMaze_UMaze_Diverse_GR-v4"},
}


@pytest.mark.parametrize("recorded", MOVING_GOALS.values(), ids=MOVING_GOALS)
def test_a_goal_that_moves_is_refused(tmp_path, recorded):
    with input_error("toy/maze-v0: expected the one goal of antmaze-umaze, got a goal that moves"):
        load(UMAZE, minari_maze(tmp_path, **recorded), trust_env=True)


def test_a_dense_reward_is_refused(tmp_path):
    with input_error("'reward_type' = 'dense' is not known"):
        load(UMAZE, minari_maze(tmp_path, OWN, reward_type="dense"))


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({"maze": OWN, "id": "AntMaze_UMaze-v5"}, "got those of AntMaze_UMaze-v5, which add 78 contact forces"),
        ({"maze": None}, "expected obs of size 29 for antmaze-umaze, got 107"),
    ],
)
def test_observations_with_contact_forces_are_refused(tmp_path, recorded, message):
    with input_error(f"toy/maze-v0: .*{message}"):
        load(UMAZE, minari_maze(tmp_path, contact_forces=78, **recorded), trust_env=True)


def test_only_a_level_whose_public_data_have_its_goal_has_public_data():
    assert UMAZE.minari_id == "D4RL/antmaze/umaze-v1"
    with input_error("no public dataset for antmaze-medium-play"):
        load(get_task("antmaze-medium-play"))
