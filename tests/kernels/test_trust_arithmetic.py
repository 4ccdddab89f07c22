"""The trust's arithmetic: its limits, and the kernels against the reference in float64."""

import sys
from math import inf, nan

import pytest
import torch
from torch import Tensor

from fastdwm.itpo.trust import no_evidence
from fastdwm.kernels.trust import (
    COLUMNS,
    CRITIC_ERROR,
    LOG_SLOPE,
    REWARD,
    TrustSettings,
    clip,
    hold,
    observe,
    op,
    reference,
    weigh,
)
from fastdwm.kernels.trust.reference import clip_reference, hold_reference, observe_reference, weigh_reference
from fastdwm.kernels.update import stepped

pytest.importorskip("triton")

from fastdwm.kernels.trust.kernel import clip_fwd, hold_fwd, observe_fwd, weigh_fwd  # noqa: E402

SETTINGS = TrustSettings(radius=0.7, speed=0.01, leash=0.3, doubt=1.5, guarded=True)
STEPS, PARTICLES, ACTIONS, DISCOUNT = 3, 2, 5, 0.9
SPECIAL = torch.tensor([nan, 0.0, inf, 1e-30, 1e25])
"""1e25 and 1e-30 are finite, and their squares are not, or are zero"""
REFERENCE = weigh_reference, clip_reference, hold_reference, observe_reference
OPERATORS = weigh, clip, hold, observe
KERNELS = weigh_fwd, clip_fwd, hold_fwd, observe_fwd


