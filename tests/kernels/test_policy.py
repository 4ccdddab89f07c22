"""The per-episode policy: the operator, its gradients, and the kernels against the reference."""

import pytest
import torch
from numerics import BOUND, EPS, Products, assert_close, assert_within_twice
from torch import Tensor

from fastdwm.models.nets import map_params
from fastdwm.models.policy import MLPFunction
from fastdwm_kernels.launch import PRECISIONS, operand_dtype
from fastdwm_kernels.layout import MLPLayout
from fastdwm_kernels.policy import policy
from fastdwm_kernels.policy.reference import (
    policy_backward_reference,
    policy_forward_reference,
    policy_weight_grads_reference,
)

pytest.importorskip("triton")

from fastdwm_kernels.policy.kernel import policy_bwd, policy_fwd  # noqa: E402
from fastdwm_kernels.policy.weight_kernel import policy_weight_bwd  # noqa: E402

SIZES = (11, 48, 32, 3)
FUNCTIONS = (("relu", "tanh"), ("tanh", "clip"))
"""functions of the hidden layers and of the output"""


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_flat(layout: MLPLayout, copies: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Different policies, with weights scaled so that all activations are of order one."""
    views = layout.views(random(copies, layout.width, seed=seed))
    scaled = {name: v * (v.shape[1] ** -0.5 if name.startswith("w") else 0.3) for name, v in views.items()}
    return layout.pack(scaled).to(dtype)


def reference_gradients(layout: MLPLayout, flat: Tensor, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """All results of the kernels, computed by the reference in the tensors' dtype."""
    params = layout.views(flat)
    action, hidden = policy_forward_reference(layout, params, x)
    dx, dz = policy_backward_reference(layout, params, hidden, action, grad)
    dflat = layout.pack(policy_weight_grads_reference(x, hidden, dz))
    norm = dflat.norm(dim=1, keepdim=True)
    hidden, dz = torch.cat(hidden, 2), torch.cat(dz[:-1], 2)
    return {"action": action, "hidden": hidden, "dx": dx, "dz": dz, "dflat": dflat, "norm": norm}


def kernel_gradients(layout: MLPLayout, flat: Tensor, x: Tensor, grad: Tensor, precision: str) -> dict[str, Tensor]:
    """The same results by the three launches."""
    weights = flat.to(operand_dtype(precision))
    action, hidden = policy_fwd(layout, weights, flat, x, precision)
    dx, dz, dz_out = policy_bwd(layout, weights, hidden, action, grad, precision)
    dflat, partial_sq_norms = policy_weight_bwd(layout, x, hidden, dz, dz_out, precision)
    norm = partial_sq_norms.sum(1, keepdim=True).sqrt()
    return {"action": action, "hidden": hidden, "dx": dx, "dz": dz, "dflat": dflat, "norm": norm}


@pytest.mark.parametrize("functions", FUNCTIONS, ids=str)
@pytest.mark.parametrize("hidden", [(16,), (24, 16), (20, 20, 20, 20)], ids=str)
def test_reference_is_the_mlp_policy(hidden, functions):
    layout = MLPLayout((5, *hidden, 2), False, *functions)
    flat, x = make_flat(layout, 3), random(3, 7, 5)
    expected = MLPFunction(*functions)(layout.views(flat), x)
    torch.testing.assert_close(policy(layout, flat, x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("copies", "functions"), [(1, FUNCTIONS[0]), (2, FUNCTIONS[1])])
def test_gradients_of_every_input(copies, functions):
    layout = MLPLayout((3, 6, 5, 2), False, *functions)
    flat, x = make_flat(layout, copies).requires_grad_(), random(copies, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda flat, x: policy(layout, flat, x), (flat, x))


def test_one_weight_product_over_all_steps_of_a_rollout():
    """One product over the rows of three steps gives the sum of the steps' gradients."""
    layout, steps, particles = MLPLayout((3, 6, 5, 2)), 3, 4
    params = layout.views(make_flat(layout, 2))
    x, grad = random(2, steps * particles, 3), random(2, steps * particles, 2, seed=3)
    action, hidden = policy_forward_reference(layout, params, x)
    dz = policy_backward_reference(layout, params, hidden, action, grad)[1]
    together = policy_weight_grads_reference(x, hidden, dz)
    apart = map_params(torch.zeros_like, params)
    for rows in torch.arange(steps * particles).chunk(steps):
        part = policy_weight_grads_reference(x[:, rows], [h[:, rows] for h in hidden], [d[:, rows] for d in dz])
        apart = {name: apart[name] + part[name] for name in apart}
    for name in together:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("rows", "copies", "functions"),
    [(1, 1, "relu tanh"), (16, 3, "relu tanh"), (17, 1, "relu tanh"), (1, 3, "tanh tanh"), (17, 3, "tanh clip")]
    + [pytest.param(257, copies, "relu tanh", marks=pytest.mark.slow) for copies in (1, 3)],
)
def test_kernels_are_the_reference(interpreted, rows, copies, functions, precision):
    layout = MLPLayout(SIZES, False, *functions.split())
    args = make_flat(layout, copies), random(copies, rows, 11, seed=2), random(copies, rows, 3, seed=3)
    expected, single = reference_gradients(layout, *args), [x.float() for x in args]
    actual = interpreted(kernel_gradients, layout, *single, precision)
    with Products(precision):
        eager = reference_gradients(layout, *single)
    for name, value in expected.items():
        if precision == "ieee":
            assert_close(actual[name], value, EPS[precision], BOUND[precision])
        else:
            assert_within_twice(actual[name], eager[name], value, precision)
    assert not actual["dflat"][:, layout.n_params :].any()


@pytest.mark.slow
def test_many_rows_are_summed_in_parts(interpreted):
    """A thousand rows in four parts, the last of them short."""
    layout = MLPLayout(SIZES)
    flat, x, grad = make_flat(layout, 2), random(2, 1030, 11, seed=2), random(2, 1030, 3, seed=3)
    expected = reference_gradients(layout, flat, x, grad)
    actual = interpreted(kernel_gradients, layout, flat.float(), x.float(), grad.float(), "ieee")
    for name in ("dflat", "norm"):
        assert_close(actual[name], expected[name], EPS["ieee"], BOUND["ieee"])
    assert not actual["dflat"][:, layout.n_params :].any()


def test_small_actions_keep_their_relative_accuracy(interpreted):
    """The actions of a fresh policy are of order 1e-3, where 1 - exp(-2z) would cancel."""
    layout = MLPLayout((4, 16, 2))
    flat, x = make_flat(layout, 1), random(1, 17, 4)
    layout.views(flat)["w1"].mul_(1e-4)
    layout.views(flat)["b1"].zero_()
    expected = policy(layout, flat, x)
    assert expected.abs().max() < 1e-3
    flat = flat.float()
    assert_close(interpreted(policy_fwd, layout, flat, flat, x.float(), "ieee")[0], expected, EPS["ieee"])


def test_nan_in_one_episode_stays_there(interpreted):
    layout = MLPLayout(SIZES)
    flat, x = make_flat(layout, 2, dtype=torch.float32), random(2, 17, 11, dtype=torch.float32)
    layout.views(flat)["w0"][0, 0, 0] = torch.nan
    for action in (policy(layout, flat, x), interpreted(policy_fwd, layout, flat, flat, x, "ieee")[0]):
        assert action[0].isnan().all()
        assert action[1].isfinite().all()


def test_gradients_not_asked_for_are_not_computed():
    layout = MLPLayout((3, 6, 2))
    flat, x = make_flat(layout, 1), random(1, 4, 3)
    policy(layout, flat, x.requires_grad_()).sum().backward()
    assert flat.grad is None
    assert x.grad is not None


def test_second_order_raises():
    layout = MLPLayout((3, 6, 2))
    x = random(1, 4, 3).requires_grad_()
    with pytest.raises(NotImplementedError, match="second-order"):
        torch.autograd.grad(policy(layout, make_flat(layout, 1), x).square().sum(), x, create_graph=True)


def test_wrong_inputs_raise():
    layout = MLPLayout((3, 6, 2))
    flat, x = make_flat(layout, 2), random(2, 4, 3)
    with pytest.raises(ValueError, match="x: expected shape"):
        policy(layout, flat, random(2, 4, 5))
    with pytest.raises(ValueError, match="flat: expected shape"):
        policy(layout, flat[:1], x)
    with pytest.raises(ValueError, match="x: expected contiguous"):
        policy(layout, flat, random(4, 2, 3).transpose(0, 1))
    with pytest.raises(TypeError, match="flat: expected"):
        policy(layout, flat.float(), x)
    with pytest.raises(ValueError, match="precision"):
        policy(layout, flat, x, precision="fp16")
    with pytest.raises(ValueError, match="layer norm"):
        policy(MLPLayout((3, 6, 2), layer_norm=True), flat, x)
    with pytest.raises(ValueError, match=r"params\[b0\]"):
        MLPLayout.of({**layout.views(flat), "b0": flat[:, :5]})
    with pytest.raises(ValueError, match="activation: expected one of relu, tanh, got 'elu'"):
        MLPLayout.of(layout.views(flat), "elu")
    with pytest.raises(ValueError, match="output: expected one of tanh, clip, got 'none'"):
        MLPLayout.of(layout.views(flat), "relu", "none")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("sizes", "functions"),
    [
        ((11, 256, 256, 256, 3), FUNCTIONS[0]),
        ((17, 300, 100, 6), FUNCTIONS[0]),
        ((111, 512, 512, 8), FUNCTIONS[0]),
        ((17, 400, 300, 6), FUNCTIONS[1]),
    ],
    ids=str,
)
@pytest.mark.parametrize(("copies", "rows"), [(1, 1), (3, 17), (10, 257)])
def test_kernels_on_a_gpu_err_at_most_twice_as_much_as_torch(sizes, functions, precision, copies, rows):
    layout = MLPLayout(sizes, False, *functions)
    flat, x = make_flat(layout, copies), random(copies, rows, sizes[0], seed=2)
    grad = random(copies, rows, sizes[-1], seed=3)
    expected = reference_gradients(layout, flat, x, grad)
    single = [t.float().cuda() for t in (flat, x, grad)]
    with Products(precision):
        eager = reference_gradients(layout, *single)
    actual = kernel_gradients(layout, *single, precision)
    for name, value in expected.items():
        assert_within_twice(actual[name], eager[name], value, precision)
