"""Task table against the paper's list, and scores worked out by hand."""

import math

import pytest
from commands import input_error

from fastdwm.errors import InputError
from fastdwm.tasks import TASKS, Limit, get_task


def test_there_are_the_papers_24_tasks():
    names = {
        f"{env}-{level}"
        for env in ("halfcheetah", "hopper", "walker2d")
        for level in ("random", "medium", "expert", "medium-expert", "medium-replay", "full-replay")
    }
    names |= {f"antmaze-{level}" for level in ("umaze", "umaze-diverse")}
    names |= {f"antmaze-{size}-{goal}" for size in ("medium", "large") for goal in ("play", "diverse")}
    assert set(TASKS) == names
    assert all(task.name == name for name, task in TASKS.items())


def test_score_is_linear_between_the_reference_returns():
    hopper = get_task("hopper-medium")
    assert hopper.score_pct(-20.272305) == 0.0
    assert hopper.score_pct(3234.3) == 100.0
    # 100 * (1607.0138475 + 20.272305) / (3234.3 + 20.272305) = 100 * 1627.2861525 / 3254.572305
    assert hopper.score_pct(1607.0138475) == pytest.approx(50.0)
    assert get_task("antmaze-umaze").score_pct(0.25) == 25.0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hopper-medium-replay", (0.05, 0.5, 1e-3, 1e-3, 1024, 0.99, 1.0, 1000)),
        ("walker2d-random", (0.01, 0.0, 1e-3, 1e-3, 1024, 0.99, 1.0, 1000)),
        ("halfcheetah-medium-expert", (0.01, 0.1, 1e-3, 1e-3, 1024, 0.99, 1.0, 1000)),
        ("antmaze-medium-play", (0.001, 0.0005, 3e-4, 5e-5, 256, 0.999, 100.0, 1000)),
        ("antmaze-umaze-diverse", (0.003, 0.001, 3e-4, 5e-5, 256, 0.999, 100.0, 700)),
    ],
)
def test_training_settings_are_those_of_the_table(name, settings):
    task = get_task(name)
    coefs = (task.actor_bc_coef, task.critic_bc_coef, task.actor_lr, task.critic_lr)
    assert (*coefs, task.batch_size, task.discount, task.reward_scale, task.env.max_episode_steps) == settings


def test_healthy_regions():
    hopper = get_task("hopper-medium").limits
    assert hopper[:3] == (Limit(0, 0.7, math.inf), Limit(1, -0.2, 0.2), Limit(2, -100, 100))
    assert [limit.index for limit in hopper] == list(range(11))
    assert get_task("walker2d-medium").limits == (Limit(0, 0.8, 2.0), Limit(1, -1.0, 1.0))
    assert get_task("halfcheetah-medium").limits == get_task("antmaze-umaze").limits == ()


def test_mazes_are_closed_rectangles_with_one_start_and_one_goal():
    for name in ("umaze", "medium-play", "large-diverse"):
        maze = get_task(f"antmaze-{name}").env.kwargs["maze_map"]
        assert len({len(row) for row in maze}) == 1
        assert set(maze[0]) == set(maze[-1]) == {row[0] for row in maze} == {row[-1] for row in maze} == {1}
        cells = [cell for row in maze for cell in row]
        assert cells.count("r") == cells.count("g") == 1 and set(cells) == {0, 1, "r", "g"}


def test_an_unknown_task_names_the_nearest_in_one_line():
    with input_error("unknown task 'hoper-medium'; nearest: hopper-medium, "):
        get_task("hoper-medium")
    with pytest.raises(InputError, match="antmaze-umaze"):
        get_task("")
