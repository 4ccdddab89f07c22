"""The rule by which a policy is adapted as far as the models have proved right, in a world that can be done by hand.

Nothing ever moves in it and a reward is linear in the action, so that slopes, values and errors are known: the slope of
the return to the action of step j is g^j w, and the value of the base policy that of its reward for ever.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_agent import CONFIG as TRUSTING
from test_agent import observations
from toy_bundles import ACTION_DIM, OBS_DIM, make_bundle

from fastdwm import Agent, InputError, ITPOConfig, Policy, World
from fastdwm.itpo.trust import DEFAULTS
from fastdwm.kernels.trust.reference import CAUTION

DISCOUNT, HORIZON, GAIN = 0.9, 2, torch.tensor([1.0, -2.0, 0.5])
SLOPE = float(GAIN.square().mean().sqrt() * np.sqrt(np.mean([DISCOUNT ** (2 * j) for j in range(HORIZON + 1)])))
# How many decisions earn how much trust depends on the doubt.
CONFIG = ITPOConfig(horizon=HORIZON, particles=1, doubt=1.5)
FAST = replace(CONFIG, radius=0.2, speed=0.05)
OBS = observations(1, 2)[0]
EARNED, PROVED = 2, 3 * CAUTION
"""decisions before anything has come true, and before nearly everything is trusted where all of it does"""


class Still:
    """Nothing moves, but by `drift` in the imagination alone."""

    noise_steps = 0

    def __init__(self, drift: float = 0.0):
        self.drift = drift

    def next_obs(self, obs, action, noise):
        return obs + self.drift


def policy(scale: float = 1.0) -> Policy:
    """The same function whatever the scale, by which one layer is larger and the next one smaller."""
    params = make_bundle().policy
    first = {name: params[name] * scale for name in ("w0", "b0")}
    return Policy.mlp(params | first | {"w1": params["w1"] / scale})


@dataclass
class Models:
    """Reward and critic of the still world, as they are or wrong.

    scale: of both.   bias: added to every value.   broken: the next decisions to imagine nothing finite.
    """

    scale: float = 1.0
    bias: float = 0.0
    broken: bool = False
    base: Policy = field(default_factory=policy)

    def reward(self, obs, action):
        # What the state is worth is in its first number, so that one in which something moves is told apart.
        reward = self.scale * (action @ GAIN + obs[..., 0])
        return reward * torch.nan if self.broken else reward

    def critic(self, obs, action):
        rows = obs.reshape(1, -1, OBS_DIM)
        base_action = self.base.apply(self.base.layout.views(self.base.base), rows).reshape(*obs.shape[:-1], -1)
        for_ever = (base_action @ GAIN + obs[..., 0]) * DISCOUNT / (1 - DISCOUNT)
        return self.scale * (action @ GAIN + obs[..., 0] + for_ever + self.bias)

    def world(self, drift: float = 0.0) -> World:
        return World(Still(drift), self.reward, self.critic, DISCOUNT)


def agent_of(config: ITPOConfig = CONFIG, models: Models | None = None, scale: float = 1.0, **settings) -> Agent:
    models = models or Models()
    return Agent(policy(scale), models.world(**settings), config)


def after(agent: Agent, n_decisions: int, reward=None) -> np.ndarray:
    """The last of so many actions (B, A)."""
    for _ in range(n_decisions):
        action = agent.act(OBS, reward)
    return action


def distance(agent: Agent, action: np.ndarray) -> np.ndarray:
    """Root mean square (B,) from the base policy's action."""
    base = agent.policy.act(agent.policy.base.repeat(len(OBS), 1), torch.tensor(OBS)).numpy()
    return np.sqrt(np.square(action - base).mean(1))


