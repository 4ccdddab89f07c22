"""Frozen reward and critic networks: the operator, its gradient, and the kernels against the reference."""

import pytest
import torch
from numerics import BOUND, EPS, Products, assert_close, assert_within_twice
from torch import Tensor

from fastdwm.models.rebrac import q_values
from fastdwm.models.reward import RewardModel
from fastdwm_kernels.frozen_mlp import FrozenMLP, frozen_mlp, pack_frozen_mlp
from fastdwm_kernels.frozen_mlp.reference import (
    frozen_mlp_backward_reference,
    frozen_mlp_forward_reference,
    frozen_mlp_reference,
)
from fastdwm_kernels.launch import PRECISIONS
from fastdwm_kernels.layout import MLPLayout, Params

pytest.importorskip("triton")

from fastdwm_kernels.frozen_mlp.kernel import frozen_mlp_bwd, frozen_mlp_fwd  # noqa: E402

RULES = [
    (True, "min", 2, "relu"),
    (False, "first", 1, "relu"),
    (True, "mean", 3, "tanh"),
    (False, "min", 3, "tanh"),
    (True, "first", 2, "relu"),
]
"""layer norm, reduction, copies, activation; the first two are the trained critics and the reward model"""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_params(sizes: tuple[int, ...], layer_norm: bool, copies: int, seed: int = 1) -> Params:
    """Random copies, with equal mean values so that none is always the smallest, and with scale and shift."""
    layout = MLPLayout(sizes, layer_norm)
    params = layout.views(random(copies, layout.width, seed=seed))
    for name, value in params.items():
        value.mul_(value.shape[1] ** -0.5 if name.startswith("w") else 0.3)
        if name.startswith("scale"):
            value.add_(1)
    for q in range(copies):
        one = pack({name: value[q] for name, value in params.items()}, "first")
        params[f"b{len(sizes) - 2}"][q] -= frozen_mlp_reference(one, random(64, sizes[0], seed=9)).mean()
    return params


def keep_apart(params: Params, kind: str) -> None:
    """Separate the copies' values, for the smallest of close copies may differ between precisions."""
    if kind == "min":
        bias = params[f"b{sum(name.startswith('w') for name in params) - 1}"]
        bias.add_(torch.arange(len(bias))[:, None] * 4.0)


def pack(params: Params, reduce: str, precision: str = "ieee", activation: str = "relu", **to) -> FrozenMLP:
    params = {name: value.to(**to) for name, value in params.items()}
    return pack_frozen_mlp(params, activation=activation, reduce=reduce, precision=precision)


