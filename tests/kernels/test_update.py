"""The optimiser steps and the bound against their formulas; every execution against the reference."""

from math import inf, nan

import pytest
import torch
from numerics import EPS, assert_close, assert_within_twice
from torch import Tensor

from fastdwm_kernels.update import adam_step, bound_step, pull_back, reference, sgd_step

pytest.importorskip("triton")

COPIES, STEPS, PARTICLES, ACTIONS = 4, 3, 5, 3
WIDTHS = pytest.mark.parametrize("width", [1, 17, 2100])
OPERATORS = {"bound_step": bound_step, "pull_back": pull_back, "sgd_step": sgd_step, "adam_step": adam_step}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def update(width: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """params, grads, and the parts of the squared norms, one of them zero, in float64."""
    grads = normal(COPIES, width, seed=1)
    parts = [part.square().sum(1) for part in grads.split(700, 1)]
    return normal(COPIES, width, seed=0), grads, torch.stack([torch.zeros(COPIES).double(), *parts], 1)


def action_grads() -> Tensor:
    """dJ/da (H + 1, B, M, A), of a different magnitude in each episode."""
    return normal(STEPS, COPIES, PARTICLES, ACTIONS, seed=2) * torch.logspace(-1, 1, COPIES).double().view(-1, 1, 1)


def memory() -> Tensor:
    """The mean of G and the number of steps (B, 2); the first episode has just begun."""
    return torch.tensor([[0.0, 0.0], [3.0, 1.0], [0.5, 7.0], [1e-3, 200.0]]).double()


def deviating(width: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """params, base, action and base_action, whose deviations are 0, 1/4, 1/2 and 2 to the bit."""
    base_action = torch.tensor([0.5, -0.25, 0.0]).double().expand(COPIES, -1)
    change = torch.tensor([[0.0], [0.25], [0.5], [2.0]]).double() * torch.tensor([1.0, -1.0, 1.0]).double()
    return normal(COPIES, width, seed=0), normal(COPIES, width, seed=1), base_action + change, base_action.contiguous()


def moments(width: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """first, second and count of episodes that have taken 0, 1, 2, .. steps."""
    count = torch.arange(COPIES).double()
    started = (count > 0).unsqueeze(1)
    return normal(COPIES, width, seed=3) * started, normal(COPIES, width, seed=4).square() * started, count


ARGUMENTS = {
    "bound_step": lambda width=40: (*update(width), action_grads(), memory(), 0.1),
    "pull_back": lambda width=40: (*deviating(width), 0.5),
    "sgd_step": lambda width=40: (*update(width), 0.1),
    "adam_step": lambda width=40: (*update(width)[:2], *moments(width), 0.1),
}


def to(arguments: tuple, *target) -> tuple:
    return tuple(moved(value, *target) if isinstance(value, Tensor) else value for value in arguments)


def moved(value: Tensor, *target) -> Tensor:
    """The same on `target`, where an expanded row stays expanded."""
    return value[:1].to(*target).expand_as(value) if value.stride(0) == 0 else value.to(*target)


def by_torch(name: str, arguments: tuple) -> tuple[Tensor, ...]:
    if name == "adam_step":
        return adam_step(*arguments)
    return getattr(reference, f"{name}_reference")(*arguments)


def by_operator(name: str, arguments: tuple) -> tuple[Tensor, ...]:
    """The CPU kernels, or on a GPU the Triton kernels."""
    return OPERATORS[name](*arguments)


def by_kernel(name: str, arguments: tuple) -> tuple[Tensor, ...]:
    """The Triton kernels; runs in the interpreter's process."""
    from fastdwm_kernels.update import bound_kernel, kernel

    if name == "adam_step":
        params, grads, *memory, lr = arguments
        kernel.update_adam(params, grads, *memory, lr)
        return params, *memory
    return getattr(bound_kernel, f"{name}_fwd")(*arguments)


@pytest.fixture(params=["torch", "cpu", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def execute(request):
    """`execute(name, arguments)` runs an operator in float32 on one of its executions."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        return lambda name, arguments: to(by_operator(name, to(arguments, "cuda", torch.float32)), "cpu")
    if request.param == "interpreter":
        interpreted = request.getfixturevalue("interpreted")
        return lambda name, arguments: interpreted(by_kernel, name, to(arguments, torch.float32))
    if request.param == "cpu":
        pytest.importorskip("numba")
    run = by_torch if request.param == "torch" else by_operator
    return lambda name, arguments: run(name, to(arguments, torch.float32))


# The default rule's step.
def test_the_first_step_gains_as_much_as_moving_each_action_along_its_slope():
    """The gain to first order is alpha |g|^2, which grows with G / mean(G)."""
    params, grads, parts = update()
    after, norm, remembered = bound_step(params, grads, parts, action_grads(), memory(), 0.1)
    torch.testing.assert_close(norm, grads.norm(dim=1))
    for b in range(COPIES):
        numbers = action_grads()[:, b].flatten().tolist()
        rms = (sum(x * x for x in numbers) / len(numbers)) ** 0.5
        g, (mean, count) = float(grads[b].square().sum()) / rms**2, memory()[b].tolist()
        mean = (count * mean + g) / (count + 1)
        assert remembered[b].tolist() == pytest.approx([mean, count + 1], rel=1e-12)
        gain = STEPS * ACTIONS * 0.1 * rms * g / mean
        assert float((after[b] - params[b]) @ grads[b]) == pytest.approx(gain, rel=1e-12)
        torch.testing.assert_close(after[b], params[b] + gain / grads[b].square().sum() * grads[b])


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_unit_of_the_return_does_not_matter(scale):
    params, grads, parts = update()
    after, norm, remembered = bound_step(params, grads, parts, action_grads(), memory(), 0.1)
    scaled = params, scale * grads, scale**2 * parts, scale * action_grads()
    assert all(map(torch.equal, bound_step(*scaled, memory(), 0.1), (after, scale * norm, remembered)))
    assert (after - params).norm(dim=1).min() > 1e-6


def test_where_actions_stop_following_the_parameters_the_step_does_not_explode():
    """Under a saturated tanh grads shrink and dJ/da does not."""
    params, grads, parts = update()
    args = params, 1e-6 * grads, 1e-12 * parts, action_grads()
    alone = bound_step(*args, torch.zeros(COPIES, 2).double(), 0.1)[0] - params
    _, _, remembered = bound_step(params, grads, parts, action_grads(), torch.zeros(COPIES, 2).double(), 0.1)
    later = bound_step(*args, remembered, 0.1)[0] - params
    assert later.norm(dim=1).min() > 1e-9
    torch.testing.assert_close(later, 2e-12 * alone, rtol=1e-6, atol=1e-14)


def test_twice_the_action_step_is_twice_the_step():
    params, *args = update()
    once, twice = (bound_step(params, *args, action_grads(), memory(), c)[0] - params for c in (0.1, 0.2))
    torch.testing.assert_close(twice, 2 * once)


def test_without_a_gradient_there_is_no_step(execute):
    """Nor is there one if J does not depend on the actions, whose G is not finite and not remembered."""
    params, grads, parts = update()
    per_action = action_grads()
    grads[:2], parts[:2], per_action[:, 1], per_action[:, 2] = 0, 0, 0, 0
    after, norm, remembered = execute("bound_step", (params, grads, parts, per_action, memory(), 0.1))
    assert (after == params.float()).all(1).tolist() == [True, True, True, False]
    assert (norm == 0).tolist() == [True, True, False, False]
    assert remembered[0].tolist() == [0, 1] and torch.equal(remembered[1:3], memory()[1:3].float())


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_value_that_is_not_finite_affects_its_own_episode_alone(execute, bad):
    """The norm reports it, so that the decision is rolled back; memory skips it."""
    params, grads, parts = update()
    expected = bound_step(params, grads, parts, action_grads(), memory(), 0.1)
    per_action = action_grads()
    parts[1, 1], per_action[1, 2, 3, 0] = bad, nan
    after, norm, remembered = execute("bound_step", (params, grads, parts, per_action, memory(), 0.1))
    assert norm.isfinite().tolist() == [True, False, True, True]
    assert torch.equal(after[2], params[2].float()) and torch.equal(remembered[1:3], memory()[1:3].float())
    for ours, theirs in zip((after, remembered), (expected[0], expected[2]), strict=True):
        torch.testing.assert_close(ours[[0, 3]].double(), theirs[[0, 3]], rtol=2e-6, atol=1e-6)


# The bound on the deviation.
def test_an_action_within_the_bound_stays_to_the_bit(execute):
    """This includes a deviation of zero and one equal to the bound."""
    args = params, base, action, _ = deviating()
    pulled, clipped, deviation = execute("pull_back", (*args, 0.5))
    assert deviation.tolist() == [0, 0.25, 0.5, 2]
    assert torch.equal(pulled[:3], params[:3].float()) and torch.equal(clipped[:3], action[:3].float())
    assert not torch.equal(pulled[3], params[3].float())


@pytest.mark.parametrize("bound", [0.125, 0.3, 1e-6])
def test_the_change_of_action_and_policy_shrinks_by_one_share(bound):
    params, base, action, base_action = deviating()
    pulled, clipped, deviation = pull_back(params, base, action, base_action, bound)
    far = deviation > bound
    assert far.sum() == (action - base_action).square().mean(1).sqrt().gt(bound).sum() >= 2
    for b in far.nonzero().flatten():
        change = clipped[b] - base_action[b]
        torch.testing.assert_close(change.square().mean().sqrt(), torch.tensor(bound).double())
        torch.testing.assert_close(change * deviation[b], (action[b] - base_action[b]) * bound)
        torch.testing.assert_close((pulled[b] - base[b]) * deviation[b], (params[b] - base[b]) * bound)
    assert torch.equal(pulled[~far], params[~far]) and torch.equal(clipped[~far], action[~far])


def test_an_infinite_bound_changes_nothing(execute):
    params, base, action, base_action = deviating()
    action[1, 0], action[2, 2] = inf, nan
    pulled, clipped, deviation = execute("pull_back", (params, base, action, base_action, inf))
    assert torch.equal(pulled, params.float())
    torch.testing.assert_close(clipped, action.float(), rtol=0, atol=0, equal_nan=True)
    assert deviation.isfinite().tolist() == [True, False, False, True]


def test_nan_in_an_action_stays_in_its_episode(execute):
    params, base, action, base_action = deviating()
    expected = pull_back(params, base, action, base_action, 0.3)
    action[2, 1] = nan
    results = execute("pull_back", (params, base, action, base_action, 0.3))
    assert results[1][2].isnan().any() and results[2][2].isnan()
    others = torch.tensor([0, 1, 3])
    for ours, theirs in zip(results[:2], expected[:2], strict=True):
        assert_close(ours[others], theirs[others], EPS["ieee"], 4.0)


@WIDTHS
def test_a_base_policy_for_all_is_one_for_each(execute, width):
    params, base, *actions = deviating(width)
    shared = base[:1].expand(COPIES, -1)
    one, rows = (execute("pull_back", (params, base, *actions, 0.3)) for base in (shared, shared.contiguous()))
    assert all(map(torch.equal, one, rows)) and not torch.equal(one[0], params.float())


# SGD and Adam.
def test_sgd_is_params_and_step_size_times_gradient():
    params, grads, parts = update()
    after, norm = sgd_step(params, grads, parts, 0.1)
    torch.testing.assert_close(after, params + 0.1 * grads, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(norm, grads.norm(dim=1))


def test_adam_is_its_formula():
    params, grads, first, second, count = state = (*update()[:2], *moments())
    expected = params
    for _ in range(3):
        params, *memory = adam_step(params, grads, *state[2:], 0.1)
        count, first, second = count + 1, 0.9 * first + 0.1 * grads, 0.999 * second + 0.001 * grads**2
        t = count.unsqueeze(1)
        expected = expected + 0.1 * first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
        state = params, grads, *memory
        for ours, theirs in zip((params, *memory), (expected, first, second, count), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_first_step_of_adam_in_fp32_is_as_long_as_in_fp64():
    """1 - 0.999 in fp32 would make it 2e-5 too long."""
    args = ARGUMENTS["adam_step"](1)
    steps = [adam_step(*to(args, dtype))[0].double() - args[0] for dtype in (torch.float32, torch.float64)]
    torch.testing.assert_close(*steps, rtol=3e-6, atol=3e-7)


# All operators.
@WIDTHS
@pytest.mark.parametrize("name", ["bound_step", "pull_back", "adam_step"])
def test_every_execution_is_the_reference(execute, name, width):
    args = ARGUMENTS[name](width)
    exact = OPERATORS[name](*args)
    actual, eager = execute(name, args), by_torch(name, to(args, torch.float32))
    for ours, theirs, expected in zip(actual, eager, exact, strict=True):
        assert_within_twice(ours, theirs, expected, "ieee")
        # Numbers of different episodes may differ by orders of magnitude.
        if expected.shape == args[0].shape:
            assert_close(ours, expected, EPS["ieee"], 4.0)
        else:
            torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPERATORS)
def test_nothing_is_changed_in_place(name, dtype):
    args = to(ARGUMENTS[name](), dtype)
    before = [value.clone() if isinstance(value, Tensor) else value for value in args]
    after = OPERATORS[name](*args)
    tensors = [(a, b) for a, b in zip(args, before, strict=True) if isinstance(a, Tensor)]
    assert all(torch.equal(a, b) for a, b in tensors)
    assert not torch.equal(after[0], args[0]) and after[0].data_ptr() != args[0].data_ptr()


@pytest.mark.parametrize(
    ("name", "index", "wrong", "error", "match"),
    [
        ("bound_step", 0, torch.zeros(40, COPIES).double().T, ValueError, "params: expected contiguous"),
        ("bound_step", 1, torch.zeros(2, 40).double(), ValueError, "grads: expected shape"),
        ("bound_step", 2, torch.zeros(2, 3).double(), ValueError, "partial_sq_norms: expected shape"),
        ("bound_step", 3, torch.zeros(STEPS, 2, 5, 3).double(), ValueError, "action_grads: expected shape"),
        ("bound_step", 3, action_grads().float(), TypeError, "action_grads: expected torch.float64"),
        ("bound_step", 4, torch.zeros(COPIES, 1).double(), ValueError, "memory: expected shape"),
        ("pull_back", 1, torch.zeros(COPIES, 39).double(), ValueError, "base: expected shape"),
        ("pull_back", 1, torch.zeros(2, 40).double(), ValueError, "base: expected shape"),
        ("pull_back", 1, torch.zeros(1, 40).double().expand(2, -1), ValueError, "base: expected shape"),
        ("pull_back", 2, torch.zeros(1, ACTIONS).double().expand(COPIES, -1), ValueError, "action: expected contig"),
        ("pull_back", 3, torch.zeros(2, ACTIONS).double(), ValueError, "base_action: expected shape"),
        ("sgd_step", 1, torch.zeros(2, 40).double(), ValueError, "grads: expected shape"),
        ("adam_step", 2, torch.zeros(COPIES, 40), TypeError, "first: expected"),
        ("adam_step", 4, torch.zeros(2).double(), ValueError, "count: expected shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_inputs_raise(name, index, wrong, error, match):
    args = list(ARGUMENTS[name]())
    args[index] = wrong
    with pytest.raises(error, match=match):
        OPERATORS[name](*args)
