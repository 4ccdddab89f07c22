"""One fused reverse step: reference, hand-derived VJP, Triton kernels, contract."""

import pytest
import torch
from denoisers import Problem, make_problem
from numerics import EPS, assert_close

from fastdwm_kernels.sampler import reverse_step, sample

INDEX = 1


def step_inputs(problem: Problem, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """y, obs and action as leaves that want gradients, and noise."""
    leaves = (problem.noise[0], problem.obs, problem.action)
    return *(t.to(device, dtype).requires_grad_() for t in leaves), problem.noise[1].to(device, dtype)


def truth(problem: Problem):
    """y_{k-1} and the gradients of y, obs and action, float64, by autograd through the plain model."""
    y, obs, action, noise = step_inputs(problem, torch.float64)
    c_y, c_out, sigma = problem.coefficients[INDEX]
    out = c_y * y + c_out * problem.model().predict(y, INDEX, obs, action) + sigma * noise
    return out.detach(), *torch.autograd.grad(out, (y, obs, action), problem.upstream.double())


def operator(problem: Problem, **kwargs):
    weights = problem.weights(**kwargs)
    inputs = step_inputs(problem, weights.dtype, weights.device)
    out = reverse_step(weights, INDEX, *inputs)
    return out, *torch.autograd.grad(out, inputs[:3], problem.upstream.to(out))


@pytest.mark.parametrize("target", ["eps", "x0"])
@pytest.mark.parametrize("hidden", [(20,), (48, 33), (32, 48, 16, 24)], ids=str)
def test_matches_the_plain_model_in_float64(target, hidden):
    problem = make_problem(target=target, hidden=hidden)
    for actual, expected in zip(operator(problem, dtype=torch.float64), truth(problem), strict=True):
        assert_close(actual, expected, 2.0**-52)


def test_steps_compose_to_the_chain():
    problem = make_problem()
    weights, y = problem.weights(dtype=torch.float64), problem.noise[0].double()
    noise = torch.cat([problem.noise, torch.full_like(problem.noise[:1], 1e3)]).double()  # sigma_1 = 0
    for i, index in enumerate(reversed(range(weights.steps))):
        y = reverse_step(weights, index, y, problem.obs.double(), problem.action.double(), noise[i + 1])
    expected = sample(weights, problem.obs.double(), problem.action.double(), problem.noise.double())
    assert_close(y, expected, 2.0**-52)


def test_gradcheck():
    problem = make_problem(rows=2)
    *leaves, noise = step_inputs(problem, torch.float64)
    weights = problem.weights(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *args: reverse_step(weights, INDEX, *args, noise), leaves)


def launch_both(problem: Problem):
    """Output without and with saving, then the gradients, from the kernels. Runs in the interpreter's process."""
    from fastdwm_kernels.sampler.step_kernel import reverse_step_bwd, reverse_step_fwd

    weights = problem.weights()
    inputs = [t.detach() for t in step_inputs(problem)]
    out, saved = reverse_step_fwd(weights, INDEX, *inputs, True)
    unsaved = reverse_step_fwd(weights, INDEX, *inputs, False)[0]
    return unsaved, out, *reverse_step_bwd(weights, INDEX, problem.upstream, saved)


@pytest.mark.parametrize("rows", [1, 16, 17, 257])
def test_kernel_rows(interpreted, rows):
    problem = make_problem(rows, hidden=(20, 33) if rows > 100 else (96, 70))
    out, *gradients = truth(problem)
    for actual, expected in zip(interpreted(launch_both, problem), (out, out, *gradients), strict=True):
        assert_close(actual, expected, EPS["ieee"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("rows", [1, 16, 17, 257])
def test_kernel_on_a_device(rows, precision):
    problem = make_problem(rows, (256, 256, 256), obs_dim=11, action_dim=3)
    for actual, expected in zip(operator(problem, precision=precision, device="cuda"), truth(problem), strict=True):
        assert_close(actual, expected, EPS[precision], 16.0 if precision == "ieee" else 2.0)


@pytest.mark.parametrize("name", ["y", "obs", "noise"])
def test_wrong_shape_raises(name):
    problem = make_problem()
    inputs = dict(zip(("y", "obs", "action", "noise"), step_inputs(problem), strict=True))
    inputs[name] = inputs[name].detach()[:, 1:].contiguous()
    with pytest.raises(ValueError, match=f"{name}: expected shape"):
        reverse_step(problem.weights(), INDEX, **inputs)


def test_wrong_index_dtype_and_stride_raise():
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
    y, obs, action, noise = step_inputs(problem)
    out = reverse_step(problem.weights(), INDEX, y, obs, action, noise)
    with pytest.raises(NotImplementedError, match="second-order"):
        torch.autograd.grad(out.sum(), y, create_graph=True)