def reference_gradients(mlp: FrozenMLP, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    value, saved = frozen_mlp_forward_reference(mlp, x)
    return value, frozen_mlp_backward_reference(mlp, saved, grad)


def kernel_gradients(mlp: FrozenMLP, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Every copy's value and the input gradient, by the two launches."""
    values, z = frozen_mlp_fwd(mlp, x, True)
    torch.testing.assert_close(values, frozen_mlp_fwd(mlp, x, False)[0], rtol=0, atol=0, equal_nan=True)
    return values, frozen_mlp_bwd(mlp, values, z, grad)


def reduce(mlp: FrozenMLP, values: Tensor) -> Tensor:
    return {"min": values.amin(0), "mean": values.mean(0), "first": values[0]}[mlp.reduce]


@pytest.mark.parametrize(("kind", "activation"), [("min", "relu"), ("mean", "tanh"), ("first", "relu")])
def test_reference_is_the_plain_critics(kind, activation):
    params, obs, action = make_params((7, 24, 16, 1), True, 2), random(5, 4), random(5, 3, seed=2)
    q = q_values(params, obs, action, activation)
    expected = {"min": q.amin(0), "mean": q.mean(0), "first": q[0]}[kind]
    mlp, x = pack(params, kind, activation=activation), torch.cat([obs, action], 1)
    torch.testing.assert_close(frozen_mlp_reference(mlp, x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen_mlp(mlp, x), expected, rtol=1e-12, atol=1e-12)


def test_reference_is_the_plain_reward_model():
    params = {name: value[0] for name, value in make_params((7, 24, 16, 1), False, 1).items()}
    model = RewardModel(params, random(4, seed=3), random(4, seed=4).exp())
    obs, action = random(2, 5, 4), random(2, 5, 3, seed=2)
    x = torch.cat([(obs - model.obs_mean) / model.obs_std, action], -1)
    actual = frozen_mlp(pack(params, "first"), x)
    torch.testing.assert_close(actual, model(obs, action), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layer_norm", "kind", "copies", "activation"), RULES)
def test_gradient_of_the_input(layer_norm, kind, copies, activation):
    mlp = pack(make_params((3, 6, 5, 1), layer_norm, copies), kind, activation=activation)
    assert torch.autograd.gradcheck(lambda x: frozen_mlp(mlp, x), random(7, 3).requires_grad_())


def test_gradient_of_the_minimum_is_that_of_each_rows_smallest_critic():
    params, x = make_params((7, 24, 16, 1), True, 2), random(40, 7).requires_grad_()
    q = q_values(params, x[:, :4], x[:, 4:])
    assert 5 < q.argmin(0).sum() < 35, "one critic is the smallest everywhere: this test shows nothing"
    weight = random(40, seed=2)
    expected = torch.autograd.grad((q.amin(0) * weight).sum(), x)[0]
    actual = torch.autograd.grad((frozen_mlp(pack(params, "min"), x) * weight).sum(), x)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("layer_norm", "kind", "copies", "activation"), RULES)
@pytest.mark.parametrize("rows", [1, 17, pytest.param(257, marks=pytest.mark.slow)])
def test_kernels_are_the_reference(interpreted, rows, layer_norm, kind, copies, activation, precision):
    params = make_params((14, 48, 32, 1), layer_norm, copies)
    if precision == "fp16":
        keep_apart(params, kind)
    x, grad = random(rows, 14, seed=2), random(rows, seed=3)
    value, dx = reference_gradients(pack(params, kind, activation=activation), x, grad)
    mlp = pack(params, kind, precision, activation, dtype=torch.float32)
    values, actual = interpreted(kernel_gradients, mlp, x.float(), grad.float())
    single = pack(params, kind, activation=activation, dtype=torch.float32)
    with Products(precision):
        eager = reference_gradients(single, x.float(), grad.float())
    if precision == "ieee":
        assert_close(reduce(mlp, values)[:, None], value[:, None], EPS[precision], BOUND[precision])
        assert_close(actual, dx, EPS[precision], BOUND[precision])
    else:
        assert_within_twice(reduce(mlp, values), eager[0], value, precision)
        assert_within_twice(actual, eager[1], dx, precision)


@pytest.mark.parametrize("sizes", [(14, 40, 1), (20, 24, 48, 16, 32, 1)], ids=str)
def test_kernels_with_one_and_with_four_hidden_layers(interpreted, sizes):
    params = make_params(sizes, True, 2)
    x, grad = random(16, sizes[0], seed=2), random(16, seed=3)
    value, dx = reference_gradients(pack(params, "min"), x, grad)
    mlp = pack(params, "min", dtype=torch.float32)
    values, actual = interpreted(kernel_gradients, mlp, x.float(), grad.float())
    assert_close(values.amin(0)[:, None], value[:, None], EPS["ieee"], BOUND["ieee"])
    assert_close(actual, dx, EPS["ieee"], BOUND["ieee"])


def test_nan_in_one_row_stays_there(interpreted):
    mlp = pack(make_params((14, 32, 1), True, 2), "min", dtype=torch.float32)
    x, grad = random(17, 14).float(), random(17).float()
    x[3, 0] = torch.nan
    values, dx = interpreted(kernel_gradients, mlp, x, grad)
    for value, gradient in ((values.amin(0), dx), reference_gradients(mlp, x, grad)):
        assert value.isnan().nonzero().flatten().tolist() == [3]
        assert gradient.isnan().any(1).nonzero().flatten().tolist() == [3]


def test_packing_copies_the_parameters():
    """Frozen means frozen: training the original changes nothing, and no gradient reaches it."""
    params = {name: value.requires_grad_() for name, value in make_params((3, 6, 1), True, 2).items()}
    mlp, x = pack(params, "min"), random(4, 3).requires_grad_()
    before = frozen_mlp(mlp, x)
    before.sum().backward()
    assert all(value.grad is None for value in params.values())
    assert not mlp.flat.requires_grad
    with torch.no_grad():
        params["w0"].add_(1)
    assert torch.equal(frozen_mlp(mlp, x), before)


def test_second_order_raises():
    mlp, x = pack(make_params((3, 6, 1), False, 1), "first"), random(4, 3).requires_grad_()
    with pytest.raises(NotImplementedError, match="second-order"):
        torch.autograd.grad(frozen_mlp(mlp, x).square().sum(), x, create_graph=True)


def test_wrong_inputs_raise():
    params = make_params((3, 6, 1), False, 1)
    mlp = pack(params, "first")
    with pytest.raises(ValueError, match="x: expected shape"):
        frozen_mlp(mlp, random(4, 5))
    with pytest.raises(ValueError, match="x: expected contiguous"):
        frozen_mlp(mlp, random(3, 4).T)
    with pytest.raises(TypeError, match="x: expected"):
        frozen_mlp(mlp, random(4, 3).float())
    with pytest.raises(ValueError, match="one output"):
        pack(make_params((3, 6, 2), False, 1), "first")
    with pytest.raises(ValueError, match="reduce"):
        pack(params, "max")
    with pytest.raises(ValueError, match="precision: expected one of ieee"):
        frozen_mlp(pack(params, "first", "fp16"), random(4, 3))
    with pytest.raises(ValueError, match="params: expected weights up to 65504, got 1e\\+06: use precision 'ieee'"):
        pack({**params, "w0": 1e6 * torch.ones_like(params["w0"])}, "first", "fp16")
    with pytest.raises(TypeError, match=r"params\[b0\]"):
        pack_frozen_mlp({**params, "b0": params["b0"].float()})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("layer_norm", "kind", "copies", "activation"), RULES)
@pytest.mark.parametrize("rows", [1, 257, 5000])
def test_kernels_on_a_gpu_err_at_most_twice_as_much_as_torch(rows, layer_norm, kind, copies, activation, precision):
    params = make_params((20, 256, 256, 300, 1), layer_norm, copies)
    keep_apart(params, kind)
    x, grad = random(rows, 20, seed=2), random(rows, seed=3)
    value, dx = reference_gradients(pack(params, kind, activation=activation), x, grad)
    single = dict(activation=activation, dtype=torch.float32, device="cuda")
    with Products(precision):
        eager = reference_gradients(pack(params, kind, **single), x.float().cuda(), grad.float().cuda())
    mlp = pack(params, kind, precision, **single)
    values, actual = kernel_gradients(mlp, x.float().cuda(), grad.float().cuda())
    assert_within_twice(reduce(mlp, values), eager[0], value, precision)
    assert_within_twice(actual, eager[1], dx, precision)
