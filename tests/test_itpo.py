"""Decisions in float64 (Algorithm 1): updates, discarded updates, and what must not change."""

from dataclasses import replace

import pytest
import torch
from models import make_noise, make_obs, make_policies, make_policy, make_world

from fastdwm.config import ITPOConfig
from fastdwm.itpo.decision import decide
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.itpo.rules import PolicyState, make_rule

B, H, K, M = 3, 2, 4, 4
SIZES = dict(horizon=H, particles=M)
BOUND, SGD = ITPOConfig(**SIZES, max_deviation=0.05), ITPOConfig(**SIZES, optimiser="sgd", inner_lr=1e-2)
ADAM = replace(SGD, optimiser="adam", inner_lr=1e-3)
RULES = pytest.mark.parametrize("config", [BOUND, SGD, ADAM], ids=["bound", "sgd", "adam"])
POLICY = make_policy()
LAYOUT = POLICY.layout


def base_policies() -> torch.Tensor:
    """Base parameters (B, P)."""
    return LAYOUT.pack(make_policies(B))


def start_from(params: torch.Tensor, config: ITPOConfig) -> PolicyState:
    return make_rule(config).init(params)


def decision(config=SGD, noise=None, state=None, objective=None):
    """One decision of B episodes."""
    base, rule = base_policies(), make_rule(config)
    noise = make_noise(H, K, B, M).unsqueeze(0) if noise is None else noise
    state = rule.init(base) if state is None else state
    objective = ReferenceObjective(POLICY, make_world(), config) if objective is None else objective
    return decide(POLICY, rule, state, base, objective, make_obs(B), noise, config)


def gradient(params):
    """Gradient at these policies on the default noise."""
    return ReferenceObjective(POLICY, make_world(), SGD).gradient(params, make_obs(B), make_noise(H, K, B, M))


def test_sgd_step_is_the_gradient_times_the_step_size():
    state, result = decision()
    objective, grads = gradient(base_policies())[:2]
    torch.testing.assert_close(state.params, base_policies() + 1e-2 * grads)
    torch.testing.assert_close(result.objective, objective)
    torch.testing.assert_close(result.grad_norm, grads.square().sum(1).sqrt())
    torch.testing.assert_close(result.action, POLICY.act(state.params, make_obs(B)))


def test_a_decision_of_the_bound_is_a_step_and_a_limit():
    """One episode is clipped, the others are not."""
    base, obs = base_policies(), make_obs(B)
    free, free_result = decision(replace(BOUND, max_deviation=torch.inf))
    grads, action_grads = gradient(base).grads, gradient(base).action_grads
    slope = action_grads.transpose(0, 1).flatten(1).square().mean(1).sqrt()
    size = BOUND.action_step * (H + 1) * action_grads.shape[3] * slope / grads.square().sum(1)
    torch.testing.assert_close(free.params, base + size.unsqueeze(1) * grads)
    action, start = POLICY.act(free.params, obs), POLICY.act(base, obs)
    torch.testing.assert_close(free_result.action, action)
    torch.testing.assert_close(free_result.deviation, (action - start).square().mean(1).sqrt())
    bound = float(free_result.deviation.sort().values[1]) + 1e-9
    limited, result = decision(replace(BOUND, max_deviation=bound))
    share = (bound / free_result.deviation).clamp(max=1).unsqueeze(1)
    assert (share < 1).sum() == 1
    torch.testing.assert_close(limited.params, base + share * (free.params - base))
    torch.testing.assert_close(result.action, start + share * (action - start))
    assert torch.equal(result.deviation, free_result.deviation)


@RULES
def test_inner_steps_follow_each_other(config):
    """Without a bound, which limits the decision as a whole."""
    config = replace(config, max_deviation=None if config.max_deviation is None else torch.inf)
    state, _ = decision(replace(config, inner_steps=2))
    once, _ = decision(config)
    twice, _ = decision(config, state=once)
    assert not torch.equal(once.params, twice.params)
    for ours, theirs in zip(state.tensors, twice.tensors, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_redrawn_noise_uses_one_bank_per_inner_step():
    banks = torch.stack([make_noise(H, K, B, M, seed=s) for s in (1, 2)])
    both, _ = decision(replace(SGD, inner_steps=2, noise="step"), noise=banks)
    first, _ = decision(noise=banks[:1])
    second, _ = decision(noise=banks[1:], state=first)
    torch.testing.assert_close(both.params, second.params)


@pytest.mark.parametrize(
    "config",
    [
        *(replace(config, inner_steps=0) for config in (BOUND, SGD, ADAM)),
        *(replace(config, inner_lr=0.0) for config in (SGD, ADAM)),
    ],
    ids=["bound", "sgd", "adam", "sgd without a step", "adam without a step"],
)
def test_no_update_gives_the_base_actions_bit_for_bit(config):
    base = base_policies()
    state, result = decision(config)
    assert torch.equal(result.action, POLICY.act(base, make_obs(B)))
    assert torch.equal(state.params, base)


@RULES
@pytest.mark.parametrize("broken", ["noise", "policy"])
def test_non_finite_decision_is_discarded_in_its_episode_alone(broken, config):
    noise, params = make_noise(H, K, B, M).unsqueeze(0), base_policies() + 0.01
    clean, expected = decision(config, state=start_from(params.clone(), config))
    if broken == "noise":
        noise[0, 1, 0, 1, 2, 0] = torch.inf
    else:
        params[1, 20] = torch.nan
    start = start_from(params, config)
    state, result = decision(config, noise, start)
    assert result.discarded.tolist() == [False, True, False]
    assert torch.equal(result.action[1], POLICY.act(base_policies(), make_obs(B))[1])
    assert torch.equal(result.action[[0, 2]], expected.action[[0, 2]])
    for ours, others, before in zip(state.tensors, clean.tensors, start.tensors, strict=True):
        torch.testing.assert_close(ours[1], before[1], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(ours[[0, 2]], others[[0, 2]])


@RULES
def test_non_finite_gradient_of_a_finite_return_is_discarded(config):
    # An infinite last bias still gives a finite action, tanh(inf) = 1: only the gradient shows it.
    class Exploding(ReferenceObjective):
        def gradient(self, *arguments):
            grads = super().gradient(*arguments)
            grads.grads[1, LAYOUT.offsets["b2"]] = torch.inf
            return grads._replace(partial_sq_norms=grads.grads.square().sum(1, keepdim=True))

    base = base_policies()
    state, result = decision(config, objective=Exploding(POLICY, make_world(), config))
    assert result.discarded.tolist() == [False, True, False]
    assert torch.equal(state.params[1], base[1]) and not torch.equal(state.params[0], base[0])
    assert torch.equal(result.action[1], POLICY.act(base, make_obs(B))[1])


@RULES
def test_a_later_non_finite_inner_step_undoes_the_earlier_ones(config):
    banks = torch.stack([make_noise(H, K, B, M, seed=s) for s in (1, 2)])
    banks[1, 0, 0, 2] = torch.nan
    state, result = decision(replace(config, inner_steps=2, noise="step"), noise=banks)
    assert result.discarded.tolist() == [False, False, True]
    for ours, before in zip(state.tensors, start_from(base_policies(), config).tensors, strict=True):
        assert torch.equal(ours[2], before[2])
    assert not torch.equal(state.params[0], base_policies()[0])
