"""Recorded returns in the training of critics: n-step targets, bounds, and the weights of behaviour cloning."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import generator

from fastdwm.data.dataset import Transitions
from fastdwm.data.recordings import derive
from fastdwm.models.config import ReBRACConfig
from fastdwm.models.rebrac import cloning_weights, critic_target, init_critics, init_policy
from fastdwm.tasks import TASKS, get_task
from fastdwm.train.__main__ import cpu, presets
from fastdwm.train.returns import return_columns

CONFIG = ReBRACConfig(discount=0.5).for_task(get_task("antmaze-umaze"))


@pytest.fixture
def transitions():
    """Two episodes of three steps: the first reaches its goal, the second is cut off."""
    obs = np.arange(8, dtype=np.float32)[:, None]
    rows = np.array([0, 1, 2, 4, 5, 6])
    arrays = {"obs": obs[rows], "next_obs": obs[rows + 1], "action": obs[rows] / 10}
    arrays |= {"reward": np.array([0, 4, 8, 0, 0, 16], np.float32), "next_obs_known": np.ones(6, bool)}
    arrays |= {"terminated": rows == 2, "truncated": rows == 6}
    return Transitions(**derive(arrays), source="by hand", env=get_task("antmaze-umaze").env)


def test_n_steps_end_at_a_goal_and_before_a_step_whose_next_action_is_unknown(transitions):
    columns = return_columns(transitions, replace(CONFIG, n_step=2))
    used = transitions.critic_rows
    # Rows 0 to 4; row 5 is truncated. Row 4 may use one step only, for the next is truncated.
    assert columns["reward"][used].tolist() == [2, 8, 8, 0, 0]
    assert columns["discount"][used].tolist() == [0.25, 0.25, 0.5, 0.25, 0.5]
    assert columns["next_obs"][used].ravel().tolist() == [2, 3, 3, 6, 6]
    assert columns["terminated"][used].tolist() == [False, True, True, False, False]
    np.testing.assert_allclose(columns["next_action"][used][[0, 3, 4], 0], [0.2, 0.6, 0.6])


def test_one_step_needs_no_columns(transitions):
    assert return_columns(transitions, CONFIG) == {}


def test_the_recorded_return_bounds_the_target(transitions):
    returns = return_columns(transitions, replace(CONFIG, return_bound=True))["return"]
    assert returns.tolist() == [4, 8, 8, 4, 8, 16]
    policy, critics = init_policy(1, 1, (8,), generator()), init_critics(1, 1, (8,), generator(1))
    batch = {"next_obs": torch.zeros(2, 1), "next_action": torch.zeros(2, 1), "terminated": torch.ones(2)}
    batch |= {"reward": torch.tensor([1.0, 3.0]), "return": torch.tensor([2.0, 2.0])}
    assert critic_target(policy, critics, batch, torch.zeros(2, 1), CONFIG).tolist() == [2, 3]


def test_behaviour_cloning_follows_actions_that_led_to_more_than_expected():
    # The largest target is 99, so 0.99 is added to both: ratios 99.99 / 49.99 ..., 1, and less than 1.
    weights = cloning_weights(torch.tensor([99.0, 10.0, 4.51]), torch.tensor([49.005, 10.0, 10.0]), 2.0)
    torch.testing.assert_close(weights, torch.tensor([3.0, 1.0, (5.5 / 10.99) ** 2]))


def test_states_from_which_the_data_reach_no_reward_weigh_the_same():
    assert cloning_weights(torch.zeros(3), torch.tensor([-1.0, 0.0, 0.0]), 6.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith("antmaze")])
def test_the_preset_for_mazes_uses_recorded_returns_and_leaves_the_others_alone(task):
    maze, hopper = (cpu(name, presets()["cpu"]).rebrac for name in (task, "hopper-medium"))
    assert maze.n_step > 1 and maze.return_bound and maze.advantage_power > 0
    assert (hopper.n_step, hopper.return_bound, hopper.advantage_power) == (1, False, 0)
