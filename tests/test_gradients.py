"""Gradients of world models against those of simulators with known derivatives and of the real simulators."""

import dataclasses

import numpy as np
import pytest
import torch
from models import ACTION_DIM, OBS_DIM, generator, make_noise, make_obs, make_policies, make_world

from fastdwm.config import ITPOConfig
from fastdwm.data.dataset import EnvSpec
from fastdwm.data.replay import Simulator
from fastdwm.errors import InputError
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.models.nets import init_mlp, map_params
from fastdwm.models.policy import Policy, mlp_policy
from fastdwm.models.rebrac import Critics, policy_shapes
from fastdwm.report.gradients import (
    STEP,
    Differences,
    blocks,
    compare,
    compare_jacobians,
    compare_returns,
    model_jacobians,
    return_gradients,
    simulated_world,
    summary,
    uncut,
    uncut_trajectory,
)

ENVS = ("Hopper-v5", "HalfCheetah-v5", "Walker2d-v5")


class Linear:
    """World model and simulator whose next observation and reward are linear in observation and action."""

    noise_steps = 1

    def __init__(self, matrix):
        self.matrix = matrix

    def simulate(self, obs, action):
        return self.matrix.numpy() @ np.append(obs, action)

    def next_obs(self, obs, action, noise):
        return torch.cat([obs, action], -1) @ self.matrix[:-1].T

    def reward(self, obs, action):
        return torch.cat([obs, action], -1) @ self.matrix[-1]

    def world(self):
        return dataclasses.replace(make_world(), dynamics=self, reward=self.reward)


@pytest.fixture
def matrix():
    shape = (OBS_DIM + 1, OBS_DIM + ACTION_DIM)
    return 0.5 * torch.randn(shape, generator=generator(3), dtype=torch.float64)


UNITS = {
    "obs_std": torch.linspace(0.5, 2.0, OBS_DIM, dtype=torch.float64),
    "delta_std": torch.linspace(0.1, 0.4, OBS_DIM, dtype=torch.float64),
}


def one_policy(seed=5):
    return map_params(lambda value: value[0], make_policies(1, seed))


def actions(n, seed=11):
    return torch.rand(n, ACTION_DIM, generator=generator(seed), dtype=torch.float64) * 2 - 1


def jacobians(model, truth):
    report = compare_jacobians(
        {"model": model.world()}, Differences(truth.simulate), make_obs(8), actions(8), UNITS, 2, generator()
    )
    return report["model"]


def returns(model, truth):
    simulated = simulated_world(model.world(), Differences(truth.simulate))
    return compare_returns({"model": model.world()}, simulated, one_policy(), make_obs(12), 2, generator())["model"]


def test_both_jacobians_of_a_linear_function_are_its_matrix(matrix):
    linear, obs, action = Linear(matrix), make_obs(3), actions(3)
    by_autograd = model_jacobians(linear.world(), obs, action, torch.zeros(1, 2, 3, OBS_DIM))
    torch.testing.assert_close(by_autograd, matrix.expand(2, 3, -1, -1))
    source = Differences(linear.simulate)
    np.testing.assert_allclose(source.jacobian(obs[0].numpy(), action[0].numpy()), matrix, atol=1e-8)


def test_a_perfect_model_has_cosine_one_and_no_error(matrix):
    result = jacobians(Linear(matrix), Linear(matrix))
    parts = [result[name] for name in result if name != "one_draw"] + returns(Linear(matrix), Linear(matrix))
    assert len(parts) == 7
    for part in parts:
        assert part["cosine"]["low"] > 1 - 1e-9
        assert part["relative_error"]["high"] < 1e-6


