"""Agent: shapes, episodes, carry-over, bad input."""

import math
import re
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from commands import input_error
from toy_agents import CONFIG, RULES, SGD, observations
from toy_bundles import ACTION_DIM, OBS_DIM, make_bundle

from fastdwm import Agent
from fastdwm.measure.simulate import run_episodes
from fastdwm.models.policy import Policy


@pytest.fixture(scope="module")
def bundle():
    return make_bundle()


def test_one_observation_or_a_batch(bundle):
    obs = observations(1, 3)[0]
    single = Agent.of(bundle, CONFIG).act(obs[0])
    batch = Agent.of(bundle, CONFIG).act(obs)
    assert single.shape == (ACTION_DIM,) and single.dtype == np.float32
    assert batch.shape == (3, ACTION_DIM) and np.abs(batch).max() <= 1
    np.testing.assert_allclose(single, batch[0], atol=1e-6)


def test_adaptation_changes_the_action_and_no_inner_steps_does_not(bundle):
    obs = observations(1, 2)[0]
    base = Agent.of(bundle, replace(SGD, inner_steps=0)).act(obs)
    assert np.abs(Agent.of(bundle, SGD).act(obs) - base).max() > 1e-5
    np.testing.assert_array_equal(Agent.of(bundle, replace(SGD, inner_lr=0.0)).act(obs), base)


def root_mean_square(values):
    """Root mean square of each row."""
    return np.sqrt(np.square(values).mean(1))


def test_no_action_is_further_from_the_base_policys_than_max_deviation(bundle):
    """With steps as large as the bound, later decisions exceed it and are clipped."""
    obs, bold = observations(6, 3), replace(CONFIG, action_step=0.05)
    base = Agent.of(bundle, replace(CONFIG, inner_steps=0))
    for config, bound in ((bold, bundle.max_deviation), (replace(bold, max_deviation=0.02), 0.02)):
        agent, counts = Agent.of(bundle, config), np.zeros(3, int)
        for o in obs:
            deviation = root_mean_square(agent.act(o) - base.act(o))
            diagnosis = agent.diagnose()
            clipped = diagnosis["deviation"] > bound
            np.testing.assert_allclose(deviation, np.where(clipped, bound, diagnosis["deviation"]), rtol=1e-4)
            np.testing.assert_array_equal(diagnosis["clipped"], clipped)
            counts += clipped
            np.testing.assert_array_equal(agent.clipped, counts)
        assert (counts >= 2).all()
        agent.keep(np.array([True, False, True]))
        assert agent.clipped.tolist() == counts[[0, 2]].tolist()


def test_without_a_bound_nothing_is_clipped(bundle):
    obs, bold = observations(6, 2), replace(CONFIG, action_step=0.05)
    agents = [Agent.of(bundle, replace(bold, max_deviation=bound)) for bound in (math.inf, None)]
    for o in obs:
        free, bounded = (agent.act(o) for agent in agents)
    assert agents[0].clipped.tolist() == [0, 0] and (agents[1].clipped > 0).all()
    assert (root_mean_square(free - bounded) > 0.05).all()
    sgd = Agent.of(bundle, SGD)
    sgd.act(obs[0])
    assert sgd.diagnose().keys() == agents[0].diagnose().keys() - {"clipped"} and sgd.clipped.tolist() == [0, 0]


def test_an_agent_of_own_parts_needs_max_deviation(bundle):
    """An agent of a bundle takes the bundle's; for a user's own parts the user must set it."""
    parts = Policy.mlp(bundle.policy), bundle.world()
    with input_error("max_deviation: expected a number for parts of your own .*got none"):
        Agent(*parts, CONFIG)
    obs, fits = observations(1, 2)[0], [replace(CONFIG, max_deviation=x) for x in (bundle.max_deviation, math.inf)]
    np.testing.assert_array_equal(Agent(*parts, fits[0]).act(obs), Agent.of(bundle, CONFIG).act(obs))
    for config in (fits[1], SGD, replace(CONFIG, inner_steps=0)):
        assert np.isfinite(Agent(*parts, config).act(obs)).all()


def test_a_bundle_that_does_not_say_its_bound_says_how_to_get_one(bundle):
    unmeasured = replace(bundle, max_deviation=None)
    with input_error("report deviation BUNDLE.*--itpo.max-deviation"):
        Agent.of(unmeasured, CONFIG)
    obs = observations(1, 2)[0]
    actions = Agent.of(unmeasured, replace(CONFIG, max_deviation=bundle.max_deviation)).act(obs)
    np.testing.assert_array_equal(actions, Agent.of(bundle, CONFIG).act(obs))
    for config in (SGD, replace(CONFIG, inner_steps=0)):
        assert np.isfinite(Agent.of(unmeasured, config).act(obs)).all()


