"""Precision of the products: accepted settings, and the effect of fp16 operands on a decision's gradient."""

import numpy as np
import pytest
import torch
from numerics import Products
from toy_bundles import make_bundle

from fastdwm import Agent, Bundle, ITPOConfig
from fastdwm.errors import InputError
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.itpo.rollout import imagine
from fastdwm.models.policy import Policy

CONFIG = ITPOConfig(horizon=2, particles=2, optimiser="sgd", inner_lr=1e-3)


@pytest.mark.parametrize("backend", ["auto", "fused", "reference"])
def test_a_cpu_refuses_fp16_in_one_line(backend):
    expected = (
        "^precision: expected auto or ieee on a CPU and in plain torch; fp16 is for the fused operators on a GPU$"
    )
    with pytest.raises(InputError, match=expected):
        Agent.of(make_bundle(), CONFIG, backend=backend, precision="fp16")
    with pytest.raises(InputError, match="^precision: expected one of auto, fp16, ieee, got 'bf16'$"):
        Agent.of(make_bundle(), CONFIG, backend=backend, precision="bf16")


def test_a_cpus_default_is_ieee():
    obs, actions = np.zeros(make_bundle().task.obs_dim), []
    for precision in ("auto", "ieee"):
        actions.append(Agent.of(make_bundle(), CONFIG, precision=precision).act(obs))
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("part", ["policy", "critics", "reward"])
def test_weights_beyond_the_range_of_fp16_name_the_other_precision(part):
    bundle = make_bundle()
    getattr(bundle, part)["w1"].view(-1)[0] = 1e6
    parts = Policy.mlp(bundle.policy), bundle.world(), CONFIG
    with pytest.raises(InputError, match="expected weights up to 65504, got 1e\\+06: use precision 'ieee'$"):
        FusedObjective(*parts, precision="fp16")
    FusedObjective(*parts, precision="ieee")


@pytest.mark.slow
@pytest.mark.parametrize("world", ["diffusion", "meanflow"])
@pytest.mark.parametrize("name", ["hopper-medium", "halfcheetah-medium", "halfcheetah-full-replay", "walker2d-medium"])
def test_fp16_operands_keep_the_gradient_of_a_decision(name, world):
    """Compare medians over 64 imagined states: near kinks of policy and critics any rounding makes a difference."""
    bundle, draw = Bundle.load(name), torch.Generator().manual_seed(0)
    policy, model, config = Policy.mlp(bundle.policy), bundle.world(world), bundle.settings.itpo
    mean, std = (bundle.statistics[key] for key in ("obs_mean", "obs_std"))
    n_states, steps = 64, model.dynamics.noise_steps

    def noise(horizon: int, particles: int) -> torch.Tensor:
        return torch.randn(horizon, steps, n_states, particles, len(mean), generator=draw)

    obs = mean + 0.1 * std * torch.randn(n_states, len(mean), generator=draw)
    params = policy.base.repeat(n_states, 1)
    with torch.no_grad():
        states, _ = imagine(policy, policy.layout.views(params), model, obs, noise(8, 1))
    objective = ReferenceObjective(policy, model, config)
    args = params, states[-1][:, 0].contiguous(), noise(config.horizon, config.particles)
    expected = objective.gradient(*args).grads
    with Products("fp16"):
        grads = objective.gradient(*args).grads
    assert ((grads - expected).norm(dim=1) / expected.norm(dim=1)).median() < 0.1
    assert torch.cosine_similarity(grads, expected, dim=1).median() > 0.99
