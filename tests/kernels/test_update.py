"""The optimiser step of all episodes against its formula; the kernels against the reference."""

import pytest
import torch
from numerics import EPS, assert_close
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.adapted import Adapted, ascend
from fastdwm.itpo.trust import no_evidence
from fastdwm.kernels.trust import Weights
from fastdwm.kernels.trust.reference import clip_reference
from fastdwm.kernels.update import adam_ascent, bounded_step, sgd_ascent

pytest.importorskip("triton")

from fastdwm.kernels.update.ascent_kernel import bounded_step_fwd  # noqa: E402
from fastdwm.kernels.update.kernel import update_adam, update_sgd  # noqa: E402

STATE = ("params", "grads", "first", "second", "count")


def make_state(copies: int = 3, width: int = 40, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Episodes that have taken 0, 1, 2, ... steps."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(copies, width, generator=generator, dtype=torch.float64) for name in STATE[:4]}
    state["count"] = torch.arange(copies, dtype=torch.float64)
    started = (state["count"] > 0).unsqueeze(1)
    state["first"], state["second"] = state["first"] * started, state["second"].square() * started
    return {name: value.to(dtype) for name, value in state.items()}


def plain_adam(state: dict[str, Tensor], grads: Tensor, lr: float) -> dict[str, Tensor]:
    """Adam's textbook formula, uphill."""
    count = state["count"] + 1
    first = 0.9 * state["first"] + 0.1 * grads
    second = 0.999 * state["second"] + 0.001 * grads**2
    t = count.unsqueeze(1)
    step = first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return {"params": state["params"] + lr * step, "first": first, "second": second, "count": count}


def run_kernel(name: str, state: dict[str, Tensor], lr: float, factor: Tensor | None) -> dict:
    """One step by the kernel; returns the new state, since the worker's changes stay in the worker."""
    if name == "sgd":
        update_sgd(state["params"], state["grads"], lr, factor)
    else:
        update_adam(*(state[key] for key in STATE), lr, factor)
    return state


def step(name: str, state: dict[str, Tensor], lr: float, factor: Tensor | None = None):
    if name == "sgd":
        sgd_ascent(state["params"], state["grads"], lr, factor=factor)
    else:
        adam_ascent(*(state[key] for key in STATE), lr, factor=factor)


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.03), ("adam", 0.03), ("trust", None)])
def test_a_decision_steps_in_copies(name, lr):
    """`itpo.adapted.ascend`: the same step, and the state that it started from can be returned to; with the trust the
    factor is the whole step size."""
    state, factor = make_state(), torch.tensor([1.0, 0.25, 0.5], dtype=torch.float64)
    before = Adapted(**{key: state[key] for key in STATE if key != "grads"}, evidence=no_evidence(factor))
    kept = {key: value.clone() for key, value in state.items()}
    after = ascend(before, state["grads"], factor, ITPOConfig(optimiser=name, inner_lr=lr))
    assert all(torch.equal(state[key], kept[key]) for key in STATE)
    step("sgd" if name == "trust" else name, state, lr or 1.0, factor)
    for key in ("params", "first", "second", "count"):
        assert torch.equal(getattr(after, key), state[key])
    assert not torch.equal(after.params, kept["params"])


@pytest.mark.parametrize("steps", [1, 4])
def test_adam_is_its_formula(steps):
    state, expected = make_state(), make_state()
    for _ in range(steps):
        step("adam", state, 0.1)
        expected |= plain_adam(expected, expected["grads"], 0.1)
    for key in ("params", "first", "second", "count"):
        torch.testing.assert_close(state[key], expected[key], rtol=1e-12, atol=1e-12)


