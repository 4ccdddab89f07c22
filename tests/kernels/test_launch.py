"""Launches on the device of their tensors; launch sizes; rounding of operands."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from numerics import EPS, assert_close
from torch import Tensor

from fastdwm_kernels.launch import row_parts, run, sampler_launch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from fastdwm_kernels.sampler.tiles import product  # noqa: E402


class Recorder:
    """A stand-in for a kernel that records its launches."""

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
    for path in (Path(__file__).parents[2] / "kernels").rglob("*kernel.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            direct = isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
            assert not direct, f"{path}:{node.lineno}: kernel[grid](...)"


@pytest.mark.parametrize(
    "n_rows, block",
    [(1, 16), (132 * 16, 16), (132 * 16 + 1, 32), (4096, 32), (132 * 32 + 1, 64), (10**6, 64)],
)
def test_no_multiprocessor_has_a_second_block_while_there_are_larger_ones(n_rows, block):
    assert sampler_launch(128, 11, "fp16", 90).for_rows(n_rows).block_m == block


def test_a_denoiser_without_larger_blocks_keeps_its_own():
    for width, obs_dim, precision in ((512, 11, "fp16"), (256, 128, "fp16"), (128, 11, "ieee")):
        launch = sampler_launch(width, obs_dim, precision, 90)
        assert launch.for_rows(10**6) == launch


@pytest.mark.parametrize(
    "n_rows, n_tiles, parts",
    [(384, 40, 1), (767, 40, 1), (768, 40, 3), (1536, 40, 6), (10**6, 40, 6), (10**6, 12, 8), (10**6, 160, 1)],
)
def test_rows_are_split_where_they_are_many_and_programs_few(n_rows, n_tiles, parts):
    assert row_parts(n_rows, n_tiles) == parts


@triton.jit
def product_kernel(w_ptr, x_ptr, out_ptr, OUT: tl.constexpr, IN: tl.constexpr, M: tl.constexpr, TILE: tl.constexpr):
    m = tl.arange(0, M)[None, :]
    x = tl.load(x_ptr + tl.arange(0, IN)[:, None] * M + m)
    tl.store(out_ptr + tl.arange(0, OUT)[:, None] * M + m, product(w_ptr, x, OUT, TILE, 2))


def product_of(w: Tensor, x: Tensor) -> Tensor:
    """w x in one tile; runs in the interpreter's process."""
    out = torch.empty(len(w), x.shape[1])
    run(product_kernel, (1,), w, x, out, len(w), len(x), x.shape[1], 64 * len(x))
    return out


def test_activations_are_rounded_to_the_nearest_operand_and_summed_in_float32(interpreted):
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(32, 64, generator=g).half(), torch.randn(64, 16, generator=g)
    assert_close(interpreted(product_of, w, x), w.double() @ x.half().double(), EPS["ieee"])
