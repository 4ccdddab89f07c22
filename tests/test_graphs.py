"""The captured decision: the same decisions as the eager loop on the same noise, whoever leaves or restarts."""

from dataclasses import replace

import pytest
import torch
from test_agent import CONFIG, RULES, SGD
from toy_bundles import make_bundle

from fastdwm.itpo.adapted import Adapted
from fastdwm.itpo.deadline import LEARNING, Deadline
from fastdwm.itpo.decision import decide
from fastdwm.itpo.episodes import Adaptation
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.graphs import CapturedEpisodes
from fastdwm.kernels.trust.reference import CAUTION
from fastdwm.models.policy import Policy

DEVICES = ["cpu", *(pytest.param(device, marks=pytest.mark.gpu) for device in ("cuda", "cuda:1"))]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param != "cpu" and torch.cuda.device_count() <= (torch.device(request.param).index or 0):
        pytest.skip(f"no {request.param}")
    return request.param


def make_episodes(device, n_episodes=3, config=CONFIG, deadline=None, seed=3):
    bundle = make_bundle()
    policy, world = Policy.mlp(bundle.policy).to(device), bundle.world(device=device)
    objective = FusedObjective(policy, world, config, precision="ieee")
    shared = Adaptation(policy, objective, config, world.dynamics.noise_steps, seed, deadline)
    return CapturedEpisodes(shared, n_episodes, bundle.obs_dim)


def observations(n_decisions, n_episodes, device):
    return torch.randn(n_decisions, n_episodes, 11, generator=torch.Generator().manual_seed(0)).to(device)


@RULES
def test_inputs_in_a_row_match_the_eager_decision(device, config):
    captured, obs = make_episodes(device, config=config), observations(5, 3, device)
    state = Adapted.start(captured.base, config)
    kept = []
    for o in obs:
        decision = captured.decide(o)
        noise = captured.noise.contiguous()
        shared = captured.shared
        state, expected = decide(shared.policy, state, captured.base, shared.objective, o, noise, None, config)
        torch.testing.assert_close(decision.action, expected.action.cpu(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(decision.objective, expected.objective.cpu(), rtol=1e-5, atol=1e-5)
        for name in ("update_scale", "inner_steps", "discarded"):
            assert torch.equal(getattr(decision, name), getattr(expected, name).cpu()), name
        assert torch.equal(decision.guarded.reason, expected.guarded.reason.cpu())
        trust = expected.guarded.trust.cpu()
        torch.testing.assert_close(decision.guarded.trust, trust, rtol=1e-4, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(captured.params, state.params, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(captured.evidence, state.evidence, rtol=1e-4, atol=1e-5, equal_nan=True)
        kept.append((decision.action, decision.action.clone(), captured.noise))
    assert not torch.equal(captured.params, captured.base)
    # Results survive the next replays, and every replay drew other noise.
    assert all(torch.equal(result, copy) for result, copy, _ in kept)
    assert not torch.equal(kept[0][2], kept[1][2])


def test_the_seed_repeats_the_noise(device):
    obs = observations(4, 3, device)
    first, second = (
        [episodes.decide(o).action for o in obs] for episodes in (make_episodes(device), make_episodes(device))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("config", [CONFIG, replace(SGD, optimiser="adam")], ids=["trust", "adam"])
def test_an_episode_that_is_not_finite_is_undone_alone(device, config):
    """In the static buffers, where nobody else could return to what was."""
    broken, whole = (make_episodes(device, config=config) for _ in range(2))
    obs = observations(3, 3, device)
    for episodes in (broken, whole):
        episodes.decide(obs[0])
    before = broken.params.clone()
    unknown = obs[1].clone()
    unknown[1] = torch.nan
    found, expected = broken.decide(unknown), whole.decide(obs[1])
    assert found.discarded.tolist() == [False, True, False] and not expected.discarded.any()
    assert torch.equal(broken.params[1], before[1]) and torch.equal(broken.params[[0, 2]], whole.params[[0, 2]])
    assert torch.equal(found.action[[0, 2]], expected.action[[0, 2]])
    assert broken.evidence[1, -3:].isnan().all() and torch.equal(
        broken.evidence[0].nan_to_num(), whole.evidence[0].nan_to_num()
    )


def test_what_the_host_is_told_waits_for_nobody_else(device):
    """Rows on the host, from rows on the host."""
    episodes = make_episodes(device)
    decision = episodes.decide(observations(1, 3, "cpu")[0])
    told = [*vars(decision).values(), *vars(decision.guarded).values()]
    assert all(value.device.type == "cpu" for value in told if isinstance(value, torch.Tensor))


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


def test_rewards_reach_the_episodes_that_are_left(device):
    """A reward that contradicts the models costs the trust of its own episode, in whatever slot it is."""
    episodes, obs = make_episodes(device), observations(4 * CAUTION + 3, 3, device)
    for o in obs[:-3]:
        episodes.decide(o)
    episodes.keep(torch.tensor([False, True, True]))
    unknown = torch.tensor([torch.nan, 100.0], device=device)
    for o in obs[-3:]:
        trust = episodes.decide(o[1:], unknown).guarded.trust
    assert trust[0] > 0.9 and trust[1] < 0.1
    assert (episodes.decide(obs[0, 1:]).guarded.trust[0] - trust[0]).abs() < 0.1


def test_renewed_episodes_are_as_new(device):
    episodes, obs = make_episodes(device), observations(4, 3, device)
    expected = [episodes.decide(o).action for o in obs]
    episodes.keep(torch.tensor([False, True, True]))
    episodes.renew()
    assert len(episodes) == 3
    assert all(torch.equal(episodes.decide(o).action, action) for o, action in zip(obs, expected, strict=True))


def played(shares, device, config, n_decisions=4):
    """Actions (decisions, 4, A) of four episodes in shares of consecutive slots; the first leaves after a decision."""
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


@pytest.mark.parametrize("config", [CONFIG, replace(SGD, inner_lr=1e-3)], ids=["trust", "sgd"])
@pytest.mark.parametrize("noise", ["decision", "step", "time"])
def test_episodes_are_the_same_in_any_split(device, noise, config):
    config = replace(config, noise=noise, inner_steps=2, held_out_particles=2)
    whole = played([(0, 4)], device, config)
    assert torch.equal(whole, played([(0, 2), (2, 2)], device, config))
    assert torch.equal(whole, played([(0, 1), (1, 3)], device, config))
    assert not torch.equal(whole, played([(0, 4)], device, replace(config, inner_steps=0)))


def test_noise_by_absolute_time_moves_on_by_one_step(device):
    episodes, obs = make_episodes(device, config=replace(CONFIG, noise="time")), observations(3, 3, device)
    banks = []
    for o in obs:
        episodes.decide(o)
        banks.append(episodes.noise.clone())
    for before, after in zip(banks, banks[1:], strict=False):
        assert torch.equal(after[:, :-1], before[:, 1:]) and not torch.equal(after[:, -1], before[:, -1])


def test_a_deadline_chooses_the_number_of_steps(device):
    config = replace(CONFIG, inner_steps=3)
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
