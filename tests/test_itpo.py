"""Algorithm 1 in float64: what a decision changes, and what it must leave alone."""

from dataclasses import replace

import pytest
import torch
from models import make_noise, make_obs, make_policies, make_policy, make_world

from fastdwm.config import ITPOConfig
from fastdwm.itpo.adapted import Adapted
from fastdwm.itpo.decision import decide, shorten
from fastdwm.itpo.objective import ReferenceObjective

B, H, K, M = 3, 2, 4, 4
CONFIG = ITPOConfig(horizon=H, particles=M, optimiser="sgd", inner_lr=1e-2)
POLICY = make_policy()
LAYOUT = POLICY.layout


def base_policies() -> torch.Tensor:
    """Base parameters (B, P)."""
    return LAYOUT.pack(make_policies(B))


def start_from(params: torch.Tensor, config: ITPOConfig = CONFIG) -> Adapted:
    return Adapted.start(params, config)


def decision(config=CONFIG, noise=None, held_out=None, state=None):
    """One decision of B episodes with everything not given at its default."""
    base = base_policies()
    noise = make_noise(H, K, B, M).unsqueeze(0) if noise is None else noise
    state = start_from(base, config) if state is None else state
    objective = ReferenceObjective(POLICY, make_world(), config)
    return decide(POLICY, state, base, objective, make_obs(B), noise, held_out, config)


def gradient(config=CONFIG):
    """J (B,) and the packed gradient (B, P) at the base policies on the default noise."""
    noise = make_noise(H, K, B, M)
    return ReferenceObjective(POLICY, make_world(), config).gradient(base_policies(), make_obs(B), noise)[:2]


def test_sgd_step_is_the_gradient_times_the_step_size():
    state, result = decision()
    objective, grads = gradient()
    torch.testing.assert_close(state.params, base_policies() + 1e-2 * grads)
    torch.testing.assert_close(result.objective, objective)
    torch.testing.assert_close(result.grad_norm, grads.square().sum(1).sqrt())
    torch.testing.assert_close(result.action, POLICY.act(state.params, make_obs(B)))


def test_inner_steps_follow_each_other():
    state, _ = decision(replace(CONFIG, inner_steps=2))
    once, _ = decision()
    twice, _ = decision(state=once)
    torch.testing.assert_close(state.params, twice.params)


def test_redrawn_noise_uses_one_bank_per_inner_step():
    banks = torch.stack([make_noise(H, K, B, M, seed=s) for s in (1, 2)])
    both, _ = decision(replace(CONFIG, inner_steps=2, noise="step"), noise=banks)
    first, _ = decision(noise=banks[:1])
    second, _ = decision(noise=banks[1:], state=first)
    torch.testing.assert_close(both.params, second.params)


def test_adam_equals_torch_adam_in_each_episode():
    config = replace(CONFIG, optimiser="adam", inner_steps=3, inner_lr=1e-3)
    state, _ = decision(config)
    objective = ReferenceObjective(POLICY, make_world(), config)
    leaf = base_policies().requires_grad_(True)
    optimiser = torch.optim.Adam([leaf], 1e-3, maximize=True)
    for _ in range(3):
        leaf.grad = objective.gradient(leaf.detach(), make_obs(B), make_noise(H, K, B, M)).grads
        optimiser.step()
    torch.testing.assert_close(state.params, leaf.detach(), rtol=1e-7, atol=1e-9)


def test_clipping_bounds_each_episode_by_itself():
    _, free = decision()
    bound = float(free.grad_norm.sort().values[1])
    state, _ = decision(replace(CONFIG, grad_clip=bound))
    lengths = (state.params - base_policies()).norm(dim=1) / CONFIG.inner_lr
    torch.testing.assert_close(lengths, free.grad_norm.clamp(max=bound))


def test_trust_region_halves_the_update_until_the_action_moves_little_enough():
    base, obs, bound = base_policies(), make_obs(B), 0.05
    params, scale = shorten(POLICY, base, base + 0.3, obs, POLICY.act(base, obs), bound)
    moved = (POLICY.act(params, obs) - POLICY.act(base, obs)).abs().amax(1)
    assert (moved <= bound).all() and (moved > 0).all() and (scale < 1).all()
    torch.testing.assert_close(torch.log2(scale), torch.log2(scale).round())
    # Twice the share would have been too far in every episode.
    double = base + 2 * scale.unsqueeze(1) * 0.3
    assert ((POLICY.act(double, obs) - POLICY.act(base, obs)).abs().amax(1) > bound).all()


def test_trust_region_bounds_the_whole_decision():
    base, obs, bound = base_policies(), make_obs(B), 0.01
    config = replace(CONFIG, inner_steps=5, inner_lr=0.3)
    free, _ = decision(config)
    bounded, result = decision(replace(config, trust_region=bound))
    start = POLICY.act(base, obs)
    assert ((POLICY.act(free.params, obs) - start).abs().amax(1) > 2 * bound).all()
    moved = (result.action - start).abs().amax(1)
    assert (moved <= bound).all() and (moved > bound / 4).all()


