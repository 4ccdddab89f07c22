"""Captured decisions against the eager loop on the same noise, also when episodes leave or restart."""

from dataclasses import replace

import pytest
import torch
from toy_agents import CONFIG, SGD
from toy_bundles import make_bundle

from fastdwm.itpo.deadline import LEARNING, Deadline
from fastdwm.itpo.decision import decide
from fastdwm.itpo.episodes import AgentContext, Episodes
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.graphs import CudaGraphEpisodes
from fastdwm.itpo.rules import make_rule
from fastdwm.models.policy import Policy

BOUND = replace(CONFIG, max_deviation=0.02)
"""a bound that some of the decisions below exceed and others do not"""
ADAM = replace(SGD, optimiser="adam", inner_lr=1e-3)
RULES = pytest.mark.parametrize("config", [BOUND, SGD, ADAM], ids=["bound", "sgd", "adam"])
DEVICES = ["cpu", *(pytest.param(device, marks=pytest.mark.gpu) for device in ("cuda", "cuda:1"))]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param != "cpu" and torch.cuda.device_count() <= (torch.device(request.param).index or 0):
        pytest.skip(f"no {request.param}")
    return request.param


def make_episodes(device, n_episodes=3, config=BOUND, deadline=None, seed=3, kind=CudaGraphEpisodes):
    bundle = make_bundle()
    policy, world = Policy.mlp(bundle.policy).to(device), bundle.world(device=device)
    objective = FusedObjective(policy, world, config, precision="ieee")
    shared = AgentContext(policy, make_rule(config), objective, config, world.dynamics.noise_steps, seed, deadline)
    return kind(shared, n_episodes, bundle.obs_dim)


def observations(n_decisions, n_episodes, device):
    return torch.randn(n_decisions, n_episodes, 11, generator=torch.Generator().manual_seed(0)).to(device)


def with_eager(captured, obs):
    """Captured decision, eager decision on the same noise and eager parameters, for each observation."""
    shared = captured.shared
    state = shared.rule.init(captured.base)
    for o in obs:
        decision, noise = captured.decide(o), captured.noise.contiguous()
        args = state, captured.base, shared.objective, o, noise, shared.config
        state, expected = decide(shared.policy, shared.rule, *args)
        yield decision, expected, state.params


def assert_alike(decision, expected):
    torch.testing.assert_close(decision.action, expected.action.cpu(), rtol=1e-5, atol=1e-6)
    for name in ("objective", "grad_norm", "deviation"):
        value = getattr(expected, name).cpu()
        torch.testing.assert_close(getattr(decision, name), value, rtol=1e-4, atol=1e-5, equal_nan=True)
    for name in ("inner_steps", "discarded"):
        assert torch.equal(getattr(decision, name), getattr(expected, name).cpu()), name


@RULES
def test_inputs_in_a_row_match_the_eager_decision(device, config):
    captured, kept = make_episodes(device, config=config), []
    for decision, expected, params in with_eager(captured, observations(5, 3, device)):
        assert_alike(decision, expected)
        torch.testing.assert_close(captured.params, params, rtol=1e-4, atol=1e-6)
        kept.append((decision, decision.action.clone(), captured.noise))
    assert (captured.params != captured.base).any(1).all()
    # Results survive the next replays, and every replay draws other noise.
    assert all(torch.equal(decision.action, copy) for decision, copy, _ in kept)
    assert not torch.equal(kept[0][2], kept[1][2])
    if config.max_deviation is not None:
        clipped = [(decision.deviation > config.max_deviation).tolist() for decision, _, _ in kept]
        assert True in sum(clipped, []) and False in sum(clipped, [])


@RULES
def test_an_episode_that_is_not_finite_is_undone_alone(device, config):
    """The graph restores its static buffers, the rule's memory included."""
    captured, obs = make_episodes(device, config=config), observations(4, 3, device)
    obs[1, 1] = torch.nan
    before = None
    for i, (decision, expected, params) in enumerate(with_eager(captured, obs)):
        assert decision.discarded.tolist() == [False, i == 1, False]
        assert i == 1 or (captured.params != captured.base).any(1).all()
        if i == 1:
            assert torch.equal(captured.params[1], before[1]) and (captured.params != before).any(1)[[0, 2]].all()
        else:
            assert_alike(decision, expected)
        torch.testing.assert_close(captured.params, params, rtol=1e-4, atol=1e-6)
        before = captured.params.clone()


def test_observations_and_decisions_are_on_the_host(device):
    decision = make_episodes(device).decide(observations(1, 3, "cpu")[0])
    assert decision.action.device.type == decision.numbers.device.type == "cpu"


