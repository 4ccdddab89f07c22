"""Policies of the user's own: any module is adapted, MLPs are converted and fused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy_agents import BOUND, OWN_RULES, SGD, Gated, observations
from toy_bundles import ACTION_DIM, OBS_DIM, make_bundle

from fastdwm import Agent, InputError, Policy
from fastdwm_kernels.layout import Layout

pytestmark = pytest.mark.filterwarnings("ignore:the agent imagines in plain torch")


def sequential(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(OBS_DIM, 24), nn.ReLU(), *between, nn.Linear(24, ACTION_DIM), nn.Tanh())


def world():
    return make_bundle().world()


@pytest.mark.parametrize("make", [sequential, lambda: Gated().eval()], ids=["sequential", "module"])
def test_every_copy_has_its_own_parameters_and_gradient(make):
    """Compare the copies in float64 with one module at a time."""
    policy, obs = Policy.of(make()), torch.randn(3, 5, OBS_DIM).double()
    flat = policy.base.double() + 0.1 * torch.randn(3, policy.layout.width).double()
    flat[:, policy.layout.n_params :] = 0
    leaf, upstream = flat.clone().requires_grad_(), torch.randn(3, 5, ACTION_DIM).double()
    actions = policy.apply(policy.layout.views(leaf), obs)
    (grads,) = torch.autograd.grad((actions * upstream).sum(), leaf)
    for b in range(3):
        module = make().double()
        module.load_state_dict(policy.parameters(flat[b]), strict=False)
        expected = module(obs[b])
        torch.testing.assert_close(actions[b], expected, rtol=1e-12, atol=1e-12)
        own = dict(module.named_parameters())
        expected = torch.autograd.grad((expected * upstream[b]).sum(), own.values(), materialize_grads=True)
        for theirs, ours in zip(expected, policy.parameters(grads[b]).values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@OWN_RULES
def test_a_known_module_runs_fused_and_like_the_reference(config):
    module = sequential(nn.Linear(24, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 24), nn.ReLU()))
    agents = [Agent(module, world(), config, backend=backend) for backend in ("auto", "reference")]
    assert [agent.backend for agent in agents] == ["fused", "reference"]
    for obs in observations(5, 2):
        first, second = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(first, second, atol=1e-5)
    with torch.no_grad():
        assert np.abs(first - module(torch.tensor(obs)).numpy()).max() > 1e-4


@OWN_RULES
def test_tanh_layers_and_a_clip_at_the_end_run_fused(config):
    torch.manual_seed(0)
    # An nn.Sequential that Policy.of converts, with a last layer large enough that some actions are clipped.
    module = nn.Sequential(nn.Linear(OBS_DIM, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, ACTION_DIM))
    module.append(nn.Hardtanh())
    with torch.no_grad():
        module[4].weight.mul_(8)
    agents = [Agent(module, world(), config, backend=backend) for backend in ("auto", "reference")]
    assert [agent.backend for agent in agents] == ["fused", "reference"]
    actions = []
    for obs in observations(5, 2):
        first, second = (agent.act(obs) for agent in agents)
        np.testing.assert_allclose(first, second, atol=1e-5)
        actions.append(first)
    assert 0 < (np.abs(actions) == 1).mean() < 1
    assert np.abs(first - module(torch.tensor(obs)).detach().numpy()).max() > 1e-4


@OWN_RULES
def test_any_module_adapts_on_the_reference_path_and_stays_as_it_is(config):
    module = Gated().eval()
    before = copy.deepcopy(module.state_dict())
    agent = Agent(module, world(), config)
    assert agent.backend == "reference"
    for obs in observations(5, 2):
        agent.act(obs)
    diagnosis = agent.diagnose()
    assert (diagnosis["policy_distance"] > 1e-4).all() and (agent.discarded == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("make", [sequential, lambda: Gated().eval()], ids=["sequential", "module"])
def test_the_adapted_parameters_come_back_under_the_modules_names(make):
    module, obs = make(), observations(1, 2)[0]
    agent = Agent(module, world(), SGD)
    base = agent.policy_parameters()
    assert all(torch.equal(base[name], value) for name, value in module.named_parameters())
    actions = agent.act(obs)
    for i in range(2):
        module.load_state_dict(agent.policy_parameters(i), strict=False)
        torch.testing.assert_close(module(torch.tensor(obs[i : i + 1])).detach().numpy(), actions[i : i + 1])


def hooked():
    module = sequential()
    module[0].register_forward_hook(lambda module, inputs, result: 0.5 * result)
    return module


def shared():
    layer = nn.Linear(OBS_DIM, OBS_DIM)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(OBS_DIM, ACTION_DIM), nn.Tanh())


@pytest.mark.parametrize(
    "module",
    [
        sequential(nn.Linear(24, 24), nn.ELU()),
        sequential(nn.Linear(24, 24), nn.Tanh()),
        nn.Sequential(nn.Linear(OBS_DIM, 8), nn.ReLU(), nn.Linear(8, ACTION_DIM), nn.Hardtanh(-2, 2)),
        nn.Sequential(nn.Linear(OBS_DIM, 8), nn.ReLU(), nn.Linear(8, ACTION_DIM)),
        nn.Sequential(nn.Linear(OBS_DIM, 8, bias=False), nn.ReLU(), nn.Linear(8, ACTION_DIM), nn.Tanh()),
        nn.Sequential(nn.Linear(OBS_DIM, ACTION_DIM), nn.Tanh()),
        hooked(),
        shared(),
    ],
    ids=["elu", "relu and tanh", "other bounds", "no bounds", "no bias", "no hidden layer", "hook", "shared layer"],
)
def test_modules_that_are_no_such_mlp_are_not_converted(module):
    policy, obs = Policy.of(module), torch.randn(4, OBS_DIM)
    assert not policy.fused and type(policy.layout) is Layout
    torch.testing.assert_close(policy.act(policy.base.repeat(4, 1), obs), module(obs).detach(), rtol=1e-6, atol=1e-6)


class InPlace(Gated):
    def forward(self, obs):
        out = torch.zeros(len(obs), ACTION_DIM)
        out[:] = self.out(self.body(obs))
        return out


class Branching(Gated):
    def forward(self, obs):
        action = self.out(self.body(obs))
        return action if action.sum() > 0 else -action


class OneNumber(Gated):
    def forward(self, obs):
        return self.out(self.body(obs)).sum()


@pytest.mark.parametrize("module", [InPlace, Branching, OneNumber])
def test_a_module_that_cannot_be_copied_says_so_in_one_line(module):
    agent = Agent(module().eval(), world(), BOUND)
    with pytest.raises(InputError, match=r"^policy: expected [^\n]+$"):
        agent.act(observations(1, 2)[0])
    assert agent.episodes is None


def test_a_module_that_training_would_change_is_refused():
    with pytest.raises(InputError, match=r"evaluation mode.* buffer 1.running_mean: call its eval\(\) first"):
        Policy.of(nn.Sequential(nn.Linear(OBS_DIM, 8), nn.BatchNorm1d(8), nn.Linear(8, ACTION_DIM)))
    with pytest.raises(InputError, match="a module with parameters to adapt, got Tanh"):
        Policy.of(nn.Tanh())


def test_fused_is_refused_with_the_reason():
    with pytest.raises(InputError, match="backend: fused is not possible: the policy is no MLP of ReLU or tanh"):
        Agent(Gated().eval(), world(), BOUND, backend="fused")


@pytest.mark.parametrize("make", [sequential, lambda: Gated().eval()], ids=["sequential", "module"])
def test_a_module_of_another_dtype_made_in_inference_mode_is_adapted_in_float32(make):
    with torch.inference_mode():
        module = make().double()
    agent = Agent(module, world(), SGD)
    assert agent.act(observations(1, 2)[0]).dtype == np.float32
    assert (agent.diagnose()["policy_distance"] > 1e-4).all()


def test_a_function_and_a_layout_are_a_policy():
    """The policy is linear, without any module."""
    layout = Layout({"gain": (OBS_DIM, ACTION_DIM)})
    base = layout.pack({"gain": 0.1 * torch.randn(1, OBS_DIM, ACTION_DIM)})
    policy = Policy(lambda params, obs: (obs @ params["gain"]).tanh(), layout, base)
    agent = Agent(policy, world(), SGD)
    agent.act(observations(1, 2)[0])
    assert agent.backend == "reference" and (agent.diagnose()["policy_distance"] > 1e-4).all()
    with pytest.raises(ValueError, match=r"expected shape \(11,\) or \(B, 11\), got \(2, 12\)"):
        agent.act(np.zeros((2, OBS_DIM + 1)))


@pytest.mark.parametrize("config", [BOUND, SGD, replace(SGD, inner_steps=0)], ids=["bound", "sgd", "base"])
def test_no_action_leaves_the_range_even_if_the_module_does(config):
    module = nn.Sequential(nn.Linear(OBS_DIM, 8), nn.ReLU(), nn.Linear(8, ACTION_DIM))
    with torch.no_grad():
        module[2].bias.fill_(20.0)
    agent = Agent(module, world(), config)
    for obs in observations(3, 2):
        assert (agent.act(obs) == 1).all()
