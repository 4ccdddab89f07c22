"""The fused sampler: reference, hand-derived VJP, Triton kernels, errors of the operators."""

from collections.abc import Iterable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from denoisers import Problem, make_problem
from numerics import BOUND, EPS, Products, assert_close, row_error
from torch import Tensor

from fastdwm.models.nets import map_params, mlp
from fastdwm_kernels import launch
from fastdwm_kernels.launch import PRECISIONS
from fastdwm_kernels.sampler import SamplerWeights, pack_sampler, reverse_step, sample
from fastdwm_kernels.sampler.reference import sampler_backward_reference, sampler_reference

CASES = {
    "eps": dict(target="eps"),
    "x0": dict(target="x0"),
    "one-step": dict(steps=1),
    "one-layer": dict(hidden=(20,)),
    "four-layers": dict(hidden=(32, 48, 16, 24)),
}


def operator(problem: Problem, **kwargs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y_0 and both gradients through the public operator."""
    weights = problem.weights(**kwargs)
    obs, action, noise = problem.inputs(weights.dtype, weights.device)
    y = sample(weights, obs, action, noise)
    return y, *torch.autograd.grad(y, (obs, action), problem.upstream.to(y))


# The reference against the plain model.
@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_diffusion_sampler(case):
    problem = make_problem(**CASES[case])
    assert_close(operator(problem, dtype=torch.float64)[0], problem.truth()[0], 2.0**-52)


def test_a_sampler_of_one_step_is_one_network_call():
    problem = make_problem(steps=1)
    problem = replace(problem, coefficients=torch.tensor([[0.0, 1.0, 0.0]]).double())
    features = problem.embedding.expand(len(problem.obs), -1)
    inputs = torch.cat([problem.noise[0], problem.obs, problem.action, features], 1)
    expected = mlp(map_params(torch.Tensor.double, problem.params), inputs.double(), torch.nn.functional.silu)
    weights = problem.weights()
    assert_close(sample(weights, problem.obs, problem.action, problem.noise), expected, EPS["ieee"])


# The hand-derived VJP.
@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case):
    problem = make_problem(rows=2, **CASES[case])
    obs, action, noise = problem.inputs(torch.float64)
    weights = problem.weights(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda o, a: sample(weights, o, a, noise), (obs, action))


@pytest.mark.parametrize("rows", [1, 16, 17, 257])
def test_cpu_path_matches_autograd(rows):
    problem = make_problem(rows, hidden=(96, 70))
    for actual, expected in zip(operator(problem), problem.truth()[:3], strict=True):
        assert_close(actual, expected, EPS["ieee"])


# A single step.
INDEX = 1


def step_inputs(problem: Problem, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """y, obs and action as leaves that require gradients, and noise."""
    leaves = (problem.noise[0], problem.obs, problem.action)
    return *(t.to(device, dtype).requires_grad_() for t in leaves), problem.noise[1].to(device, dtype)


def step_truth(problem: Problem):
    """y_{k-1} and the gradients of y, obs and action, float64, by autograd through the plain model."""
    y, obs, action, noise = step_inputs(problem, torch.float64)
    c_y, c_out, sigma = problem.coefficients[INDEX]
    out = c_y * y + c_out * problem.model().predict(y, problem.embedding[INDEX], obs, action) + sigma * noise
    return out.detach(), *torch.autograd.grad(out, (y, obs, action), problem.upstream.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("target", ["eps", "x0"])
@pytest.mark.parametrize("hidden", [(20,), (48, 33), (32, 48, 16, 24)], ids=str)
def test_a_step_is_that_of_the_plain_model(target, hidden, dtype):
    problem = make_problem(target=target, hidden=hidden)
    inputs = step_inputs(problem, dtype)
    out = reverse_step(problem.weights(dtype=dtype), INDEX, *inputs)
    results = out, *torch.autograd.grad(out, inputs[:3], problem.upstream.to(out))
    for actual, expected in zip(results, step_truth(problem), strict=True):
        assert_close(actual, expected, torch.finfo(dtype).eps)


def test_steps_compose_to_the_sampler():
    problem = make_problem()
    weights, y = problem.weights(dtype=torch.float64), problem.noise[0].double()
    noise = torch.cat([problem.noise, torch.full_like(problem.noise[:1], 1e3)]).double()  # sigma_1 = 0
    for i, index in enumerate(reversed(range(weights.steps))):
        y = reverse_step(weights, index, y, problem.obs.double(), problem.action.double(), noise[i + 1])
    expected = sample(weights, problem.obs.double(), problem.action.double(), problem.noise.double())
    assert_close(y, expected, 2.0**-52)


def test_gradcheck_of_a_step():
    problem = make_problem(rows=2)
    *leaves, noise = step_inputs(problem, torch.float64)
    weights = problem.weights(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *args: reverse_step(weights, INDEX, *args, noise), leaves)


# The kernels in the interpreter.
def assert_as_exact_as_torch(actual: Iterable[Tensor], problem: Problem, precision: str, device: str = "cpu") -> None:
    """The worst row of y_0 and of each gradient errs at most twice as much as torch with operands of this precision."""
    weights = problem.weights(device=device)
    obs, action, noise, upstream = (
        t.to(device) for t in (problem.obs, problem.action, problem.noise, problem.upstream)
    )
    with Products(precision):
        y, saved = sampler_reference(weights, obs, action, noise, True)
        eager = y, *sampler_backward_reference(weights, upstream, saved)
    for value, base, expected in zip(actual, eager, problem.truth(), strict=False):
        # With few rows torch's error may be small by chance, so a floor applies.
        floor = BOUND["ieee"] / 2 if device == "cpu" and precision == "ieee" else 0.25
        allowed = 2 * max(float(row_error(base, expected).max()) / EPS[precision], floor)
        assert_close(value, expected, EPS[precision], allowed)


def launch_both(problem: Problem, precision: str = "ieee"):
    """y_0 without and with saving, then the gradients of obs, action and y_K. Runs in the interpreter's process."""
    return launch_weights(problem, problem.weights(precision))


def launch_weights(problem: Problem, weights: SamplerWeights):
    from fastdwm_kernels.sampler.kernel import sampler_bwd, sampler_fwd

    inputs = problem.obs, problem.action, problem.noise
    y, saved = sampler_fwd(weights, *inputs, True)
    return sampler_fwd(weights, *inputs, False)[0], y, *sampler_bwd(weights, problem.upstream, saved)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [1, 16, 17, 257])