@RULES
@pytest.mark.parametrize("noise", ["decision", "step", "time"])
def test_an_episode_acts_the_same_alone_as_in_a_batch(bundle, config, noise):
    # Episodes 0 and 2 leave early, which must not change episode 1. Its noise comes from seed + 1.
    obs, config = observations(6, 3), replace(config, noise=noise, inner_steps=2)
    agent, alone = Agent.of(bundle, config, seed=40), Agent.of(bundle, config, seed=41)
    together = [agent.act(o)[1] for o in obs[:2]]
    agent.keep(np.array([False, True, True]))
    together += [agent.act(o[1:])[0] for o in obs[2:4]]
    agent.keep(np.array([True, False]))
    together += [agent.act(o[1:2])[0] for o in obs[4:]]
    expected = [alone.act(o[1]) for o in obs]
    np.testing.assert_allclose(together, expected, atol=1e-6)
    base = Agent.of(bundle, replace(CONFIG, inner_steps=0)).act(obs[-1])
    assert np.abs(expected[-1] - base[1]).max() > 1e-4


def test_carry_over_within_an_episode_and_none_with_reset_decision(bundle):
    obs = observations(1, 1)[0, 0]
    carried, fresh = Agent.of(bundle, SGD), Agent.of(bundle, replace(SGD, reset="decision"))
    carried.act(obs), fresh.act(obs)
    first, second = (agent.diagnose()["policy_distance"] for agent in (carried, fresh))
    np.testing.assert_allclose(first, second)
    carried.act(obs), fresh.act(obs)
    assert carried.diagnose()["policy_distance"] > 1.5 * first
    assert fresh.diagnose()["policy_distance"] < 1.5 * first


@RULES
def test_reset_restarts_the_masked_episodes(bundle, config):
    obs = observations(5, 2)
    agent, untouched = Agent.of(bundle, config), Agent.of(bundle, config)
    for o in obs[:4]:
        agent.act(o), untouched.act(o)
    agent.reset(np.array([True, False]))
    actions, expected = agent.act(obs[4]), untouched.act(obs[4])
    np.testing.assert_array_equal(actions[1], expected[1])
    assert agent.diagnose()["policy_distance"][0] < untouched.diagnose()["policy_distance"][0]
    agent.reset()
    assert agent.act(obs[0, 0]).shape == (ACTION_DIM,)


@RULES
def test_full_reset_repeats_the_episode(bundle, config):
    obs, agent = observations(4, 2), Agent.of(bundle, config)
    first = [agent.act(o) for o in obs]
    agent.reset()
    np.testing.assert_array_equal(first, [agent.act(o) for o in obs])


@RULES
def test_reset_never_keeps_the_adapted_policies(bundle, config):
    obs, agent = observations(1, 1)[0, 0], Agent.of(bundle, replace(config, reset="never"))
    for _ in range(3):
        agent.act(obs)
    before = agent.diagnose()["policy_distance"]
    agent.reset()
    agent.act(obs)
    assert before > 1e-4 and agent.diagnose()["policy_distance"] > 1.2 * before


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(OBS_DIM + 1), r"expected shape \(11,\) or \(B, 11\), got \(12,\)"),
        (np.zeros((2, 1, OBS_DIM)), "expected shape"),
        (np.zeros((0, OBS_DIM)), "expected shape"),
        (np.zeros((3, OBS_DIM)), "one row for each of the 2 episodes, got 3"),
        (np.where(np.eye(2, OBS_DIM) == 1, np.nan, 0.0), "finite"),
        (np.where(np.eye(2, OBS_DIM) == 1, np.inf, 0.0), "finite"),
    ],
)
def test_bad_observation_raises_and_leaves_the_agent_usable(bundle, obs, message):
    good = observations(4, 2)
    agent, undisturbed = Agent.of(bundle, CONFIG), Agent.of(bundle, CONFIG)
    agent.act(good[0]), undisturbed.act(good[0])
    with pytest.raises(ValueError, match=message):
        agent.act(obs)
    for o in good[1:]:
        np.testing.assert_array_equal(agent.act(o), undisturbed.act(o))


def test_wrong_mask_raises(bundle):
    agent = Agent.of(bundle, CONFIG)
    agent.act(observations(1, 2)[0])
    for mask in (np.array([True]), np.array([1, 0])):
        with pytest.raises(ValueError, match="mask: expected bool"):
            agent.keep(mask)


def test_exploding_world_is_discarded_counted_and_never_executed(bundle):
    model = bundle.worlds["diffusion"]
    exploding = replace(model, params={name: value * 1e30 for name, value in model.params.items()})
    agent = Agent.of(replace(bundle, worlds={"diffusion": exploding}), CONFIG)
    obs = observations(2, 2)
    base = Agent.of(bundle, replace(CONFIG, inner_steps=0))
    for o in obs:
        np.testing.assert_array_equal(agent.act(o), base.act(o))
    assert agent.discarded.tolist() == [2, 2] and base.discarded.tolist() == [0, 0]


