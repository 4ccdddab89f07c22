"""Inner steps within a time limit, with a manual clock and in the agent."""

from dataclasses import replace

import numpy as np
import pytest
from toy_agents import CONFIG, RULES, observations
from toy_bundles import make_bundle

from fastdwm import Agent
from fastdwm.config import ITPOConfig
from fastdwm.itpo.deadline import LEARNING, Deadline


class Clock:
    """Manual clock."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Decisions:
    """Decisions that take `start_s`, then `step_s` for each step, then `rest_s` on a manual clock."""

    def __init__(self, limit_s, step_s, rest_s=0.0, start_s=0.0):
        self.clock, self.step_s, self.rest_s, self.start_s = Clock(), step_s, rest_s, start_s
        self.deadline = Deadline(limit_s, self.clock)

    def decide(self, limit, at_once=False):
        """Make one decision; returns its number of steps."""
        taken = []
        self.deadline.start()
        self.clock.now += self.start_s
        if at_once:

            def run(n):
                taken.extend(range(n))
                self.clock.now += n * self.step_s

            self.deadline.at_once(limit, run)
        else:
            for i in self.deadline.steps(limit):
                taken.append(i)
                self.clock.now += self.step_s
        self.clock.now += self.rest_s
        self.deadline.finish()
        assert taken == list(range(len(taken)))
        return len(taken)


@pytest.mark.parametrize("at_once", [False, True])
def test_as_many_steps_as_fit_with_what_follows_them(at_once):
    decisions = Decisions(limit_s=1.0, step_s=0.125, rest_s=0.25)
    for _ in range(LEARNING):
        decisions.decide(1)
    # 6 * 0.125 + 0.25 is the limit to the bit.
    assert decisions.decide(100, at_once) == 6
    assert decisions.decide(4, at_once) == 4
    assert (decisions.deadline.decisions, decisions.deadline.missed) == (LEARNING + 2, 0)


@pytest.mark.parametrize("at_once", [False, True])
def test_costs_are_kept_up_to_date(at_once):
    decisions = Decisions(limit_s=1.0, step_s=0.25)
    assert [decisions.decide(8, at_once) for _ in range(6)][-1] == 4
    decisions.step_s = 0.5
    # Steps have become slower: one decision may be late, then fewer steps are taken.
    assert [decisions.decide(8, at_once) for _ in range(3)][-1] == 2
    assert decisions.deadline.missed <= 1
    decisions.step_s = 0.125
    assert [decisions.decide(8, at_once) for _ in range(30)][-1] == 8


def test_a_slow_step_ends_the_decision_early():
    decisions = Decisions(limit_s=1.0, step_s=0.125)
    for _ in range(LEARNING):
        decisions.decide(1)
    decisions.deadline.start()
    taken = 0
    for i in decisions.deadline.steps(8):
        decisions.clock.now += 0.5 if i == 1 else 0.125
        taken += 1
    decisions.deadline.finish()
    # 0.125 + 0.5 are gone; another step may take 0.5 again.
    assert taken == 2
    assert decisions.deadline.missed == 0


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("where", ["start_s", "step_s", "rest_s"])
def test_one_hiccup_anywhere_does_not_end_the_adaptation(at_once, where):
    """A decision without a step must not count the 4 ms before the first step as time after the steps."""
    decisions = Decisions(limit_s=0.010, step_s=0.002, rest_s=0.0005, start_s=0.004)
    taken = [decisions.decide(8, at_once) for _ in range(30)]
    usual = getattr(decisions, where)
    setattr(decisions, where, 0.1)
    decisions.decide(8, at_once)
    setattr(decisions, where, usual)
    assert [decisions.decide(8, at_once) for _ in range(40)][-1] == taken[-1] == 2


@pytest.mark.parametrize("at_once", [False, True])
def test_one_hiccup_among_the_first_steps_does_not_end_the_adaptation(at_once):
    decisions = Decisions(limit_s=1.0, step_s=0.25)
    for step_s in (0.25, 1.5, 0.25):
        decisions.step_s = step_s
        decisions.decide(1)
    assert [decisions.decide(8, at_once) for _ in range(3)][-1] == 4


@pytest.mark.parametrize("at_once", [False, True])
def test_a_limit_that_is_too_short_is_not_tried_again_and_again(at_once):
    decisions = Decisions(limit_s=1.0, step_s=1.5)
    taken = [decisions.decide(3, at_once) for _ in range(100)]
    assert sum(taken) == LEARNING
    assert decisions.deadline.missed <= LEARNING


def act_in_turn(agent, obs):
    return np.stack([agent.act(o) for o in obs])


@RULES
def test_a_deadline_far_away_changes_nothing(config):
    bundle, obs, config = make_bundle(), observations(4, 2), replace(config, inner_steps=3)
    limited = Agent.of(bundle, config, deadline_ms=1e6)
    limited.warm_up(obs[0])
    assert np.array_equal(act_in_turn(Agent.of(bundle, config), obs), act_in_turn(limited, obs))
    assert (limited.deadline.decisions, limited.deadline.steps_done, limited.deadline.missed) == (4, 12, 0)
    assert (limited.diagnose()["inner_steps"] == 3).all()


@RULES
def test_without_time_for_a_step_the_base_policy_acts(config):
    bundle, obs = make_bundle(), observations(4, 2)
    agent = Agent.of(bundle, config, deadline_ms=1e-3)
    agent.warm_up(obs[0])
    base = Agent.of(bundle, ITPOConfig(inner_steps=0))
    assert np.array_equal(act_in_turn(base, obs), act_in_turn(agent, obs))
    assert agent.deadline.missed == agent.deadline.decisions == 4
    assert (agent.diagnose()["inner_steps"] == 0).all()


def test_warm_up_within_an_episode_leaves_it_alone():
    bundle, obs = make_bundle(), observations(5, 1)
    plain, warmed = Agent.of(bundle, CONFIG), Agent.of(bundle, CONFIG)
    warmed.act(obs[0])
    warmed.warm_up(obs[1])
    plain.act(obs[0])
    assert np.array_equal(act_in_turn(plain, obs[1:]), act_in_turn(warmed, obs[1:]))