def test_adam_is_torchs():
    """torch.optim.Adam downhill on the negative gradient, from rest."""
    params = torch.nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64))
    ours = {name: torch.zeros(1, 3, dtype=torch.float64) for name in STATE[:4]} | {"count": torch.zeros(1).double()}
    ours["params"].copy_(params.detach())
    optimiser = torch.optim.Adam([params], lr=0.1)
    for i in range(4):
        ours["grads"] = torch.tensor([[0.3, -1e-3, 2.0]], dtype=torch.float64) * (i + 1)
        params.grad = -ours["grads"]
        optimiser.step()
        step("adam", ours, 0.1)
    torch.testing.assert_close(ours["params"], params.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_factor_scales_each_episodes_gradient(name):
    factor = torch.tensor([1.0, 0.25, 0.5], dtype=torch.float64)
    clipped, scaled = make_state(), make_state()
    step(name, clipped, 0.1, factor=factor)
    scaled["grads"] = scaled["grads"] * factor.unsqueeze(1)
    step(name, scaled, 0.1)
    for key in ("params", "first", "second", "count"):
        torch.testing.assert_close(clipped[key], scaled[key], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("width", [1, 17, 2100])
@pytest.mark.parametrize("full", [False, True], ids=["plain", "factor"])
def test_kernels_are_the_reference(interpreted, name, width, full):
    factor = torch.tensor([1.0, 0.25, 0.5], dtype=torch.float64) if full else None
    state, expected = make_state(width=width, dtype=torch.float32), make_state(width=width)
    actual = interpreted(run_kernel, name, state, 0.1, None if factor is None else factor.float())
    step(name, expected, 0.1, factor)
    for key in ("params", "first", "second"):
        assert_close(actual[key], expected[key], EPS["ieee"], 4.0)
    assert torch.equal(actual["count"], expected["count"].float())


BOUNDS = {
    "own": dict(step=torch.tensor([0.3, 0.1, torch.nan]), bound=torch.tensor([1e9, 0.5, 1.0])),
    "clip": dict(lr=0.1, clip=0.5),
    "free": dict(lr=0.1),
}
BOUNDED = pytest.mark.parametrize("given", BOUNDS.values(), ids=BOUNDS)


def bounded_problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """params, grads, and parts of the gradients' squared norms, more than one of them empty."""
    state = make_state(width=2100, dtype=dtype)
    squares = state["grads"].square().split(700, 1)
    parts = torch.stack([torch.zeros_like(squares[0][:, 0]), *(part.sum(1) for part in squares)], 1)
    return state["params"], state["grads"], parts


@BOUNDED
def test_a_bounded_step_is_norm_clip_and_step(given):
    params, grads, squares = bounded_problem(torch.float64)
    given = {name: v.double() if isinstance(v, Tensor) else v for name, v in given.items()}
    after, norm = bounded_step(params, grads, squares, **given)
    torch.testing.assert_close(norm, grads.norm(dim=1))
    factor = torch.full_like(norm, given.get("lr", 0.0))
    if "clip" in given:
        factor *= (0.5 / norm).clamp(max=1)
    if "step" in given:
        factor = clip_reference(Weights(norm, norm, given["step"], given["bound"]), norm)
    torch.testing.assert_close(after, params + factor.unsqueeze(1) * grads)


def run_bounded(given: dict, params: Tensor, grads: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    return bounded_step_fwd(
        params, grads, squares, given.get("step"), given.get("bound"), given.get("lr", 0.0), given.get("clip", 0.0)
    )


@BOUNDED
def test_the_cpu_kernel_of_a_bounded_step_is_the_reference(given):
    compiled = pytest.importorskip("fastdwm.kernels.update.compiled")
    exact = {name: v.double() if isinstance(v, Tensor) else v for name, v in given.items()}
    expected = bounded_step(*bounded_problem(torch.float64), **exact)
    rule = {"step": None, "bound": None, "lr": 0.0, "clip": 0.0} | given
    for actual in (
        bounded_step(*bounded_problem(torch.float32), **given),
        compiled.bounded_step_compiled(*bounded_problem(torch.float32), **rule),
    ):
        assert_close(actual[0], expected[0], EPS["ieee"], 4.0)
        assert_close(actual[1].unsqueeze(1), expected[1].unsqueeze(1), EPS["ieee"], 4.0)


@BOUNDED
def test_the_kernel_of_a_bounded_step_is_the_reference(interpreted, given):
    actual = interpreted(run_bounded, given, *bounded_problem(torch.float32))
    exact = {name: v.double() if isinstance(v, Tensor) else v for name, v in given.items()}
    expected = bounded_step(*bounded_problem(torch.float64), **exact)
    assert_close(actual[0], expected[0], EPS["ieee"], 4.0)
    assert_close(actual[1].unsqueeze(1), expected[1].unsqueeze(1), EPS["ieee"], 4.0)


def test_the_first_step_in_fp32_is_as_long_as_in_fp64():
    """1 - 0.999 in fp32 would make it 2e-5 too long."""
    state, exact = make_state(1, dtype=torch.float32), make_state(1)
    step("adam", state, 0.1)
    step("adam", exact, 0.1)
    start = make_state(1)["params"]
    torch.testing.assert_close(state["params"].double() - start, exact["params"] - start, rtol=3e-6, atol=3e-7)


def test_wrong_inputs_raise():
    state = make_state()
    with pytest.raises(ValueError, match="grads: expected shape"):
        sgd_ascent(state["params"], state["grads"][:2], 0.1)
    with pytest.raises(ValueError, match="factor: expected shape"):
        sgd_ascent(state["params"], state["grads"], 0.1, factor=torch.ones(2, dtype=torch.float64))
    with pytest.raises(TypeError, match="first: expected"):
        step("adam", {**state, "first": state["first"].float()}, 0.1)
    with pytest.raises(ValueError, match="squares: expected shape"):
        bounded_step(state["params"], state["grads"], torch.zeros(2, 3, dtype=torch.float64), lr=0.1)
    with pytest.raises(ValueError, match="params: expected contiguous"):
        sgd_ascent(torch.zeros(5, 3, dtype=torch.float64).T, torch.zeros(3, 5, dtype=torch.float64), 0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("full", [False, True], ids=["plain", "factor"])
def test_kernels_on_a_gpu_are_the_reference(name, full):
    state, expected = make_state(width=140_016, dtype=torch.float32), make_state(width=140_016)
    state = {key: value.cuda() for key, value in state.items()}
    factor = torch.tensor([1.0, 0.25, 0.5], dtype=torch.float64)
    if full:
        step(name, state, 0.1, factor.float().cuda())
        step(name, expected, 0.1, factor)
    else:
        step(name, state, 0.1)
        step(name, expected, 0.1)
    for key in ("params", "first", "second"):
        assert_close(state[key], expected[key], EPS["ieee"], 4.0)
    assert torch.equal(state["count"].cpu(), expected["count"].float())
