"""Vector environments of Gymnasium and Stable-Baselines3: every episode begins from the base policy."""

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_agents import CONFIG
from toy_bundles import ACTION_DIM, OBS_DIM, make_bundle

from fastdwm import Agent


class Recorder(gymnasium.Env):
    """Simulator of random observations that records every episode; episode number i lasts length + i % 2 steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION_DIM,), np.float32)

    def __init__(self, length):
        self.length, self.episodes = length, []

    def observe(self):
        self.obs = self.np_random.normal(size=OBS_DIM).astype(np.float32)
        return self.obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes.append([])
        return self.observe(), {}

    def step(self, action):
        episode = self.episodes[-1]
        episode.append((self.obs, np.array(action)))
        ended = len(episode) == self.length + len(self.episodes) % 2
        return self.observe(), 1.0, ended, False, {}


@pytest.fixture(scope="module")
def bundle():
    # Plain regression uses no noise, so the actions in an episode depend on its observations alone.
    return make_bundle("mlp")


def check_episodes(bundle, simulators):
    """Compare the first episodes of each simulator with the actions of a new agent in the same observations."""
    for simulator in simulators:
        finished = simulator.episodes[:3]
        for episode in finished:
            assert len(episode) >= simulator.length
            agent = Agent.of(bundle, CONFIG)
            for obs, action in episode:
                np.testing.assert_allclose(action, agent.act(obs), atol=1e-5)
        # The agent adapts, so an episode that began with adapted parameters would act otherwise.
        first_obs, first_action = finished[-1][0]
        agent.act(first_obs)
        assert np.abs(agent.act(first_obs) - first_action).max() > 1e-4


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=["next", "same"])
def test_episodes_of_gymnasiums_vector_environments_begin_from_the_base_policy(bundle, mode):
    simulators = [Recorder(3), Recorder(4)]
    envs = SyncVectorEnv([partial(lambda env: env, env) for env in simulators], autoreset_mode=mode)
    agent = Agent.of(bundle, CONFIG)
    obs, _ = envs.reset(seed=0)
    ended = np.zeros(2, bool)
    for _ in range(20):
        obs, _, terminated, truncated, _ = envs.step(agent.act(obs))
        if mode == AutoresetMode.NEXT_STEP:
            agent.reset(ended)
            ended = terminated | truncated
        else:
            agent.reset(terminated | truncated)
    check_episodes(bundle, simulators)


def test_stable_baselines3_evaluates_an_agent(bundle):
    simulators = [Recorder(3), Recorder(4)]
    agent = Agent.of(bundle, CONFIG)
    envs = DummyVecEnv([partial(lambda env: env, env) for env in simulators])
    returns, lengths = evaluate_policy(agent, envs, n_eval_episodes=6, return_episode_rewards=True, warn=False)
    assert sorted(lengths) == [3, 4, 4, 4, 5, 5] and returns == lengths
    check_episodes(bundle, simulators)
    # Another number of environments, one of Gymnasium's own among them, starts anew.
    mean, std = evaluate_policy(agent, Recorder(3), n_eval_episodes=2, warn=False)
    assert (mean, std) == (3.5, 0.5)


def test_predict_is_act_with_other_arguments(bundle):
    obs = np.random.default_rng(0).normal(size=(3, OBS_DIM)).astype(np.float32)
    agent, other = Agent.of(bundle, CONFIG), Agent.of(bundle, CONFIG)
    for starts in ([True] * 3, [False, True, False], None):
        if starts is not None and other.episodes is not None:
            other.reset(np.array(starts))
        action, state = agent.predict(obs, state=("kept",), episode_start=starts and np.array(starts))
        np.testing.assert_array_equal(action, other.act(obs))
        assert state == ("kept",)
    alone = Agent.of(bundle, CONFIG)
    np.testing.assert_array_equal(alone.predict(obs[0])[0], Agent.of(bundle, CONFIG).act(obs[0]))
    with pytest.raises(ValueError, match="mask: expected bool of shape"):
        agent.predict(obs, episode_start=np.array([True, False]))