def test_kernel_rows(interpreted, rows, precision):
    hidden, steps = ((20, 33), 2) if rows > 100 else ((96, 70), 3)
    problem = make_problem(rows, hidden, steps)
    unsaved, *actual = interpreted(launch_both, problem, precision)
    assert torch.equal(unsaved, actual[0])
    assert_as_exact_as_torch(actual, problem, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [*CASES, "wide-input", "tiles"])
def test_kernel_cases(interpreted, case, precision):
    sizes = {"wide-input": dict(obs_dim=40, action_dim=9, hidden=(128, 128)), "tiles": dict(hidden=(200, 130))}
    problem = make_problem(**(CASES | sizes)[case])
    unsaved, *actual = interpreted(launch_both, problem, precision)
    assert torch.equal(unsaved, actual[0])
    assert_as_exact_as_torch(actual, problem, precision)


def launch_larger(problem: Problem, precision: str):
    """As `launch_both`, with one multiprocessor, so that blocks are larger. Runs in the interpreter's process."""
    weights = problem.weights(precision)
    weights = replace(weights, launch=replace(weights.launch, larger=(32, 64)))
    with patch.object(launch, "MULTIPROCESSORS", 1):
        return launch_weights(problem, weights)


def launch_step(problem: Problem):
    """As `launch_both`, of step `INDEX` alone. Runs in the interpreter's process."""
    return launch_weights(replace(problem, noise=problem.noise[:1]), problem.weights().single_steps[INDEX])