# The step.
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize(
    ("radius", "speed", "guard", "known_after"),
    [(1.0, 0.004, "off", 1), (0.5, 0.004, "off", 1), (1.0, 0.002, "off", 1), (1.0, 0.1, "on", EARNED)],
)
def test_a_step_gains_what_a_change_of_all_actions_by_its_speed_would(radius, speed, guard, known_after, scale):
    """As far as it is trusted, and however the layers of the same function are scaled. At the base policy there is no
    pull of the anchor yet."""
    agent = agent_of(replace(CONFIG, radius=radius, speed=speed, guard=guard), scale=scale)
    after(agent, known_after + 1)
    diagnosis = agent.diagnose()
    np.testing.assert_allclose(diagnosis["slope"], SLOPE, rtol=1e-4)
    trust = diagnosis["trust"]
    assert (trust == 1).all() if guard == "off" else ((trust > 0.01) & (trust < 0.1)).all()
    gained = diagnosis["objective_after"] - diagnosis["objective_before"]
    np.testing.assert_allclose(gained, radius * speed * trust * (HORIZON + 1) * ACTION_DIM * SLOPE, rtol=0.02)


def test_the_scale_of_rewards_and_values_changes_nothing():
    ours, scaled = agent_of(FAST), agent_of(FAST, Models(scale=100.0))
    for _ in range(PROVED):
        action = ours.act(OBS)
        np.testing.assert_allclose(scaled.act(OBS), action, atol=2e-4)
    assert (distance(ours, action) > 0.1).all()
    np.testing.assert_allclose(scaled.diagnose()["slope"], 100 * ours.diagnose()["slope"], rtol=1e-3)


