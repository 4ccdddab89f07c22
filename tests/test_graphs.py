"""The captured decision: the same decisions as the eager loop on the same noise, whoever leaves or restarts."""

from dataclasses import replace

import pytest
import torch
from test_agent import CONFIG, make_bundle

from fastdwm.deadline import LEARNING, Deadline
from fastdwm.episodes import Adaptation
from fastdwm.fused import FusedObjective
from fastdwm.graphs import CapturedEpisodes
from fastdwm.itpo import Adapted, decide
from fastdwm.kernels.layout import Layout

DEVICES = ["cpu", *(pytest.param(device, marks=pytest.mark.gpu) for device in ("cuda", "cuda:1"))]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param != "cpu" and torch.cuda.device_count() <= (torch.device(request.param).index or 0):
        pytest.skip(f"no {request.param}")
    return request.param


def make_episodes(device, n_episodes=3, config=CONFIG, deadline=None):
    bundle = make_bundle()
    params = {name: value.unsqueeze(0).to(device) for name, value in bundle.policy.items()}
    layout = Layout.of(params)
    objective = FusedObjective(bundle.world(device), layout, config, "ieee")
    shape = (bundle.dynamics_config.denoise_steps, bundle.obs_dim)
    return CapturedEpisodes(Adaptation(layout, layout.pack(params), objective, config, shape, 3, deadline), n_episodes)


def observations(n_decisions, n_episodes, device):
    return torch.randn(n_decisions, n_episodes, 11, generator=torch.Generator().manual_seed(0)).to(device)


def test_three_inputs_in_a_row_match_the_eager_decision(device):
    captured, obs = make_episodes(device), observations(3, 3, device)
    state = Adapted.start(captured.shared.layout, captured.base, CONFIG)
    kept = []
    for o in obs:
        decision = captured.decide(o)
        noise = captured.noise.contiguous()
        state, expected = decide(
            state, captured.base, captured.shared.objective, o, noise, noise[0, :, :, :, :0], CONFIG
        )
        torch.testing.assert_close(decision.action, expected.action, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(decision.objective, expected.objective, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(captured.params, state.params, rtol=1e-5, atol=1e-6)
        kept.append((decision.action, decision.action.clone(), captured.noise))
    # Results survive the next replays, and every replay drew other noise.
    assert all(torch.equal(result, copy) for result, copy, _ in kept)
    assert not torch.equal(kept[0][2], kept[1][2])


def test_the_seed_repeats_the_noise(device):
    obs = observations(2, 3, device)
    first, second = (
        [episodes.decide(o).action for o in obs] for episodes in (make_episodes(device), make_episodes(device))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_episodes_that_leave_or_restart_do_not_disturb_the_others(device):
    changing, untouched, obs = make_episodes(device), make_episodes(device), observations(4, 3, device)
    expected = [untouched.decide(o).action[1] for o in obs]
    actions = [changing.decide(obs[0]).action[1]]
    changing.keep(torch.tensor([False, True, True]))
    actions.append(changing.decide(obs[1, 1:]).action[0])
    changing.restart(torch.tensor([False, True]))
    assert torch.equal(changing.params[1], changing.base[1])
    actions.append(changing.decide(obs[2, 1:]).action[0])
    changing.keep(torch.tensor([True, False]))
    actions.append(changing.decide(obs[3, 1:2]).action[0])
    torch.testing.assert_close(torch.stack(actions), torch.stack(expected), rtol=0, atol=0)


def test_renewed_episodes_are_as_new(device):
    episodes, obs = make_episodes(device), observations(2, 3, device)
    expected = [episodes.decide(o).action for o in obs]
    episodes.keep(torch.tensor([False, True, True]))
    episodes.renew()
    assert len(episodes) == 3
    assert all(torch.equal(episodes.decide(o).action, action) for o, action in zip(obs, expected, strict=True))


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