def test_kernel_of_a_single_step(interpreted):
    problem = make_problem(17)
    y, dy, dobs, daction = step_truth(problem)
    y = y - problem.coefficients[INDEX, 2] * problem.noise[1]
    for actual, expected in zip(interpreted(launch_step, problem), (y, y, dobs, daction, dy), strict=True):
        assert_close(actual, expected, EPS["ieee"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [17, 70], ids=["block32", "block64"])
def test_kernel_blocks(interpreted, rows, precision):
    """Forward and VJP agree about the block size, and so about the layout of the pre-activations."""
    problem = make_problem(rows, (20, 33), 2)
    _, *actual = interpreted(launch_larger, problem, precision)
    assert_as_exact_as_torch(actual, problem, precision)


# The kernels on a GPU, against torch in the same precision.
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hidden", [(128, 128), (256, 256, 256), (512, 512, 512), (200, 70)], ids=str)
@pytest.mark.parametrize("rows", [1, 16, 17, 257])
def test_kernel_error_is_at_most_twice_eager(rows, hidden, precision):
    problem = make_problem(rows, hidden, steps=5, obs_dim=11, action_dim=3)
    assert_as_exact_as_torch(operator(problem, precision=precision, device="cuda"), problem, precision, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_beyond_two_to_the_31_saved_values():
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("needs 12 GB of GPU memory")
    first = 2**21
    problem = make_problem(first + 16, (512, 512, 512), steps=1)
    rows = {name: getattr(problem, name)[first:] for name in ("obs", "action", "upstream")}
    last = replace(problem, noise=problem.noise[:, first:].contiguous(), **rows)
    results = (operator(each, precision="fp16", device="cuda") for each in (problem, last))
    for all_rows, last_rows in zip(*results, strict=True):
        assert torch.equal(all_rows[first:], last_rows)


# The operators.
WRONG = {
    "obs rows": (dict(obs=lambda t: t[:-1]), ValueError, "action: expected shape"),
    "obs width": (dict(obs=lambda t: t[:, 1:].contiguous()), ValueError, "obs: expected shape"),
    "obs dtype": (dict(obs=torch.Tensor.double), TypeError, "obs: expected torch.float32"),
    "action stride": (dict(action=lambda t: t.mT.contiguous().mT), ValueError, "action: expected contiguous"),
    "noise steps": (dict(noise=lambda t: t[1:]), ValueError, "noise: expected shape"),
    "noise dtype": (dict(noise=torch.Tensor.bfloat16), TypeError, "noise: expected torch.float32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_raises(name):
    changes, error, message = WRONG[name]
    problem = make_problem()
    inputs = {key: getattr(problem, key) for key in ("obs", "action", "noise")}
    inputs |= {key: change(inputs[key]) for key, change in changes.items()}
    with pytest.raises(error, match=message):
        sample(problem.weights(), **inputs)


@pytest.mark.parametrize("name", ["y", "obs", "noise"])
def test_a_step_from_a_wrong_shape_raises(name):
    problem = make_problem()
    inputs = dict(zip(("y", "obs", "action", "noise"), step_inputs(problem), strict=True))
    inputs[name] = inputs[name].detach()[:, 1:].contiguous()
    with pytest.raises(ValueError, match=f"{name}: expected shape"):
        reverse_step(problem.weights(), INDEX, **inputs)


def test_a_step_with_a_wrong_index_dtype_or_stride_raises():
    problem = make_problem()
    weights, (y, obs, action, noise) = problem.weights(), step_inputs(problem)
    with pytest.raises(ValueError, match="index: expected 0 to 2"):
        reverse_step(weights, 3, y, obs, action, noise)
    with pytest.raises(TypeError, match="action: expected torch.float32"):
        reverse_step(weights, 0, y, obs, action.double(), noise)
    with pytest.raises(ValueError, match="y: expected contiguous"):
        reverse_step(weights, 0, y.mT.contiguous().mT, obs, action, noise)


def test_second_order_gradients_raise():
    problem = make_problem()
    obs, action, noise = problem.inputs()
    y = sample(problem.weights(), obs, action, noise)
    with pytest.raises(NotImplementedError, match="second-order"):
        torch.autograd.grad(y.sum(), obs, create_graph=True)


def test_noise_gets_no_gradient():
    problem = make_problem()
    obs, action, noise = problem.inputs()
    y = sample(problem.weights(), obs, action, noise.requires_grad_())
    _, unused = torch.autograd.grad(y, (obs, noise), problem.upstream, allow_unused=True)
    assert unused is None


def test_no_graph_unless_a_gradient_is_needed():
    problem = make_problem()
    obs, action, noise = problem.inputs()
    weights = problem.weights()
    assert not sample(weights, obs.detach(), action.detach(), noise).requires_grad
    with torch.no_grad():
        assert not sample(weights, obs, action, noise).requires_grad


def test_inputs_stay_as_they_were():
    problem = make_problem()
    inputs = problem.obs, problem.action, problem.noise, problem.upstream
    before = [t.clone() for t in inputs]
    operator(problem)
    sample(problem.weights(), *inputs[:3])
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_packed_weights_are_a_copy():
    problem = make_problem()
    params = map_params(torch.clone, problem.params)
    weights = replace(problem, params=params).weights()
    before = sample(weights, problem.obs, problem.action, problem.noise)
    for value in params.values():
        value.zero_()
    assert torch.equal(sample(weights, problem.obs, problem.action, problem.noise), before)


def test_fp16_needs_a_gpu():
    problem = make_problem()
    inputs = problem.obs, problem.action, problem.noise
    with pytest.raises(ValueError, match="^precision: expected one of ieee, got 'fp16'$"):
        sample(problem.weights("fp16"), *inputs)
    with pytest.raises(ValueError, match="^precision: expected one of ieee, got 'fp16'$"):
        reverse_step(problem.weights("fp16"), 0, problem.obs, *inputs[:2], problem.obs)


@pytest.mark.parametrize("bad", [7e4, -1e30, float("inf"), float("nan")])
def test_weights_beyond_the_range_of_fp16_are_refused(bad):
    problem = make_problem()
    problem.params["w1"][3, 4] = bad
    with pytest.raises(ValueError, match="^params: expected weights up to 65504, got .*: use precision 'ieee'$"):
        problem.weights("fp16")
    problem.weights("ieee")


def test_packing_rejects_layers_that_do_not_fit():
    problem = make_problem()
    sizes = dict(obs_dim=5, action_dim=2)
    with pytest.raises(ValueError, match="precision: expected one of"):
        pack_sampler(problem.params, problem.embedding, problem.coefficients, **sizes, precision="fp8")
    with pytest.raises(ValueError, match="w0: expected shape"):
        pack_sampler(problem.params, problem.embedding, problem.coefficients, obs_dim=6, action_dim=2)
    with pytest.raises(ValueError, match="coefficients: expected shape"):
        pack_sampler(problem.params, problem.embedding, problem.coefficients[1:], **sizes)