def test_a_gradient_larger_than_usual_is_clipped():
    """The scale of the rewards grows by 100 within the episode: the next step is as if it had grown by two."""
    models, gained = Models(), []
    agent = agent_of(replace(CONFIG, guard="off", speed=1e-4), models)
    after(agent, 5)
    for scale in (1.0, 100.0):
        models.scale = scale
        before = agent.episodes.params.clone()
        agent.act(OBS)
        gained.append((agent.episodes.params - before).norm(dim=1))
    torch.testing.assert_close(gained[1], 2 * gained[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("radius", [0.05, 0.1])
def test_a_policy_comes_to_rest_at_the_radius(radius):
    """Where the anchor's pull is the slope: here all imagined actions are that of the real state, so that the radius
    counts by the mean of the slopes over the root of their mean square, 0.996."""
    agent = agent_of(replace(CONFIG, radius=radius, speed=0.02, leash=10.0))
    reached = distance(agent, after(agent, 150))
    np.testing.assert_allclose(reached, 0.996 * radius * agent.diagnose()["trust"], rtol=0.05)


def test_an_action_is_never_further_from_the_base_policys_than_the_leash():
    agent, distances = agent_of(replace(FAST, leash=0.1)), []
    for _ in range(PROVED + 10):
        distances.append(distance(agent, agent.act(OBS)))
    assert np.max(distances) <= 0.1 * (1 + 1e-5)
    np.testing.assert_allclose(distances[-1], 0.1, rtol=1e-5)
    assert (agent.diagnose()["distance"] > 0.15).all()
    held = np.sum(np.isclose(distances, 0.1, rtol=1e-4), 0)
    assert (held > 10).all() and agent.drawn_back["distance"].tolist() == held.tolist()


# The trust.
@pytest.mark.parametrize(
    ("models", "drift", "horizon", "reason"),
    [(Models(bias=100.0), 0.0, 20, "critic"), (Models(), 5.0, 2, "world")],
    ids=["critic", "world"],
)
def test_where_the_models_are_wrong_the_base_policy_acts(models, drift, horizon, reason):
    """A value that no reward accounts for, too far away to show in what is imagined; a world that promises what does
    not happen. Without a guard, they are climbed."""
    config = replace(FAST, horizon=horizon)
    agent = agent_of(config, models, drift=drift)
    unguarded = agent_of(replace(config, guard="off"), models, drift=drift)
    assert (distance(agent, after(agent, 20)) < 1e-3).all()
    assert (distance(unguarded, after(unguarded, 20)) > 0.03).all()
    diagnosis = agent.diagnose()
    assert (diagnosis["trust"] < 1e-3).all()
    errors = {"critic": diagnosis["critic_error"], "world": diagnosis["model_error"]}
    assert (errors.pop(reason) > errors.popitem()[1]).all()


def lost_trust(agent: Agent) -> Agent:
    """After rewards in the first episode that nobody expected."""
    after(agent, PROVED)
    after(agent, 5, reward=np.array([100.0, np.nan], np.float32))
    return agent


def test_rewards_that_contradict_the_models_take_the_actions_back():
    agent = agent_of(FAST)
    far, before = distance(agent, after(agent, PROVED)), doubted(agent)
    assert (far > 0.1).all()
    contradicted = after(agent, 5, reward=np.array([100.0, np.nan], np.float32))
    near, still_far = distance(agent, contradicted)
    assert near < 1e-3 and still_far > 0.9 * far[1]
    # What has been told at a decision counts from the next one on.
    assert (doubted(agent) - before).tolist() == [4, 0]


def doubted(agent: Agent) -> np.ndarray:
    """Decisions (B,) in which a model was."""
    return agent.drawn_back["critic"] + agent.drawn_back["world"]


def test_the_reward_models_own_opinion_told_as_reward_changes_nothing():
    models = Models()
    silent, told, unknown = (agent_of(FAST, models) for _ in range(3))
    reward = None
    for _ in range(PROVED):
        action, informed = silent.act(OBS), told.act(OBS, reward)
        np.testing.assert_allclose(informed, action, atol=1e-6)
        np.testing.assert_array_equal(unknown.act(OBS, np.nan), action)
        reward = models.reward(torch.tensor(OBS), torch.tensor(informed))


def test_a_reward_is_in_units_of_the_environment():
    models = Models()
    agent = Agent(policy(), models.world(), FAST, reward_scale=0.01)
    reward = None
    for _ in range(PROVED):
        action = agent.act(OBS, reward)
        reward = models.reward(torch.tensor(OBS), torch.tensor(action)) / 0.01
    assert (agent.diagnose()["trust"] > 0.9).all()


@pytest.mark.parametrize("reward", [np.zeros(3), np.full(2, np.inf)], ids=["shape", "infinite"])
def test_a_wrong_reward_leaves_the_agent_usable(reward):
    agent, undisturbed = agent_of(FAST), agent_of(FAST)
    after(agent, 4), after(undisturbed, 4)
    with pytest.raises(ValueError, match="reward: expected a number for each of 2 episodes"):
        agent.act(OBS, reward)
    np.testing.assert_array_equal(after(agent, 2), after(undisturbed, 2))


def test_without_a_guard_no_reward_is_read():
    agent, told = (agent_of(replace(FAST, guard="off")) for _ in range(2))
    np.testing.assert_array_equal(after(agent, 8), after(told, 8, reward=100.0))


# What is known, and how long.
def test_what_is_known_survives_the_policy_of_a_decision():
    agent = agent_of(replace(FAST, reset="decision"))
    after(agent, PROVED)
    first = agent.diagnose()["policy_distance"]
    after(agent, 5)
    assert (first > 1e-3).all()
    np.testing.assert_allclose(agent.diagnose()["policy_distance"], first, rtol=0.05)


def test_a_new_episode_has_to_earn_it_again():
    agent = agent_of(FAST)
    after(agent, PROVED)
    agent.reset(np.array([True, False]))
    moved = [distance(agent, agent.act(OBS)) for _ in range(EARNED + 1)]
    first, second = np.transpose(moved)
    assert (first[:EARNED] == 0).all() and 0 < first[EARNED] < 0.01 and (second > 0.1).all()


def test_who_stays_keeps_what_is_known():
    agent = lost_trust(agent_of(FAST))
    assert agent.diagnose()["trust"].round(2).tolist() == pytest.approx([0, 1], abs=0.1)
    counts = {reason: count[1:].tolist() for reason, count in agent.drawn_back.items()}
    agent.keep(np.array([False, True]))
    assert {reason: count.tolist() for reason, count in agent.drawn_back.items()} == counts
    agent.act(OBS[1:])
    assert agent.diagnose()["trust"] > 0.9


def test_a_discarded_decision_keeps_what_is_known_and_compares_nothing_across_it():
    """The world moves while the models are broken: what was expected before them is not what comes after."""
    models = Models()
    agent = agent_of(FAST, models)
    after(agent, PROVED)
    known = agent.diagnose()
    models.broken = True
    agent.act(OBS)
    assert agent.discarded.tolist() == [1, 1]
    models.broken = False
    moved = OBS.copy()
    moved[:, 0] += 5
    agent.act(moved)
    for name in ("slope", "critic_error", "model_error"):
        np.testing.assert_allclose(agent.diagnose()[name], known[name], rtol=1e-3)
    assert (agent.diagnose()["trust"] > 0.9).all()


def test_decisions_without_time_for_a_step_keep_what_is_known():
    agent = Agent(policy(), Models().world(), FAST, deadline_ms=1e6)
    after(agent, PROVED)
    known, far = agent.diagnose(), distance(agent, after(agent, 1))
    agent.deadline.limit_s = 0.0
    action = after(agent, 3)
    assert (agent.diagnose()["inner_steps"] == 0).all()
    # The adapted policy acts as it is, and goes on to learn when there is time again.
    np.testing.assert_allclose(distance(agent, action), far, rtol=0.3)
    np.testing.assert_allclose(agent.diagnose()["slope"], known["slope"], rtol=1e-4)
    assert (agent.diagnose()["trust"] > 0.9).all()


def test_fused_and_reference_decide_alike_for_a_long_time():
    """With real rewards for some decisions, and the policies far from where they began."""
    bundle, config = make_bundle(), replace(TRUSTING, inner_steps=2, leash=0.1, speed=0.01)
    rewards = np.random.default_rng(1).normal(size=(PROVED, 2)).astype(np.float32) / 10
    agents = [Agent.of(bundle, config, backend=backend) for backend in ("reference", "fused")]
    for i, obs in enumerate(observations(PROVED, 2)):
        first, second = (agent.act(obs, rewards[i] if i % 3 else None) for agent in agents)
        np.testing.assert_allclose(first, second, atol=1e-4)
    first, second = (agent.diagnose() for agent in agents)
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], rtol=1e-2, atol=1e-4, err_msg=name)
    assert (first["distance"] > 0.1).all() and (first["trust"] > 0.5).all()


# What cannot be.
@pytest.mark.parametrize("lacking", ["reward", "critic", "score"])
def test_a_guard_needs_what_it_compares(lacking):
    world, score = Models().world(), None
    if lacking == "score":
        score, came = (lambda world, states, actions: actions.sum((0, 2, 3))), "a score of your own"
    else:
        world, came = replace(world, **{lacking: None}), f"a world without a {lacking}"
    with pytest.raises(InputError, match=f"^guard: expected a world with a reward and a critic, .*, got {came}$"):
        Agent(policy(), world, replace(CONFIG, guard="on"), score=score)
    assert Agent(policy(), Models().world(), replace(CONFIG, guard="on")).config.guard == "on"


def test_the_help_tells_the_defaults_that_are_filled_in():
    field = re.compile(r"^    (\w+): float \| None = None\n    \"{3}trust: [^\"]*none: ([\d.]+)\"{3}", re.M)
    told = field.findall((Path(__file__).parent.parent / "fastdwm" / "settings.py").read_text())
    assert {name: float(value) for name, value in told} == DEFAULTS
