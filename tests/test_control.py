"""Control of an evaluation: the base policy, pushed as far as ITPO may, in a meaningless direction."""

import math

import numpy as np
import pytest
from toy_agents import observations
from toy_bundles import ACTION_DIM, make_bundle

from fastdwm import Agent, ITPOConfig
from fastdwm.measure.control import MEMORY, Drift

SIZE = 0.05


@pytest.fixture(scope="module")
def bundle():
    """Bundle of a policy whose actions are far from the limits, so that no push is clipped."""
    quiet = make_bundle()
    quiet.policy["w2"] *= 0.01
    return quiet


def pushes(bundle, obs, **settings):
    """Differences of the control's actions to the base policy's, (decisions, episodes, A)."""
    drift, base = Drift(bundle, **{"size": SIZE} | settings), Agent.of(bundle, ITPOConfig(inner_steps=0))
    return np.stack([drift.act(o) - base.act(o) for o in obs])


def test_every_action_is_as_far_from_the_base_policys_as_asked(bundle):
    pushed = pushes(bundle, observations(20, 5))
    np.testing.assert_allclose(np.sqrt(np.square(pushed).mean(2)), SIZE, rtol=1e-4)


def test_actions_stay_within_their_limits():
    actions = np.stack([Drift(make_bundle(), 1.5).act(o) for o in observations(5, 20)])
    assert np.abs(actions).max() == 1 and actions.dtype == np.float32


def test_one_observation_or_a_batch(bundle):
    obs = observations(1, 3)[0]
    single = Drift(bundle, SIZE).act(obs[0])
    assert single.shape == (ACTION_DIM,)
    np.testing.assert_allclose(single, Drift(bundle, SIZE).act(obs)[0], atol=1e-6)


def test_the_direction_wanders_slowly_and_means_nothing(bundle):
    """It hardly changes in one decision, is another one after two memories, and averages to zero."""
    pushed = pushes(bundle, observations(2 * MEMORY, 1000)) / (SIZE * math.sqrt(ACTION_DIM))
    near, far = ((pushed[0] * pushed[m]).sum(1) for m in (1, 2 * MEMORY - 1))
    assert 0.9 < near.mean() < 0.99 and 0 < far.mean() < 0.25 and far.min() < -0.5
    assert np.abs(pushed[0].mean(0)).max() < 4 / math.sqrt(3 * 1000)


def test_a_seed_determines_every_push_and_each_episode_has_its_own(bundle):
    obs = observations(6, 3)
    pushed = pushes(bundle, obs, seed=40)
    np.testing.assert_array_equal(pushed, pushes(bundle, obs, seed=40))
    np.testing.assert_allclose(pushed[:, 1:2], pushes(bundle, obs[:, 1:2], seed=41), atol=1e-6)
    assert np.abs(pushed[:, 0] - pushed[:, 1]).max() > 0.1 * SIZE


def test_episodes_leave_and_begin_anew(bundle):
    obs, drift = observations(6, 3), Drift(bundle, SIZE)
    expected = [drift.act(o) for o in obs]
    drift.reset()
    np.testing.assert_array_equal([drift.act(o) for o in obs[:3]], expected[:3])
    drift.keep(np.array([True, False, True]))
    np.testing.assert_allclose([drift.act(o[[0, 2]]) for o in obs[3:]], [a[[0, 2]] for a in expected[3:]], atol=1e-6)