def test_diagnosis_shows_the_ascent(bundle):
    agent = Agent.of(bundle, replace(SGD, inner_lr=1e-3))
    agent.act(observations(1, 3)[0])
    diagnosis = agent.diagnose()
    assert (diagnosis["objective_after"] > diagnosis["objective_before"]).all()
    np.testing.assert_allclose(diagnosis["policy_distance"], 1e-3 * diagnosis["grad_norm"], rtol=1e-3)
    assert Agent.of(bundle, replace(CONFIG, inner_steps=0)).diagnose() == {}


@pytest.mark.parametrize(
    "rule", [{}, {"optimiser": "sgd", "inner_lr": 1e-3}, {"optimiser": "adam", "inner_lr": 1e-3}], ids=str
)
def test_both_backends_take_the_same_steps(bundle, rule):
    """Three steps a decision and five decisions in a row also test the rule's memory."""
    config = replace(CONFIG, inner_steps=3, **rule)
    agents = [Agent.of(bundle, config, backend=backend) for backend in ("reference", "fused")]
    for obs in observations(5, 2):
        first, second = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(first, second, atol=2e-5)
    states = [agent.episodes.adapted for agent in agents]
    for reference, fused in zip(*(state.tensors for state in states), strict=True):
        torch.testing.assert_close(reference, fused, rtol=1e-4, atol=1e-4)
    moved = (states[0].params - agents[0].episodes.base).abs().amax()
    assert moved > 1e-3


def test_noise_by_absolute_time_moves_on_by_one_step(bundle):
    agent, banks = Agent.of(bundle, replace(CONFIG, horizon=3, noise="time")), []
    for i, obs in enumerate(observations(4, 2)):
        agent.act(obs[i // 2 :])
        banks.append(agent.episodes.noise)
        if i == 1:
            agent.keep(np.array([False, True]))
            banks.append(banks.pop()[:, :, :, 1:])
    for before, after in zip(banks[1:], banks[2:], strict=False):
        assert torch.equal(after[:, :-1], before[:, 1:]) and not torch.equal(after[:, -1], before[:, -1])


def test_horizon_zero_has_no_noise_to_shift(bundle):
    agent = Agent.of(bundle, replace(CONFIG, horizon=0, noise="time"))
    assert all(np.isfinite(agent.act(obs)).all() for obs in observations(3, 2))


def test_with_reset_never_another_batch_needs_another_agent(bundle):
    agent = Agent.of(bundle, replace(CONFIG, reset="never"))
    agent.act(observations(1, 2)[0])
    agent.reset()
    with pytest.raises(ValueError, match="each of the 2 episodes, got 3; with reset='never' only a new agent has"):
        agent.act(observations(1, 3)[0])


def test_an_evaluation_gives_every_episode_a_policy_of_its_own(bundle):
    """So in an evaluation `never`, the paper's setting, is the same as `episode`."""
    runs = [
        run_episodes(Agent.of(bundle, replace(SGD, reset=reset)), bundle.task.env, [1, 2], max_steps=5)
        for reset in ("never", "episode")
    ]
    for never, episode in zip(*(run.episodes for run in runs), strict=True):
        np.testing.assert_array_equal(never.actions, episode.actions)


class Watched(Agent):
    """Agent that records every observation, and whether its parameters were the base policy's."""

    def act(self, obs):
        fresh = np.ones(len(obs), bool)
        if self.episodes is not None:
            fresh = (self.episodes.params == self.episodes.base).all(1).numpy()
        self.visited.append((obs, fresh))
        return super().act(obs)


@pytest.mark.parametrize("number", range(3), ids=["next step", "same step", "Stable-Baselines3"])
def test_the_examples_of_vector_environments_start_every_episode_at_the_base_policy(bundle, number):
    page = (Path(__file__).parent.parent / "fastdwm" / "usage.md").read_text()
    codes = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "make_vec" in block]
    agent = Watched.of(bundle, SGD)
    agent.visited = []
    exec(codes[number], {"agent": agent, "gymnasium": gymnasium, "np": np})
    obs, fresh = (np.stack(values) for values in zip(*agent.visited, strict=True))
    # Hopper starts almost at rest and 1.25 m high; later it may rest, but lower.
    first = (np.abs(obs[:, :, 5:]) <= 5e-3).all(-1) & (obs[:, :, 0] >= 1.245)
    assert first.sum() > 2 * first.shape[1]
    np.testing.assert_array_equal(fresh, first)
