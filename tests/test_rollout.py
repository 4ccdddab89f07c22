"""Imagined return and its gradient against independent implementations, in float64."""

import math

import pytest
import torch
from models import ACTION_DIM, OBS_DIM, make_noise, make_obs, make_policies, make_policy, make_world
from torch import Tensor
from torch.func import jacrev

from fastdwm.config import ITPOConfig
from fastdwm.itpo.rollout import imagined_return, survival
from fastdwm.models.nets import map_params
from fastdwm.models.policy import mlp_policy
from fastdwm.tasks import Limit

POLICY = make_policy()


def flatten(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in params.values()])


def unflatten(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.reshape(like[name].shape) for name, part in zip(like, parts, strict=True)}


def reverse_step(dynamics, y: Tensor, k: int, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
    """Reverse step h_k by the DDPM posterior, k = K..1 (eps model), independent of the model."""
    steps = dynamics.noise_steps
    alpha = [math.exp(-0.1 / steps - 0.5 * 9.9 * (2 * j - 1) / steps**2) for j in range(1, steps + 1)]
    abar, abar_prev = math.prod(alpha[:k]), math.prod(alpha[: k - 1])
    beta = 1 - alpha[k - 1]
    sigma = math.sqrt(beta * (1 - abar_prev) / (1 - abar)) if k > 1 else 0.0
    eps = dynamics.predict(y, dynamics.embedding[k - 1], (obs - dynamics.obs_mean) / dynamics.obs_std, action)
    return (y - beta / math.sqrt(1 - abar) * eps) / math.sqrt(alpha[k - 1]) + sigma * z


def model_jacobians(dynamics, obs: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """next_obs, F_a (S, A) and F_s (S, S) by the recursion A_{k-1} = dh/du A_k + dh/da over the reverse steps."""
    steps = dynamics.noise_steps
    y, A, B = noise[0], torch.zeros(OBS_DIM, ACTION_DIM).double(), torch.zeros(OBS_DIM, OBS_DIM).double()
    for i, k in enumerate(range(steps, 0, -1)):
        z = noise[i + 1] if k > 1 else torch.zeros_like(y)
        du, ds, da = jacrev(lambda u, s, a, k=k, z=z: reverse_step(dynamics, u, k, s, a, z), (0, 1, 2))(y, obs, action)
        y = reverse_step(dynamics, y, k, obs, action, z)
        A, B = du @ A + da, du @ B + ds
    scale = dynamics.delta_std.unsqueeze(1)
    return obs + dynamics.delta_mean + dynamics.delta_std * y, scale * A, torch.eye(OBS_DIM).double() + scale * B


def forward_sensitivity_gradient(params, world, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """J and dJ/dpsi of one particle by the paper's forward recursion (Theorem 4.1), storing G = ds_j/dpsi.

    params: one policy (no leading axis).   obs: (S,).   noise: (H, K, S).
    """
    vector, g = flatten(params), world.discount

    def act(psi, s):
        return mlp_policy(unflatten(psi, params), s.unsqueeze(0)).squeeze(0)

    def reward(s, a):
        return world.reward(s, a)

    def value(s, a):
        return world.critic(s.unsqueeze(0), a.unsqueeze(0)).amin(0).squeeze()

    s, G = obs, torch.zeros(OBS_DIM, len(vector)).double()
    total, gradient = torch.zeros(()).double(), torch.zeros(len(vector)).double()
    for j, pack in enumerate(noise):
        pi_psi, pi_s = jacrev(act, (0, 1))(vector, s)
        a, D = act(vector, s), pi_s @ G + pi_psi
        r_s, r_a = jacrev(reward, (0, 1))(s, a)
        total, gradient = total + g**j * reward(s, a), gradient + g**j * (r_s @ G + r_a @ D)
        s, F_a, F_s = model_jacobians(world.dynamics, s, a, pack)
        G = F_s @ G + F_a @ D
    pi_psi, pi_s = jacrev(act, (0, 1))(vector, s)
    a, D = act(vector, s), pi_s @ G + pi_psi
    q_s, q_a = jacrev(value, (0, 1))(s, a)
    weight = g ** len(noise)
    return total + weight * value(s, a), gradient + weight * (q_s @ G + q_a @ D)


def autograd_gradient(params, world, obs, noise, config=ITPOConfig()) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = map_params(lambda v: v.clone().requires_grad_(True), params)
    returns = imagined_return(POLICY, leaves, world, obs, noise, config)
    grads = torch.autograd.grad(returns.sum(), list(leaves.values()))
    return returns.detach(), dict(zip(leaves, grads, strict=True))


@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_gradient_equals_theorem_4_1(horizon):
    world, params, obs = make_world(), make_policies(1), make_obs(1)
    noise = make_noise(horizon, 4, 1, 2)
    returns, grads = autograd_gradient(params, world, obs, noise)
    single = map_params(lambda v: v[0], params)
    oracle = [forward_sensitivity_gradient(single, world, obs[0], noise[:, :, 0, m]) for m in range(2)]
    torch.testing.assert_close(returns[0], torch.stack([j for j, _ in oracle]).mean(), rtol=1e-12, atol=1e-12)
    expected = torch.stack([gradient for _, gradient in oracle]).mean(0)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(flatten(grads), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("kind", ["min", "mean", "first"])
def test_terminal_value_combines_the_critics(kind):
    world, params, obs = make_world(), make_policies(1), make_obs(1)
    q = world.critic(obs, mlp_policy(map_params(lambda v: v[0], params), obs))[:, 0]
    expected = {"min": min(q), "mean": (q[0] + q[1]) / 2, "first": q[0]}[kind]
    config = ITPOConfig(terminal_value=kind)
    returns = imagined_return(POLICY, params, world, obs, make_noise(0, 4, 1, 2), config)
    torch.testing.assert_close(returns[0], expected)


def test_mask_stops_the_return_at_the_fall():
    # Every imagined state is outside the limit, so only the first reward counts.
    world, params, obs = make_world(limits=(Limit(0, low=1e6),)), make_policies(2), make_obs(2)
    noise = make_noise(3, 4, 2, 2)
    returns = imagined_return(POLICY, params, world, obs, noise, ITPOConfig(termination="mask"))
    torch.testing.assert_close(returns, world.reward(obs, mlp_policy(params, obs.unsqueeze(1)).squeeze(1)))
    unlimited = make_world(limits=(Limit(0, low=-1e6),))
    free = imagined_return(POLICY, params, unlimited, obs, noise, ITPOConfig(termination="mask"))
    torch.testing.assert_close(free, imagined_return(POLICY, params, unlimited, obs, noise))


def test_soft_termination_is_a_sigmoid_of_the_distance_to_the_bounds():
    world = make_world(limits=(Limit(1, low=-1.0, high=1.0),))
    obs = torch.tensor([[0.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).double()
    config = ITPOConfig(termination="soft", termination_temperature=0.25)
    # obs_std of coordinate 1 is 1, so the width is 0.25: bounds are 6 and 2 widths away, then 8 and 0.
    expected = [1 / (1 + math.exp(-6)) / (1 + math.exp(-2)), 1 / (1 + math.exp(-8)) / 2]
    torch.testing.assert_close(survival(world, obs, config), torch.tensor(expected).double())