def numbers(*shape: int, seed: int, special: float = 0.1) -> Tensor:
    """Positive, of all orders of size, and some that are special."""
    generator = torch.Generator().manual_seed(seed)
    plain = torch.randn(shape, generator=generator).exp()
    chosen = SPECIAL[torch.randint(len(SPECIAL), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < special, chosen, plain)


def make_problem(n_episodes: int = 3, seed: int = 0, special: float = 0.1) -> dict[str, Tensor]:
    """Evidence of episodes that have seen 0, 1, 2, .. decisions, and a decision; float32."""
    evidence = numbers(n_episodes, len(COLUMNS), seed=seed, special=special)
    evidence[:, 0] = torch.arange(n_episodes)
    # Errors of the size of the slopes, where the trust is neither 0 nor 1.
    evidence[:, CRITIC_ERROR] *= 1.5
    evidence[0, 1:] = nan
    news = numbers(4, n_episodes, seed=seed + 1, special=special)
    return {
        "evidence": evidence,
        "slopes": numbers(STEPS, n_episodes, PARTICLES, ACTIONS, seed=seed + 2, special=special / 50),
        "base": numbers(n_episodes, ACTIONS, seed=seed + 3, special=0),
        "change": 0.2 * numbers(n_episodes, ACTIONS, seed=seed + 4, special=special / 10),
        **dict(zip(("norm", "reward", "value", "returns"), news, strict=True)),
    }


def decision(operators, problem: dict[str, Tensor], settings: TrustSettings = SETTINGS) -> dict[str, Tensor]:
    """Everything the operators compute; what one returns, the next one gets as float32 had it."""
    weigh, clip, hold, observe = operators
    evidence, base = problem["evidence"], problem["base"]
    weights = weigh(evidence, settings, STEPS, STEPS * ACTIONS)
    held = hold(base + problem["change"], base, weights.trust, evidence, settings)
    news = (problem[name] for name in ("slopes", "norm", "reward", "value", "returns"))
    found = weights._asdict() | dict(zip(("held", "distance", "reason"), held, strict=True))
    return found | {"factor": clip(weights, problem["norm"]), "after": observe(evidence, *news, DISCOUNT)}


def told(observe, problem: dict[str, Tensor], earned: Tensor) -> Tensor:
    """The evidence after a decision, where the environment told the reward of the one before."""
    news = (problem[name] for name in ("slopes", "norm", "reward", "value", "returns"))
    return observe(problem["evidence"], *news, DISCOUNT, earned)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        torch.testing.assert_close(
            actual[name], value, rtol=2e-5, atol=1e-6, equal_nan=True, msg=lambda m, n=name: n + m
        )


CASES = pytest.mark.parametrize("seed", [0, 1, 2])
GUARDS = pytest.mark.parametrize("guarded", [True, False])


@CASES
@GUARDS
def test_the_cpu_kernels_are_the_reference(seed, guarded):
    pytest.importorskip("numba")
    problem, settings = make_problem(200, seed), SETTINGS._replace(guarded=guarded)
    assert_same(decision(OPERATORS, problem, settings), decision(REFERENCE, problem, settings))


@CASES
@GUARDS
def test_the_triton_kernels_are_the_reference(interpreted, seed, guarded):
    problem, settings = make_problem(60, seed), SETTINGS._replace(guarded=guarded)
    assert_same(interpreted(decision, KERNELS, problem, settings), decision(REFERENCE, problem, settings))


def test_what_was_earned_takes_the_place_of_what_was_imagined(interpreted):
    problem = make_problem(30, special=0)
    earned = torch.where(torch.arange(30) % 2 == 0, nan, numbers(30, seed=9, special=0))
    known = problem["evidence"].clone()
    known[1::2, REWARD] = earned[1::2]
    expected = decision(REFERENCE, problem | {"evidence": known})["after"]
    assert not torch.equal(expected[1:].nan_to_num(), decision(REFERENCE, problem)["after"][1:].nan_to_num())
    assert_same({"": told(observe, problem, earned)}, {"": expected})
    assert_same({"": interpreted(told, observe_fwd, problem, earned)}, {"": expected})


@pytest.mark.parametrize("observe", [observe, observe_reference])
def test_the_slope_is_that_of_the_whole_episode_and_the_errors_are_those_of_late(observe):
    """Where imagination goes astray, slopes and errors grow together: neither may excuse the other."""
    evidence, one = no_evidence(torch.zeros(1, 1)), torch.ones(1)
    for size in [1.0] * 150 + [16.0] * 150:
        slopes = torch.full((STEPS, 1, PARTICLES, ACTIONS), size)
        # Values of zero: what every decision earned is then what the critics were wrong by.
        evidence = observe(evidence, slopes, one, size * one, 0 * one, 0 * one, DISCOUNT)
    assert evidence[0, LOG_SLOPE].exp().item() == pytest.approx(4, rel=1e-3)
    assert 15 < evidence[0, CRITIC_ERROR].item() < 16


def test_the_cpu_kernels_repeat_the_constants_of_the_reference():
    """By hand: a change has to change their file too, or kernels that were compiled before would go on with the old."""
    compiled = pytest.importorskip("fastdwm.kernels.trust.compiled")
    assert {name: getattr(reference, name) for name in compiled.BAKED} == compiled.BAKED


def test_float64_runs_by_the_reference():
    problem = {name: value.double() for name, value in make_problem().items()}
    found, expected = decision(OPERATORS, problem), decision(REFERENCE, problem)
    assert all(torch.equal(found[name].nan_to_num(), expected[name].nan_to_num()) for name in expected)
    assert found["after"].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trusted_step_is_the_gradient_times_its_factor_in_memory_of_its_own(dtype):
    shapes = (3, 33), (3, 33), (3,)
    params, grads, factor = (numbers(*s, seed=i, special=0).to(dtype) for i, s in enumerate(shapes))
    before = params.clone()
    after = stepped(params, grads, factor)
    torch.testing.assert_close(after, before + factor.unsqueeze(1) * grads)
    assert torch.equal(params, before)
    with pytest.raises(ValueError, match="factor: expected shape"):
        stepped(params, grads, factor[:2])


def test_without_numba_float32_runs_by_the_reference(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastdwm.kernels.trust.compiled", None)
    monkeypatch.delattr("fastdwm.kernels.trust.compiled", raising=False)
    monkeypatch.setattr(op, "cpu_kernels", op.cpu_kernels.__wrapped__)
    found, expected = decision(OPERATORS, make_problem()), decision(REFERENCE, make_problem())
    assert all(torch.equal(found[name].nan_to_num(), expected[name].nan_to_num()) for name in expected)


def test_nothing_is_trusted_before_anything_is_known():
    found = decision(OPERATORS, make_problem(1, special=0))
    assert all(torch.equal(found[name], torch.zeros(1)) for name in ("trust", "anchor", "factor"))
    assert torch.equal(found["held"], make_problem(1, special=0)["base"]) and found["reason"] == 2


def test_what_is_not_finite_changes_no_mean():
    problem = make_problem(2, special=0)
    news = dict.fromkeys(("norm", "value", "returns"), torch.full((2,), inf)) | {"slopes": problem["slopes"] * nan}
    after = decision(OPERATORS, problem | news)["after"]
    torch.testing.assert_close(after[:, 1:5], problem["evidence"][:, 1:5], equal_nan=True)
    assert (after[:, 0] == problem["evidence"][:, 0] + 1).all()


def test_an_episode_does_not_depend_on_the_others():
    problem = make_problem(4)
    together = decision(OPERATORS, problem)
    alone = decision(OPERATORS, {n: v[:, 2:3].contiguous() if n == "slopes" else v[2:3] for n, v in problem.items()})
    assert all(torch.equal(together[name][2:3].nan_to_num(), alone[name].nan_to_num()) for name in alone)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "match"),
    [
        ("evidence", torch.zeros(3, 7), ValueError, r"evidence: expected shape \(any, 8\)"),
        ("evidence", torch.zeros(3, 8, dtype=torch.int64), TypeError, "evidence: expected torch.float32"),
        ("slopes", torch.zeros(STEPS, 2, PARTICLES, ACTIONS), ValueError, r"slopes: expected shape \(any, 3, any, any"),
        (
            "slopes",
            torch.zeros(STEPS, PARTICLES, 3, ACTIONS).transpose(1, 2),
            ValueError,
            "slopes: expected contiguous",
        ),
        ("norm", torch.zeros(3, 1), ValueError, r"norm: expected shape"),
        ("base", torch.zeros(3, ACTIONS).double(), TypeError, "action: expected torch.float32, got torch.float64"),
        ("reward", torch.zeros(2), ValueError, r"reward: expected shape \(3\)"),
        ("value", torch.zeros(3).double(), TypeError, "value: expected torch.float32"),
        ("returns", torch.zeros(6)[::2], ValueError, "returns: expected contiguous"),
    ],
)
def test_wrong_inputs_raise(name, wrong, error, match):
    with pytest.raises(error, match=match):
        decision(OPERATORS, make_problem() | {name: wrong})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@GUARDS
def test_kernels_on_a_gpu_are_the_reference(guarded):
    problem, settings = make_problem(200), SETTINGS._replace(guarded=guarded)
    found = decision(OPERATORS, {name: value.cuda() for name, value in problem.items()}, settings)
    assert_same({name: value.cpu() for name, value in found.items()}, decision(REFERENCE, problem, settings))
