"""Algorithm 1 in float64: what a decision changes, and what it must leave alone."""

from dataclasses import replace

import pytest
import torch
from models import make_noise, make_obs, make_policies, make_world

from fastdwm.config import ITPOConfig
from fastdwm.itpo import Adapted, act, decide, global_norm, gradient, shorten
from fastdwm.nets import map_params
from fastdwm.rollout import imagined_return

B, H, K, M = 3, 2, 4, 4
CONFIG = ITPOConfig(horizon=H, particles=M, inner_lr=1e-2)


def decision(config=CONFIG, obs=None, noise=None, held_out=None, base=None, state=None, world=None):
    """One decision of B episodes with everything not given at its default."""
    base = make_policies(B) if base is None else base
    n = len(base["b0"])
    obs = make_obs(n) if obs is None else obs
    noise = make_noise(H, K, n, M).unsqueeze(0) if noise is None else noise
    held_out = noise[0][:, :, :, :0] if held_out is None else held_out
    state = Adapted.start(base) if state is None else state
    return decide(state, base, make_world() if world is None else world, obs, noise, held_out, config)


def distance(a, b):
    return global_norm({name: a[name] - b[name] for name in a})


def test_sgd_step_is_the_gradient_times_the_step_size():
    base, obs, noise = make_policies(B), make_obs(B), make_noise(H, K, B, M)
    state, result = decision()
    objective, grads = gradient(base, base, make_world(), obs, noise, CONFIG)
    for name, value in base.items():
        torch.testing.assert_close(state.params[name], value + 1e-2 * grads[name])
    torch.testing.assert_close(result.objective, objective)
    torch.testing.assert_close(result.grad_norm, global_norm(grads))
    torch.testing.assert_close(result.action, act(state.params, obs))


def test_inner_steps_follow_each_other():
    state, _ = decision(replace(CONFIG, inner_steps=2))
    once, _ = decision()
    twice, _ = decision(state=once)
    for name in state.params:
        torch.testing.assert_close(state.params[name], twice.params[name])


def test_redrawn_noise_uses_one_bank_per_inner_step():
    banks = torch.stack([make_noise(H, K, B, M, seed=s) for s in (1, 2)])
    both, _ = decision(replace(CONFIG, inner_steps=2, redraw_noise=True), noise=banks)
    first, _ = decision(noise=banks[:1])
    second, _ = decision(noise=banks[1:], state=first)
    for name in both.params:
        torch.testing.assert_close(both.params[name], second.params[name])


def test_adam_equals_torch_adam_in_each_episode():
    config = replace(CONFIG, optimiser="adam", inner_steps=3, inner_lr=1e-3)
    base, obs, noise = make_policies(B), make_obs(B), make_noise(H, K, B, M)
    state, _ = decision(config)
    leaves = map_params(lambda v: v.clone().requires_grad_(True), base)
    optimiser = torch.optim.Adam(leaves.values(), 1e-3, maximize=True)
    for _ in range(3):
        grads = gradient(map_params(torch.Tensor.detach, leaves), base, make_world(), obs, noise, config)[1]
        for name, leaf in leaves.items():
            leaf.grad = grads[name]
        optimiser.step()
    for name in base:
        torch.testing.assert_close(state.params[name], leaves[name].detach(), rtol=1e-7, atol=1e-9)


def test_clipping_bounds_each_episode_by_itself():
    _, free = decision()
    bound = float(free.grad_norm.sort().values[1])
    state, _ = decision(replace(CONFIG, grad_clip=bound))
    lengths = distance(state.params, make_policies(B)) / CONFIG.inner_lr
    torch.testing.assert_close(lengths, free.grad_norm.clamp(max=bound))