def test_every_inner_step_is_tested_on_a_bank_of_its_own():
    """The second bank refuses everything: its return is not a number, and no comparison with that holds."""
    held_out = torch.stack([make_noise(H, K, B, M, seed=s) for s in (3, 4)])
    config = replace(CONFIG, inner_steps=2, inner_lr=1e-4, held_out_particles=M)
    one, _ = decision(replace(config, inner_steps=1), held_out=held_out[:1])
    both, _ = decision(config, held_out=held_out)
    held_out[1] = torch.nan
    refused, result = decision(config, held_out=held_out)
    assert torch.equal(refused.params, one.params) and (result.update_scale == 0).all()
    assert not torch.equal(both.params, one.params)


def test_trust_region_keeps_a_small_update_whole():
    base, obs = base_policies(), make_obs(B)
    params, scale = shorten(POLICY, base, base + 1e-6, obs, POLICY.act(base, obs), 0.5)
    assert (scale == 1).all() and torch.equal(params, base + 1e-6)


def test_trust_region_drops_an_update_that_no_halving_makes_small_enough():
    base, obs = base_policies(), make_obs(B)
    params, scale = shorten(POLICY, base, base + 0.3, obs, POLICY.act(base, obs), 1e-12)
    assert (scale == 0).all() and torch.equal(params, base)


def test_update_that_lowers_the_held_out_return_is_refused():
    # Updates along the gradient of one bank, judged on another: with a huge step some episode gets worse.
    config = replace(CONFIG, inner_lr=100.0, held_out_particles=M)
    base, obs, held_out = base_policies(), make_obs(B), make_noise(H, K, B, M, seed=3)
    state, result = decision(config, held_out=held_out.unsqueeze(0))
    free, _ = decision(replace(config, held_out_particles=0))
    objective = ReferenceObjective(POLICY, make_world(), config)
    gain = objective.value(free.params, obs, held_out) - objective.value(base, obs, held_out)
    assert (gain < 0).any() and (gain > 0).any()
    for b in range(B):
        expected = free.params if gain[b] >= 0 else base
        assert torch.equal(state.params[b], expected[b])
        assert result.update_scale[b] == float(gain[b] >= 0)


@pytest.mark.parametrize("change", [{"inner_steps": 0}, {"inner_lr": 0.0}])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_no_update_gives_the_base_actions_bit_for_bit(change, optimiser):
    base = base_policies()
    state, result = decision(replace(CONFIG, optimiser=optimiser, **change))
    assert torch.equal(result.action, POLICY.act(base, make_obs(B)))
    assert torch.equal(state.params, base)


@pytest.mark.parametrize("broken", ["noise", "policy"])
def test_non_finite_decision_is_discarded_in_its_episode_alone(broken):
    noise, params = make_noise(H, K, B, M).unsqueeze(0), base_policies() + 0.01
    clean, expected = decision(state=start_from(params.clone()))
    if broken == "noise":
        noise[0, 1, 0, 1, 2, 0] = torch.inf
    else:
        params[1, 20] = torch.nan
    state, result = decision(noise=noise, state=start_from(params))
    assert result.discarded.tolist() == [False, True, False]
    assert torch.equal(result.action[1], POLICY.act(base_policies(), make_obs(B))[1])
    assert torch.equal(state.params[1].nan_to_num(7), params[1].nan_to_num(7))
    assert torch.equal(state.params[[0, 2]], clean.params[[0, 2]])
    assert torch.equal(result.action[[0, 2]], expected.action[[0, 2]])


def test_non_finite_gradient_of_a_finite_return_is_discarded():
    # An infinite last bias still gives a finite action, tanh(inf) = 1: only the gradient betrays it.
    class Exploding(ReferenceObjective):
        def gradient(self, *arguments):
            found = super().gradient(*arguments)
            found.grads[1, LAYOUT.offsets["b2"]] = torch.inf
            return found

    base, noise = base_policies(), make_noise(H, K, B, M)
    objective = Exploding(POLICY, make_world(), CONFIG)
    state, result = decide(POLICY, start_from(base), base, objective, make_obs(B), noise[None], None, CONFIG)
    assert result.discarded.tolist() == [False, True, False]
    assert torch.equal(state.params[1], base[1]) and not torch.equal(state.params[0], base[0])
    assert torch.equal(result.action[1], POLICY.act(base, make_obs(B))[1])


def test_a_later_non_finite_inner_step_undoes_the_earlier_ones():
    banks = torch.stack([make_noise(H, K, B, M, seed=s) for s in (1, 2)])
    banks[1, 0, 0, 2] = torch.nan
    state, result = decision(replace(CONFIG, inner_steps=2, noise="step"), noise=banks)
    assert result.discarded.tolist() == [False, False, True]
    assert torch.equal(state.params[2], base_policies()[2])
    assert not torch.equal(state.params[0], base_policies()[0])
