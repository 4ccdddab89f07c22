"""The first minute on a GPU: a few checks of everything, against float64 in plain torch.

The same checks run on a CPU by the CPU's paths, so that they cannot rot where there is no GPU.
"""

import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import Products

from fastdwm import Agent, Bundle, ITPOConfig
from fastdwm.errors import InputError
from fastdwm.itpo.decision import decide
from fastdwm.itpo.episodes import AgentContext
from fastdwm.itpo.fused import FusedObjective
from fastdwm.itpo.graphs import CudaGraphEpisodes
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.itpo.rules import make_rule
from fastdwm.models.policy import Policy
from fastdwm_kernels.launch import PRECISIONS
from fastdwm_kernels.noise import normal
from fastdwm_kernels.noise.reference import normal_reference

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from problems import Problem, Size  # noqa: E402
from trainers import PARTS  # noqa: E402

pytestmark = pytest.mark.slow

BUNDLE = Bundle.load("hopper-medium")
POLICY = Policy.mlp(BUNDLE.policy)
OBS = torch.tensor([1.25] + [0.0] * 10) + 0.05 * torch.randn(64, 11, generator=torch.Generator().manual_seed(0))
WORLDS = ("diffusion", "meanflow")
RULES = {
    "bound": {"max_deviation": 0.05},
    "sgd": {"optimiser": "sgd", "inner_lr": 1e-4},
    "adam": {"optimiser": "adam", "inner_lr": 1e-4},
}
LARGEST_ERROR = {"ieee": 1e-3, "fp16": 0.3}
"""largest error of a gradient, relative to its norm; plain torch on a CPU errs by 6e-6, with fp16 operands by 0.13"""


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def off(actual, expected):
    """Error relative to the norm of what is expected."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_noise_is_the_reference(device):
    seeds, times = torch.tensor([3, 4, 2**40 + 5]), torch.tensor([0, 7, 2**31])
    for shape in ((1, 1, 1), (6, 5, 6), (40, 22, 8), (400, 352, 8)):
        actual = normal(seeds.to(device), times.to(device), *shape).cpu()
        torch.testing.assert_close(actual, normal_reference(seeds, times, *shape, 0), rtol=0, atol=1e-4)
    x = normal(seeds.to(device), times.to(device), 1000, 500, 1000)
    assert x.isfinite().all() and abs(float(x.mean())) < 5e-3 and abs(float(x.std()) - 1) < 5e-3


CASES = [
    ("diffusion", 1, 2, 8, {}),
    ("meanflow", 1, 2, 8, {}),
    ("diffusion", 3, 17, 3, {"termination": "soft"}),
    ("meanflow", 2, 5, 2, {"termination": "mask", "terminal_value": "mean"}),
    ("meanflow", 1, 300, 5, {}),
    ("meanflow", 3, 4, 0, {"terminal_value": "first"}),
]


@pytest.mark.parametrize(("world", "B", "M", "H", "settings"), CASES, ids=str)
def test_a_rollout_is_that_of_float64(device, world, B, M, H, settings):  # noqa: N803
    config, exact = ITPOConfig(horizon=H, particles=M, **settings), BUNDLE.world(world, dtype=torch.float64)
    params = POLICY.base.repeat(B, 1) + 1e-3 * draw(B, POLICY.base.shape[1])
    params[:, POLICY.layout.n_params :] = 0
    inputs = params, OBS[:B], draw(H, exact.dynamics.noise_steps, B, M, 11, seed=2)
    reference = ReferenceObjective(replace(POLICY, base=POLICY.base.double()), exact, config)
    expected = reference.gradient(*(x.double() for x in inputs))
    inputs, models = [x.to(device) for x in inputs], (POLICY.to(device), BUNDLE.world(world, device=device), config)
    errors = {}
    for precision in PRECISIONS:
        if device == "cpu" and precision == "fp16":
            with Products(precision):
                actual, value = (
                    f(*inputs) for f in (ReferenceObjective(*models).gradient, ReferenceObjective(*models).value)
                )
        else:
            objective = FusedObjective(*models, precision=precision)
            actual, value = objective.gradient(*inputs), objective.value(*inputs)
        norms = actual.partial_sq_norms.sum(1).sqrt(), expected.partial_sq_norms.sum(1).sqrt()
        pairs = *zip(actual[:3], expected[:3], strict=True), norms, (value, expected.returns)
        errors[precision] = [off(*pair) for pair in pairs]
    assert all(max(errors[precision]) <= LARGEST_ERROR[precision] for precision in PRECISIONS), errors


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_decision_is_that_of_float64(device, world, rule):
    """Noise as the captured decision drew it; the change of the action, which is what the engine computes."""
    config = ITPOConfig(particles=64, horizon=3, **RULES[rule])
    policy, model = POLICY.to(device), BUNDLE.world(world, device=device)
    objective = FusedObjective(policy, model, config, precision="ieee")
    shared = AgentContext(policy, make_rule(config), objective, config, model.dynamics.noise_steps, 7)
    captured = CudaGraphEpisodes(shared, 2, 11)
    actual, base = captured.decide(OBS[:2]), POLICY.base.double().repeat(2, 1)
    exact = ReferenceObjective(
        replace(POLICY, base=POLICY.base.double()), BUNDLE.world(world, dtype=torch.float64), config
    )
    inputs = OBS[:2].double(), captured.noise.cpu().double(), config
    _, expected = decide(exact.policy, shared.rule, shared.rule.init(base), base, exact, *inputs)
    base_action = exact.policy.act(base, OBS[:2].double())
    assert not actual.discarded.any()
    assert off(actual.action - base_action, expected.action - base_action) < 0.05
    for name in ("objective", "grad_norm", "deviation"):
        assert off(getattr(actual, name), getattr(expected, name)) < 0.02, name


def decisions(agent, n=12):
    return np.stack([agent.act(OBS[i % 8].numpy()) for i in range(n)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("world", WORLDS)
def test_decisions_repeat_to_the_bit_and_allocate_nothing(device, world, rule):
    agents = [Agent.of(BUNDLE, ITPOConfig(**RULES[rule]), world=world, device=device) for _ in range(2)]
    first, other = map(decisions, agents)
    assert np.array_equal(first, other)
    agents[0].reset()
    assert np.array_equal(first, decisions(agents[0]))
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        decisions(agents[0], 100)
        assert torch.cuda.memory_allocated() <= before


@pytest.mark.parametrize("particles", [16, 256])
def test_other_episodes_change_no_bit(device, particles):
    config = ITPOConfig(particles=particles, **RULES["bound"])
    alone, among = (Agent.of(BUNDLE, config, device=device) for _ in range(2))
    for obs in OBS[:30].numpy().reshape(3, 10, 11):
        assert np.array_equal(alone.act(obs[0]), among.act(obs)[0])


def score(world, states, actions):
    return states[..., 0].mean(-1).sum(0) - actions.square().sum(-1).mean(-1).sum(0)


def test_a_score_of_ones_own_is_captured(device):
    agent = Agent.of(BUNDLE, ITPOConfig(**RULES["bound"]), device=device, score=score)
    base = Agent.of(BUNDLE, ITPOConfig(inner_steps=0), device=device)
    actions = decisions(agent)
    assert agent.backend == "fused" and not agent.discarded.any() and np.abs(actions - decisions(base)).max() > 1e-4


def test_a_score_that_reads_a_number_is_refused_in_one_line(device):
    def reading(world, states, actions):
        return score(world, states, actions) / states.abs().max().item()

    agent = Agent.of(BUNDLE, ITPOConfig(**RULES["bound"]), device=device, score=reading)
    if device == "cuda":
        with pytest.raises(InputError, match="^score: expected operations on the GPU alone"):
            agent.act(OBS[0].numpy())
        agent = Agent.of(BUNDLE, ITPOConfig(**RULES["bound"]), device=device, score=reading, backend="reference")
    assert np.isfinite(agent.act(OBS[0].numpy())).all()
    # What was captured before, or is captured after, is not disturbed.
    assert np.isfinite(Agent.of(BUNDLE, ITPOConfig(**RULES["bound"]), device=device).act(OBS[0].numpy())).all()


def test_captures_survive_the_work_of_other_threads(device):
    """Agents of two threads, and a third that copies and waits all the time."""

    def work():
        while not done.is_set():
            torch.ones(1000).to(device).sum().item()

    def act():
        results.append(decisions(Agent.of(BUNDLE, ITPOConfig(**RULES["bound"]), device=device)))

    done, results = threading.Event(), []
    act()
    worker, actors = threading.Thread(target=work), [threading.Thread(target=act) for _ in range(2)]
    for thread in (worker, *actors):
        thread.start()
    for thread in actors:
        thread.join()
    done.set()
    worker.join()
    assert len(results) == 3 and all(np.array_equal(actions, results[0]) for actions in results)


@pytest.mark.parametrize("name", PARTS)
def test_updates_of_training_stay_finite(device, name):
    part = PARTS[name](Problem(Size(D=64, device=device)))
    before = part.trainer.networks[part.network]["w0"].detach().clone()
    update = part.update(captured=device == "cuda")
    scalars = [update() for _ in range(12)][-1]
    after = part.trainer.networks[part.network]["w0"].detach()
    assert all(value.isfinite() for value in scalars.values())
    assert after.isfinite().all() and not torch.equal(before, after)
