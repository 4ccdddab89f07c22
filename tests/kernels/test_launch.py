"""Launches: on the device of their tensors, and with operands rounded to nearest."""

import ast
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numerics import EPS, assert_close
from torch import Tensor

from fastdwm_kernels.launch import nearest_tf32, row_parts, run, sampler_launch
from fastdwm_kernels.layout import MLPLayout

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fastdwm_kernels import dense  # noqa: E402
from fastdwm_kernels.policy.kernel import policy_fwd  # noqa: E402
from fastdwm_kernels.sampler.tiles import product  # noqa: E402

KERNELS = Path(__file__).parents[2] / "kernels"


class Recorder:
    """A kernel that notes what it was launched with."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.calls.append((self.device, grid, args, kwargs))

    device, calls = None, []


def test_a_launch_is_on_the_device_of_its_first_tensor(monkeypatch):
    kernel, tensor = Recorder(), torch.zeros(1)

    @contextmanager
    def device_of(value):
        kernel.device = value
        yield
        kernel.device = None

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    run(kernel, (3,), tensor, 5, BLOCK=16)
    ((device, *call),) = kernel.calls
    assert device is tensor
    assert call == [(3,), (tensor, 5), {"BLOCK": 16}]


def test_every_kernel_is_launched_by_run():
    launched = []
    for path in KERNELS.rglob("kernel.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert not isinstance(node.func, ast.Subscript), f"{path}:{node.lineno}: kernel[grid](...)"
                if isinstance(node.func, ast.Name) and node.func.id == "run":
                    launched.append(node.args[0].id)
    defined = [line.split()[1] for path in KERNELS.rglob("kernel.py") for line in kernels_of(path)]
    assert sorted(launched) == sorted(defined)


def kernels_of(path: Path) -> list[str]:
    return [
        line.replace("(", " ")
        for line in path.read_text().splitlines()
        if line.startswith("def ") and "_kernel(" in line
    ]


@pytest.mark.parametrize(
    "n_rows, block",
    [(1, 16), (132 * 16, 16), (132 * 16 + 1, 32), (4096, 32), (132 * 32 + 1, 64), (10**6, 64)],
)
def test_no_multiprocessor_has_a_second_block_while_there_are_larger_ones(n_rows, block):
    assert sampler_launch(128, 11, "bf16", 90).for_rows(n_rows).block_m == block


def test_a_denoiser_without_larger_blocks_keeps_its_own():
    for width, obs_dim, precision in ((512, 11, "bf16"), (256, 128, "bf16"), (256, 11, "tf32"), (128, 11, "ieee")):
        launch = sampler_launch(width, obs_dim, precision, 90)
        assert launch.for_rows(10**6) == launch


@pytest.mark.parametrize(
    "n_rows, n_programs, parts",
    [(384, 40, 1), (767, 40, 1), (768, 40, 3), (1536, 40, 6), (10**6, 40, 6), (10**6, 12, 8), (10**6, 160, 1)],
)
def test_rows_are_split_where_they_are_many_and_programs_few(n_rows, n_programs, parts):
    assert row_parts(n_rows, n_programs) == parts


# TF32: 10 fraction bits.
def special_values() -> Tensor:
    """Random numbers of all sizes, ties, the largest numbers, infinities and a GPU's NaN."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 4000, dtype=np.uint32)
    bits[:1000] = bits[:1000] & 0xFFFFE000 | 0x1000
    bits[-6:] = 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0x80000000
    return torch.from_numpy(bits.view(np.int32)).view(torch.float32)


def rounded_in_float64(x: Tensor) -> Tensor:
    """The nearest number of 11 significant bits, ties away from zero; subnormals have those of the smallest normal."""
    x = x.double()
    exponent = torch.where(x.abs() < 2.0**-126, -125, torch.frexp(x).exponent).clamp_min(-125)
    step = torch.ldexp(torch.ones_like(x), exponent - 11)
    return torch.where(x.isfinite(), x.sign() * (x.abs() / step + 0.5).floor() * step, x).float()


@triton.jit
def nearest_tf32_kernel(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, dense.nearest_tf32(tl.load(x_ptr + i)))


def rounded_by_a_kernel(x: Tensor) -> Tensor:
    """Runs in the interpreter's process."""
    padded = torch.zeros(4096)
    padded[: len(x)] = x
    out = torch.empty(4096)
    run(nearest_tf32_kernel, (1,), padded, out, 4096)
    return out[: len(x)]


def test_tf32_operands_are_rounded_to_nearest(interpreted):
    x = special_values()
    expected = rounded_in_float64(x)
    for actual in (nearest_tf32(x), interpreted(rounded_by_a_kernel, x)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def policy_hidden(layout: MLPLayout, flat: Tensor, x: Tensor) -> Tensor:
    """Runs in the interpreter's process."""
    return policy_fwd(layout, flat, flat, x, "tf32")[1]


def test_both_operands_of_a_dense_layer_are_rounded(interpreted):
    g, layout = torch.Generator().manual_seed(0), MLPLayout((40, 48, 3))
    flat, x = torch.randn(1, layout.width, generator=g), torch.randn(1, 16, 40, generator=g)
    params = layout.views(flat)
    z = rounded_in_float64(x).double() @ rounded_in_float64(params["w0"]).double() + params["b0"].double()
    assert_close(interpreted(policy_hidden, layout, flat, x), z.relu(), EPS["ieee"])


@triton.jit
def product_kernel(w_ptr, x_ptr, out_ptr, OUT: tl.constexpr, IN: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr):
    m = tl.arange(0, M)[None, :]
    x = tl.load(x_ptr + tl.arange(0, IN)[:, None] * M + m)
    tl.store(out_ptr + tl.arange(0, OUT)[:, None] * M + m, product(w_ptr, x, OUT, TILE, 2, "tf32"))


def product_of(w: Tensor, x: Tensor) -> Tensor:
    """w x in one tile; runs in the interpreter's process."""
    out = torch.empty(len(w), x.shape[1])
    run(product_kernel, (1,), w, x, out, len(w), len(x), x.shape[1], 64 * len(x))
    return out


def test_the_activations_of_the_sampler_are_rounded(interpreted):
    g = torch.Generator().manual_seed(0)
    w, x = nearest_tf32(torch.randn(32, 64, generator=g)), torch.randn(64, 16, generator=g)
    expected = w.double() @ rounded_in_float64(x).double()
    assert_close(interpreted(product_of, w, x), expected, EPS["ieee"])


def test_the_weights_of_the_sampler_are_packed_rounded():
    from denoisers import make_problem

    weights = make_problem(hidden=(48, 33)).weights("tf32")
    for packed in (weights.tiles, weights.tiles_t, weights.w_in):
        assert torch.equal(packed, rounded_in_float64(packed))