def test_errors_show_in_the_part_that_has_them(matrix):
    # Twice the true derivative by the actions has the right direction and a relative error of 1.
    wrong = matrix.clone()
    wrong[:-1, OBS_DIM:] *= 2
    result = jacobians(Linear(wrong), Linear(matrix))
    assert result["next_obs_by_action"]["cosine"]["median"] == pytest.approx(1)
    assert result["next_obs_by_action"]["relative_error"]["median"] == pytest.approx(1)
    for part in ("next_obs_by_state", "reward_by_action", "reward_by_state"):
        assert result[part]["relative_error"]["high"] < 1e-6
    for line in returns(Linear(wrong), Linear(matrix)):
        assert line["relative_error"]["median"] > 0.01


def test_the_observation_that_all_models_add_is_no_merit(matrix):
    still = matrix.clone()
    still[:-1] = torch.eye(OBS_DIM, OBS_DIM + ACTION_DIM)
    result = jacobians(Linear(still), Linear(matrix))
    assert result["next_obs_by_state"]["cosine"]["median"] == 0
    assert result["next_obs_by_state"]["relative_error"]["median"] == pytest.approx(1)


def test_blocks_are_in_the_models_units():
    jacobian = torch.tensor([[[3.0, 2.0], [7.0, 5.0]]])
    parts = blocks(jacobian, obs_std=torch.tensor([10.0]), delta_std=torch.tensor([0.5]))
    # By action: 2 / 0.5. Change by state: (3 - 1) * 10 / 0.5. The reward keeps its unit.
    assert {name: x.item() for name, x in parts.items()} == {
        "next_obs_by_action": 4,
        "next_obs_by_state": 40,
        "reward_by_action": 5,
        "reward_by_state": 70,
    }


def test_comparison_of_two_gradients():
    model = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, torch.nan]])
    truth = torch.tensor([[5.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    cosine, error = compare(model, truth)
    torch.testing.assert_close(cosine, torch.tensor([0.6, 0.0, torch.nan]), equal_nan=True)
    torch.testing.assert_close(error, torch.tensor([20**0.5 / 5, 1.0, torch.nan]), equal_nan=True)


def test_summary_does_not_hide_a_gradient_that_is_not_finite():
    result = summary(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 1.0, torch.nan, 1.0, 1.0]]))
    assert result["states"] == 5
    assert result["cosine"] == {"median": 3, "low": 2, "high": 4, "mean": 3}
    assert np.isnan(result["relative_error"]["median"])


