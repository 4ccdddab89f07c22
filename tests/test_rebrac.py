"""ReBRAC against numbers worked out by hand and the published order of its updates."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from models import generator

from fastdwm.models.config import ReBRACConfig
from fastdwm.models.policy import mlp_policy
from fastdwm.models.rebrac import ReBRAC, actor_loss, critic_loss, critic_target, init_critics, init_policy, q_values
from fastdwm.tasks import get_task
from fastdwm.train.fqe import FQE

CONFIG = ReBRACConfig(actor_bc_coef=0.5, critic_bc_coef=0.1, discount=0.9, batch_size=2, actor_lr=1e-3, critic_lr=1e-3)


def constant_policy(action: float) -> dict:
    """Policy tanh(bias), with one hidden unit and zero weights."""
    zeros = {"w0": torch.zeros(1, 1), "b0": torch.zeros(1), "w1": torch.zeros(1, 1)}
    return zeros | {"b1": torch.tensor([math.atanh(action)])}


def linear_critics() -> dict:
    """Q_1 = 2 relu(s + a), Q_2 = 3 relu(s + a), without layer norm: hidden unit relu(s + a)."""
    return {
        "w0": torch.ones(2, 2, 1),
        "b0": torch.zeros(2, 1),
        "w1": torch.tensor([[[2.0]], [[3.0]]]),
        "b1": torch.zeros(2, 1),
    }


def batch() -> dict:
    return {
        "obs": torch.tensor([[1.0], [2.0]]),
        "action": torch.tensor([[0.5], [-0.5]]),
        "reward": torch.tensor([1.0, 3.0]),
        "next_obs": torch.tensor([[2.0], [4.0]]),
        "next_action": torch.tensor([[0.9], [0.0]]),
        "terminated": torch.tensor([0.0, 1.0]),
    }


def test_critic_target_by_hand():
    # Smoothing noise: 0.2 * 10 clipped to 0.5, so a' = 0.4 + 0.5 = 0.9 and 0.2 * -1 gives a' = 0.2.
    # Row 0: min Q = 2 (2 + 0.9) = 5.8, penalty (0.9 - 0.9)^2 = 0: y = 1 + 0.9 * 5.8 = 6.22. Row 1 terminated: y = 3.
    noise = torch.tensor([[10.0], [-1.0]])
    target = critic_target(constant_policy(0.4), linear_critics(), batch(), noise, CONFIG)
    torch.testing.assert_close(target, torch.tensor([6.22, 3.0]))
    # Row 0 with noise 0: a' = 0.4, min Q = 4.8, penalty 0.25: y = 1 + 0.9 (4.8 - 0.1 * 0.25) = 5.2975.
    target = critic_target(constant_policy(0.4), linear_critics(), batch(), torch.zeros(2, 1), CONFIG)
    torch.testing.assert_close(target, torch.tensor([5.2975, 3.0]))


def test_smoothed_action_stays_in_the_box():
    # 0.9 + 0.5 would be 1.4; clipped to 1: y = 1 + 0.9 (2 (2 + 1) - 0.1 * 0.01) = 6.3991.
    noise = torch.tensor([[10.0], [0.0]])
    target = critic_target(constant_policy(0.9), linear_critics(), batch(), noise, CONFIG)
    torch.testing.assert_close(target[0], torch.tensor(6.3991))


def test_critic_loss_sums_the_critics_and_averages_the_batch():
    # relu(s + a) = 1.5, 1.5: Q_1 = 3, 3 and Q_2 = 4.5, 4.5. Targets 1, 2: (4 + 1) / 2 + (12.25 + 6.25) / 2 = 11.75.
    loss, q_mean = critic_loss(linear_critics(), batch(), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(loss, torch.tensor(11.75))
    torch.testing.assert_close(q_mean, torch.tensor(3.75))


def test_actor_loss_by_hand():
    # a = 0.4: distances 0.01 and 0.81, mean 0.41; min Q = 2.8 and 4.8, mean |Q| = 3.8, so the value term is -1.
    loss, distance = actor_loss(constant_policy(0.4), linear_critics(), batch(), CONFIG)
    torch.testing.assert_close(distance, torch.tensor(0.41))
    torch.testing.assert_close(loss, torch.tensor(0.5 * 0.41 - 1.0))


def test_critics_are_linear_relu_layer_norm():
    params = init_critics(3, 2, (8, 8), generator())
    for name, value in params.items():
        if name.startswith(("scale", "shift")):
            value += torch.rand(value.shape, generator=generator(1))
    obs, action = torch.randn(5, 3), torch.randn(5, 2)
    for q in range(2):
        layers = []
        for i in range(3):
            layer = torch.nn.Linear(*params[f"w{i}"].shape[1:])
            layer.weight.data, layer.bias.data = params[f"w{i}"][q].T, params[f"b{i}"][q]
            layers.append(layer)
            if i < 2:
                norm = torch.nn.LayerNorm(8)
                norm.weight.data, norm.bias.data = params[f"scale{i}"][q], params[f"shift{i}"][q]
                layers += [torch.nn.ReLU(), norm]
        expected = torch.nn.Sequential(*layers)(torch.cat([obs, action], 1)).squeeze(1)
        torch.testing.assert_close(q_values(params, obs, action)[q], expected)


def test_initialisation_bounds():
    policy, q = init_policy(9, 3, (64, 64), generator()), init_critics(9, 3, (64, 64), generator())
    assert (policy["b0"] == 0.1).all() and (q["b1"] == 0.1).all()
    assert 0.9 / 3 < policy["w0"].abs().max() <= 1 / 3 and 0.9 / 8 < q["w1"].abs().max() <= 1 / 8
    assert 0.9e-3 < policy["w2"].abs().max() <= 1e-3 and 2.5e-3 < q["w2"].abs().max() <= 3e-3
    assert (q["scale0"] == 1).all() and (q["shift1"] == 0).all()


def trainer_config() -> ReBRACConfig:
    return ReBRACConfig(hidden=(8, 8), batch_size=4).for_task(get_task("hopper-medium"))


@pytest.fixture
def trainer():
    policy, q = init_policy(1, 1, (8, 8), generator(1)), init_critics(1, 1, (8, 8), generator(2))
    return ReBRAC(policy, q, trainer_config(), generator())


def test_policy_and_targets_move_on_every_second_update_only(trainer):
    start = copy.deepcopy(trainer.networks)
    trainer.step(batch(), trainer.advance())
    after_one = copy.deepcopy(trainer.networks)
    assert not torch.equal(after_one["critics"]["w0"], start["critics"]["w0"])
    for name in ("policy", "target_policy", "target_critics"):
        assert all(torch.equal(after_one[name][k], start[name][k]) for k in start[name])
    trainer.step(batch(), trainer.advance())
    nets = trainer.networks
    assert not torch.equal(nets["policy"]["w0"], start["policy"]["w0"])
    # The target policy follows the policy from before its step, the target critics the critics from after theirs.
    for name, value in nets["target_policy"].items():
        expected = after_one["target_policy"][name].lerp(after_one["policy"][name], 5e-3)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)
    for name, value in nets["target_critics"].items():
        torch.testing.assert_close(value, after_one["target_critics"][name].lerp(nets["critics"][name], 5e-3))


def test_policy_step_leaves_the_critics_alone(trainer):
    other = copy.deepcopy(trainer)
    trainer.step(batch(), True)
    other.step(batch(), False)
    assert not torch.equal(trainer.networks["policy"]["w0"], other.networks["policy"]["w0"])
    for name, value in trainer.networks["critics"].items():
        assert torch.equal(other.networks["critics"][name], value)


def test_critics_learn_a_known_value():
    # One state and action, reward 1, no end and discount 0.5 give Q = 2 for any initial target network.
    one = {name: torch.zeros(64, 1) for name in ("obs", "action", "next_obs", "next_action")}
    one |= {"reward": torch.ones(64), "terminated": torch.zeros(64)}
    config = ReBRACConfig(hidden=(16,), target_rate=0.1, discount=0.5, critic_bc_coef=0.0, target_noise=0.0)
    config = config.for_task(get_task("hopper-medium"))
    policy, q = init_policy(1, 1, (16,), generator(1)), init_critics(1, 1, (16,), generator(2))
    trainer = ReBRAC(policy, q, config, generator())
    for _ in range(400):
        trainer.step(one, trainer.advance())
    value = q_values(trainer.networks["critics"], torch.zeros(1, 1), torch.zeros(1, 1))
    torch.testing.assert_close(value, torch.full((2, 1), 2.0), rtol=0.02, atol=0)


def test_decayed_step_sizes_follow_a_cosine():
    config = replace(trainer_config(), lr_decay=True, updates=4)
    policy, q = init_policy(1, 1, (8, 8), generator(1)), init_critics(1, 1, (8, 8), generator(2))
    decaying = ReBRAC(policy, q, config, generator())
    shares = []
    for _ in range(4):
        decaying.step(batch(), decaying.advance())
        shares.append(decaying.optimisers["policy"].param_groups[0]["lr"] / config.actor_lr)
    half = math.sqrt(0.5)
    assert shares == pytest.approx([1.0, (1 + half) / 2, 0.5, (1 - half) / 2])


def test_fitted_q_evaluation_finds_the_value_of_a_policy_that_the_critics_had_wrong():
    # In a state that stays, every action is worth reward / (1 - discount) = 2 for any initial critics.
    config = ReBRACConfig(hidden=(16, 16), target_rate=0.5, discount=0.5, critic_lr=1e-2, batch_size=8)
    config = config.for_task(get_task("hopper-medium"))
    policy = init_policy(3, 2, (16, 16), torch.Generator().manual_seed(0))
    critics = init_critics(3, 2, (16, 16), torch.Generator().manual_seed(1))
    obs = torch.ones(8, 3)
    batch = {"obs": obs, "next_obs": obs, "action": torch.zeros(8, 2), "next_action": torch.ones(8, 2)}
    batch |= {"reward": torch.ones(8), "terminated": torch.zeros(8)}
    trainer = FQE(policy, critics, config, 400, torch.Generator())
    assert abs(q_values(critics, obs, mlp_policy(policy, obs)).mean() - 2) > 1
    for _ in range(400):
        trainer.step(batch, trainer.advance())
    assert abs(q_values(trainer.networks["critics"], obs, mlp_policy(policy, obs)).mean() - 2) < 0.1
    ending = batch | {"terminated": torch.ones(8)}
    trainer = FQE(policy, critics, config, 400, torch.Generator())
    for _ in range(400):
        trainer.step(ending, trainer.advance())
    assert abs(q_values(trainer.networks["critics"], obs, mlp_policy(policy, obs)).mean() - 1) < 0.1