def test_trust_region_halves_the_update_until_the_action_moves_little_enough():
    base, obs = make_policies(B), make_obs(B)
    after = {name: value + 0.3 for name, value in base.items()}
    bound = 0.05
    params, scale = shorten(base, after, obs, bound)
    moved = (act(params, obs) - act(base, obs)).abs().amax(1)
    assert (moved <= bound).all() and (moved > 0).all() and (scale < 1).all()
    torch.testing.assert_close(torch.log2(scale), torch.log2(scale).round())
    # Twice the share would have been too far in every episode.
    double = {name: base[name] + 2 * scale.view(-1, *[1] * (base[name].dim() - 1)) * 0.3 for name in base}
    assert ((act(double, obs) - act(base, obs)).abs().amax(1) > bound).all()


def test_trust_region_keeps_a_small_update_whole():
    base, obs = make_policies(B), make_obs(B)
    after = {name: value + 1e-6 for name, value in base.items()}
    params, scale = shorten(base, after, obs, 0.5)
    assert (scale == 1).all() and all(torch.equal(params[name], after[name]) for name in base)


def test_update_that_lowers_the_held_out_return_is_refused():
    # Updates along the gradient of one bank, judged on another: with a huge step some episode gets worse.
    config = replace(CONFIG, inner_lr=100.0, held_out_particles=M)
    base, obs, held_out = make_policies(B), make_obs(B), make_noise(H, K, B, M, seed=3)
    state, result = decision(config, held_out=held_out)
    free, _ = decision(replace(config, held_out_particles=0))
    world = make_world()
    gain = imagined_return(free.params, base, world, obs, held_out, config)
    gain = gain - imagined_return(base, base, world, obs, held_out, config)
    assert (gain < 0).any() and (gain > 0).any()
    for b in range(B):
        expected = free.params if gain[b] >= 0 else base
        assert all(torch.equal(state.params[name][b], expected[name][b]) for name in base)
        assert result.update_scale[b] == float(gain[b] >= 0)


@pytest.mark.parametrize("change", [{"inner_steps": 0}, {"inner_lr": 0.0}])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_no_update_gives_the_base_actions_bit_for_bit(change, optimiser):
    base, obs = make_policies(B), make_obs(B)
    state, result = decision(replace(CONFIG, optimiser=optimiser, **change))
    assert torch.equal(result.action, act(base, obs))
    assert all(torch.equal(state.params[name], base[name]) for name in base)


@pytest.mark.parametrize("broken", ["noise", "policy"])
def test_non_finite_decision_is_discarded_in_its_episode_alone(broken):
    base, noise = make_policies(B), make_noise(H, K, B, M).unsqueeze(0)
    start = Adapted.start(map_params(lambda v: v + 0.01, base))
    if broken == "noise":
        noise[0, 1, 0, 1, 2, 0] = torch.inf
    else:
        start.params["w1"][1, 0, 0] = torch.nan
    state, result = decision(noise=noise, base=base, state=start)
    clean, expected = decision(base=base, state=Adapted.start(map_params(lambda v: v + 0.01, base)))
    assert result.discarded.tolist() == [False, True, False]
    assert torch.equal(result.action[1], act(base, make_obs(B))[1])
    for name in base:
        assert torch.equal(state.params[name][1].nan_to_num(7), start.params[name][1].nan_to_num(7))
        assert torch.equal(state.params[name][[0, 2]], clean.params[name][[0, 2]])
    assert torch.equal(result.action[[0, 2]], expected.action[[0, 2]])


def test_a_later_non_finite_inner_step_undoes_the_earlier_ones():
    banks = torch.stack([make_noise(H, K, B, M, seed=s) for s in (1, 2)])
    banks[1, 0, 0, 2] = torch.nan
    base = make_policies(B)
    state, result = decision(replace(CONFIG, inner_steps=2, redraw_noise=True), noise=banks, base=base)
    assert result.discarded.tolist() == [False, False, True]
    assert all(torch.equal(state.params[name][2], base[name][2]) for name in base)
    assert not torch.equal(state.params["w0"][0], base["w0"][0])