def test_chain_rule_through_differences_is_autograd_through_the_model():
    # The model itself, with zero noise, is the simulator.
    world, params, obs = make_world(denoise_steps=2), one_policy(), make_obs(3)

    def simulate(state, action):
        state, action = torch.from_numpy(state), torch.from_numpy(action)
        next_obs = world.dynamics.next_obs(state, action, torch.zeros(2, OBS_DIM, dtype=torch.float64))
        return torch.cat([next_obs, world.reward(state, action).reshape(1)]).numpy()

    simulated = simulated_world(world, Differences(simulate))
    noise = 0 * make_noise(3, 2, 3, 1)
    gradients = [return_gradients(w, params, obs, noise) for w in (world, simulated)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert gradients[0].norm(dim=1).min() > 1e-3


def test_gradient_inside_the_bound_of_a_saturating_action():
    source = Differences(lambda obs, action: np.append(obs, 3 * action.clip(-1, 1)[0]))
    for bound in (1.0, -1.0):
        assert source.jacobian(np.zeros(1), np.array([bound]))[1, 1] == pytest.approx(3)


@pytest.fixture(scope="module", params=ENVS)
def recorded(request):
    """Simulator, and the (obs, action, next_obs, reward) of an episode with random actions."""
    rows = []
    rng = np.random.default_rng(0)
    with EnvSpec(request.param, {}, None).make() as env:
        obs, _ = env.reset(seed=1)
        for _ in range(40):
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            next_obs, reward, terminated, *_ = env.step(action)
            rows.append((obs, action, next_obs, reward))
            obs = next_obs
            if terminated:
                break
    rows = [row for row in rows if uncut(torch.from_numpy(row[0])[None])]
    assert len(rows) > 5
    with Simulator(EnvSpec(request.param, {}, None), reward_scale=2.0) as simulator:
        yield simulator, rows


def test_simulator_repeats_recorded_transitions(recorded):
    simulator, rows = recorded
    for obs, action, next_obs, reward in rows:
        result = simulator(obs, action)
        np.testing.assert_allclose(result[:-1], next_obs, atol=1e-9)
        assert result[-1] == pytest.approx(2 * reward, abs=1e-9)


def test_simulator_forgets_what_it_did_before(recorded):
    simulator, rows = recorded
    (obs, action, *_), (other, other_action, *_) = rows[-1], rows[0]
    first = simulator(obs, action)
    simulator(other, other_action)
    np.testing.assert_array_equal(simulator(obs, action), first)


def test_differences_of_the_simulator_predict_it(recorded):
    # The shift is ten times the differences' step; contacts make a few states much more curved than the others.
    simulator, rows = recorded
    source, errors = Differences(simulator), []
    for obs, action, *_ in rows[:12]:
        action = 0.5 * action.astype(float)
        shift = 10 * STEP * np.random.default_rng(1).standard_normal(len(obs) + len(action))
        expected = source.jacobian(obs, action) @ shift
        moved = simulator(*np.split(np.append(obs, action) + shift, [len(obs)])) - simulator(obs, action)
        errors.append(np.abs(moved - expected).max() / np.abs(expected).max())
    assert np.median(errors) < 1e-2


def test_gradient_of_the_return_is_its_slope_in_the_simulator():
    with Simulator(EnvSpec("Hopper-v5", {}, None)) as simulator:
        shapes = policy_shapes(11, 3, (16, 16))
        params = {name: value.double() for name, value in init_mlp(shapes, generator()).items()}
        world = simulated_world(linear_critic(make_world()), Differences(simulator))
        obs = torch.from_numpy(simulator.env.reset(seed=3)[0])[None]
        noise = obs.new_zeros(3, 1, 1, 1, 11)
        gradient = return_gradients(world, params, obs, noise)
        policy = Policy.mlp(params)
        base = policy.base
        along = torch.randn(base.shape, generator=generator(1), dtype=base.dtype)
        objective = ReferenceObjective(policy, world, ITPOConfig())
        ahead, behind = (objective.value(base + sign * 1e-6 * along, obs, noise) for sign in (1, -1))
        assert float((gradient * along).sum()) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-4)


def linear_critic(world):
    """World with two linear critics for Hopper's sizes."""
    weights = torch.randn(2, 14, 1, generator=generator(2), dtype=torch.float64)
    return dataclasses.replace(world, critic=Critics({"w0": weights, "b0": weights.new_zeros(2, 1)}))


def test_trajectories_that_meet_a_cut_velocity_are_found():
    assert uncut(torch.tensor([[9.9, -3.0], [0.0, 10.0], [-10.0, 0.0]])).tolist() == [True, False, False]
    # The state grows by 2 a step for any action: 5 steps from 0 end at the bound.
    source = Differences(lambda obs, action: np.append((obs + 2).clip(-10, 10), 0.0))
    params = {"w0": torch.zeros(1, 1, dtype=torch.float64), "b0": torch.zeros(1, dtype=torch.float64)}
    assert mlp_policy(params, torch.ones(1, 1, dtype=torch.float64)) == 0
    starts = torch.tensor([[-1.0], [0.0], [9.0]], dtype=torch.float64)
    assert uncut_trajectory(source, params, starts).tolist() == [True, False, False]


@pytest.mark.parametrize("env_id", ["MountainCarContinuous-v0", "Ant-v5"])
def test_simulator_whose_state_is_not_observed_is_an_input_error(env_id):
    with pytest.raises(InputError, match=f"{env_id} cannot be set"):
        Simulator(EnvSpec(env_id, {}, None))
