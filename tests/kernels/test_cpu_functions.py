"""The product and the elementwise functions of the CPU kernels against float64."""

import numpy as np
import pytest
import torch
from numerics import EPS, assert_close

pytest.importorskip("numba")

from fastdwm_kernels import cpu, cpu_activations  # noqa: E402


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SHAPES = pytest.mark.parametrize(("rows", "d_in"), [(1, 1), (3, 11), (16, 100), (17, 5), (31, 256)])
COLUMNS = pytest.mark.parametrize("d_out", [1, 3, 16, 31, 32, 33, 100, 130])


def filled(z: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A copy of z, and the memory behind it, which is NaN."""
    memory = np.full(z.numel() + 64, np.nan, dtype=np.float32)
    memory[: z.numel()] = z.flatten()
    return memory[: z.numel()].reshape(z.shape), memory[z.numel() :]


@SHAPES
@COLUMNS
def test_multiply_adds_the_product(rows, d_in, d_out):
    x, w, before = normal(rows, d_in), normal(d_in, d_out, seed=1), normal(rows, d_out, seed=2)
    z, behind = filled(before)
    cpu.multiply(x.numpy(), w.numpy(), z)
    assert_close(torch.from_numpy(z), before.double() + x.double() @ w.double(), EPS["ieee"])
    assert np.isnan(behind).all()


@SHAPES
@COLUMNS
def test_multiply_columns_is_the_product(rows, d_in, d_out):
    x, w = normal(d_in, rows), normal(d_in, d_out, seed=1)
    z, behind = filled(torch.full((rows, d_out), torch.nan))
    cpu.multiply_columns(x.numpy(), w.numpy(), z)
    assert_close(torch.from_numpy(z), x.double().mT @ w.double(), EPS["ieee"])
    assert np.isnan(behind).all()


@SHAPES
@COLUMNS
def test_the_vjp_of_a_layer_and_of_the_activation_before(rows, d_in, d_out):
    dz, w_t, act_deriv = normal(rows, d_in), normal(d_in, d_out, seed=1), normal(rows, d_out, seed=2)
    layer = np.array([d_out, d_in, 0, 0])
    for through in (True, False):
        z, behind = filled(torch.full((rows, d_out), torch.nan))
        if through:
            cpu.affine_vjp_through(dz.numpy(), w_t.flatten().numpy(), layer, act_deriv.numpy(), z)
        else:
            cpu.affine_vjp(dz.numpy(), w_t.flatten().numpy(), layer, z)
        expected = dz.double() @ w_t.double() * (act_deriv.double() if through else 1)
        assert_close(torch.from_numpy(z), expected, EPS["ieee"])
        assert np.isnan(behind).all()


def test_silu_and_its_derivative_are_exact_to_rounding():
    x = torch.cat([torch.linspace(-30, 30, 40001), torch.tensor([0.0, 88.0, 1e4, 1e30, -80.0])])
    z, act_deriv = x.clone().unsqueeze(0).numpy(), np.empty((1, len(x)), dtype=np.float32)
    cpu_activations.silu(z, act_deriv)
    sigmoid = x.double().sigmoid()
    torch.testing.assert_close(torch.from_numpy(z[0]).double(), x * sigmoid, rtol=5e-7, atol=1e-30)
    # Where the derivative crosses zero, only its absolute error can be small.
    torch.testing.assert_close(
        torch.from_numpy(act_deriv[0]).double(), sigmoid * (1 + x * (1 - sigmoid)), rtol=5e-7, atol=1e-7
    )


def test_tanh_and_its_derivative_are_exact_to_rounding():
    x = torch.cat(
        [torch.linspace(-12, 12, 40001), torch.tensor([0.0, 1e-30, -1e-5, 0.25, -0.25, 88.0, 1e30, torch.inf])]
    )
    z, act_deriv = x.clone().unsqueeze(0).numpy(), np.empty((1, len(x)), dtype=np.float32)
    cpu_activations.fast_tanh(z, act_deriv)
    tanh = x.double().tanh()
    torch.testing.assert_close(torch.from_numpy(z[0]).double(), tanh, rtol=2e-7, atol=1e-38)
    torch.testing.assert_close(torch.from_numpy(act_deriv[0]).double(), 1 - tanh.square(), rtol=0, atol=2.5e-7)


def test_clip_and_its_derivative_are_those_of_hardtanh():
    x = torch.tensor([[-3.0, -1.0, -0.999, 0.0, 0.5, 1.0, 1e30]], requires_grad=True)
    expected = torch.nn.functional.hardtanh(x)
    (derivative,) = torch.autograd.grad(expected.sum(), x)
    z, act_deriv = x.detach().clone().numpy(), np.empty((1, 7), dtype=np.float32)
    cpu_activations.clip(z, act_deriv)
    np.testing.assert_array_equal(z, expected.detach())
    np.testing.assert_array_equal(act_deriv, derivative)


ACTIVATIONS = cpu_activations.silu, cpu_activations.relu, cpu_activations.tanh
ACTIVATIONS += cpu_activations.fast_tanh, cpu_activations.clip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_keep_nan(activation):
    z = np.full((1, 20), np.nan, dtype=np.float32)
    activation(z, np.empty_like(z))
    assert np.isnan(z).all()