@RULES
def test_episodes_that_leave_or_restart_do_not_disturb_the_others(device, config):
    changing, untouched = (make_episodes(device, config=config) for _ in range(2))
    obs = observations(7, 3, device)
    expected = [untouched.decide(o).action[1] for o in obs]
    actions = [changing.decide(o).action[1] for o in obs[:4]]
    changing.keep(torch.tensor([False, True, True]))
    actions.append(changing.decide(obs[4, 1:]).action[0])
    assert not torch.equal(changing.params[1], changing.base[1])
    changing.restart(torch.tensor([False, True]))
    assert torch.equal(changing.params[1], changing.base[1]) and not torch.equal(changing.params[0], changing.base[0])
    actions.append(changing.decide(obs[5, 1:]).action[0])
    changing.keep(torch.tensor([True, False]))
    actions.append(changing.decide(obs[6, 1:2]).action[0])
    torch.testing.assert_close(torch.stack(actions), torch.stack(expected), rtol=0, atol=0)


@RULES
@pytest.mark.parametrize("kind", [Episodes, CudaGraphEpisodes])
def test_a_restarted_episode_has_forgotten_all_but_its_noise(device, config, kind):
    """Its next decision is that of a new episode on the same noise, so the rule's memory is reset too."""
    episodes, obs = make_episodes(device, config=config, kind=kind), observations(4, 3, device)
    for o in obs[:3]:
        episodes.decide(o)
    episodes.restart(torch.tensor([True, False, True]))
    ((decision, expected, params),) = with_eager(episodes, obs[3:])
    alike = (episodes.params - params).abs().amax(1) < 1e-6
    assert alike.tolist() == [True, False, True] and (params != episodes.base).any(1).all()
    torch.testing.assert_close(decision.action[[0, 2]].cpu(), expected.action[[0, 2]].cpu(), rtol=1e-5, atol=1e-6)


def test_renewed_episodes_are_as_new(device):
    episodes, obs = make_episodes(device), observations(4, 3, device)
    expected = [episodes.decide(o).action for o in obs]
    episodes.keep(torch.tensor([False, True, True]))
    episodes.renew()
    assert len(episodes) == 3
    assert all(torch.equal(episodes.decide(o).action, action) for o, action in zip(obs, expected, strict=True))


def played(shares, device, config, n_decisions=4):
    """Actions (decisions, 4, A) of four episodes, split into shares (first, n); episode 0 leaves after a decision."""
    obs, parts = observations(n_decisions, 4, device), []
    for first, n in shares:
        episodes = make_episodes(device, n, config, seed=3 + first)
        rows = torch.arange(first, first + n)
        parts.append([episodes.decide(obs[0, rows]).action])
        stays = rows > 0
        episodes.keep(stays)
        for o in obs[1:]:
            action = torch.zeros_like(parts[-1][0])
            if stays.any():
                action[stays] = episodes.decide(o[rows[stays]]).action
            parts[-1].append(action)
    return torch.cat([torch.stack(part) for part in parts], 1)


@pytest.mark.parametrize("config", [BOUND, replace(SGD, inner_lr=1e-3)], ids=["bound", "sgd"])
@pytest.mark.parametrize("noise", ["decision", "step", "time"])
def test_episodes_are_the_same_in_any_split(device, noise, config):
    config = replace(config, noise=noise, inner_steps=2)
    together = played([(0, 4)], device, config)
    assert torch.equal(together, played([(0, 2), (2, 2)], device, config))
    assert torch.equal(together, played([(0, 1), (1, 3)], device, config))
    assert not torch.equal(together, played([(0, 4)], device, replace(config, inner_steps=0)))


def test_noise_by_absolute_time_moves_on_by_one_step(device):
    episodes, obs = make_episodes(device, config=replace(BOUND, noise="time")), observations(3, 3, device)
    banks = []
    for o in obs:
        episodes.decide(o)
        banks.append(episodes.noise.clone())
    for before, after in zip(banks, banks[1:], strict=False):
        assert torch.equal(after[:, :-1], before[:, 1:]) and not torch.equal(after[:, -1], before[:, -1])


def test_a_deadline_chooses_the_number_of_steps(device):
    config = replace(BOUND, inner_steps=3)
    far, near = (make_episodes(device, config=config, deadline=Deadline(limit)) for limit in (1e6, 1e-9))
    free, obs = make_episodes(device, config=config), observations(LEARNING + 1, 3, device)
    steps = {far: [], near: [], free: []}
    for o in obs:
        for episodes, counts in steps.items():
            if episodes.shared.deadline is not None:
                episodes.shared.deadline.start()
            counts.append(int(episodes.decide(o).inner_steps[0]))
            if episodes.shared.deadline is not None:
                episodes.shared.deadline.finish()
    learning = [1] * LEARNING
    assert steps == {far: [*learning, 3], near: [*learning, 0], free: [3] * (LEARNING + 1)}


@pytest.mark.gpu
def test_a_thousand_replays_allocate_nothing():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    episodes, obs = make_episodes("cuda"), observations(1, 3, "cuda")[0]
    episodes.decide(obs)
    before = torch.cuda.memory_allocated()
    for _ in range(1000):
        episodes.decide(obs)
    assert torch.cuda.memory_allocated() <= before
