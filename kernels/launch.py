"""Launch sizes (blocks, warps, stages, grid) as pure functions of the problem; operand precision; the launch itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch

PRECISIONS = ("fp16", "ieee")
"""operands of the products on a GPU: rounded to fp16, or IEEE fp32; sums and states are always fp32"""

MIN_DOT = 16
"""smallest extent of a tl.dot operand"""

MULTIPROCESSORS = 132
"""multiprocessors of an H100; up to so many programs run at the same time"""


CAPTURES = Lock()
"""torch can capture one graph at a time in a process"""


@dataclass(frozen=True)
class Launch:
    """Sizes of one launch: `block_m` particles per program, weights streamed in tiles of `tile` elements."""

    block_m: int
    tile: int
    num_warps: int
    num_stages: int
    larger: tuple[int, ...] = ()
    """block sizes, in rising order, for launches that would need more programs of `block_m` than multiprocessors"""

    def for_rows(self, n_rows: int) -> "Launch":
        """This launch with the smallest block that gives a multiprocessor at most one program, else the largest."""
        blocks = (self.block_m, *self.larger)
        block = next((b for b in blocks if cdiv(n_rows, b) <= MULTIPROCESSORS), blocks[-1])
        return replace(self, block_m=block, larger=())

    def grid(self, n_rows: int) -> tuple[int]:
        """One program per block of particles."""
        return (cdiv(n_rows, self.block_m),)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def pad_block(size: int, minimum: int = MIN_DOT) -> int:
    """The smallest power of two that is at least `size` and `minimum`: extents of Triton tiles are powers of two."""
    return max(minimum, 1 << (size - 1).bit_length())


def run(kernel: Any, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
    """Launch a kernel on the device of its first argument, a tensor; Triton itself launches on the current device."""
    with torch.cuda.device_of(args[0]):
        kernel[grid](*args, **kwargs)


@contextmanager
def on_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run on this stream, after the work of the current one, which goes on after it."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@contextmanager
def captured(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any = None) -> Iterator[None]:
    """Record in the graph what runs here. Other threads may use the GPU meanwhile, but capture one after the other."""
    # The stream by itself too: a capture that fails leaves its own as the current one.
    with CAPTURES, torch.cuda.stream(stream):
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            yield


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that one program may use on compute capability `capability` (80 for sm_80)."""
    if capability in (90, 100, 103):
        return 232448
    return 166912 if capability in (80, 87) else 101376


def device_capability(device: torch.device) -> int:
    """Compute capability as an integer, 90 for sm_90; the CPU (the interpreter) counts as 90."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def operand_dtype(precision: str) -> torch.dtype:
    """dtype of the operands of a kernel's products: weights, and activations saved for the VJP."""
    return torch.float16 if precision == "fp16" else torch.float32


def sampler_launch(width: int, obs_dim: int, precision: str, capability: int) -> Launch:
    """Sizes of the sampler kernels for a padded hidden width; `Launch.for_rows` then chooses the block.

    They are the largest that compile without spilling registers, which tests/kernels/test_aot.py checks.
    """
    tile, widest = {"ieee": (2048, 256), "fp16": (16384, 576)}[precision]
    # A long observation takes registers, and so do the tiles of its matrices.
    long = pad_block(obs_dim) > 32
    stages = {232448: 4, 166912: 3}.get(shared_limit(capability), 2) if precision == "fp16" else 2
    larger: tuple[int, ...] = ()
    if precision == "fp16" and width <= 256 and not long:
        # Before Hopper the operands of a layer of width 128, which is one tile, fill the registers.
        larger = (32,) if width > 128 else (32, 64) if stages == 4 else ()
    return Launch(
        block_m=16 if width + pad_block(obs_dim) <= widest else 8,
        tile=tile // 2 if long and precision == "fp16" else tile,
        num_warps=8,
        # IEEE operands of this width leave no registers for the addresses of prefetched tiles.
        num_stages=1 if precision == "ieee" and width > 256 else stages,
        larger=larger,
    )


def sampler_resident(width: int, obs_dim: int, precision: str) -> bool:
    """Whether the weights of the first and the last layer stay in shared memory for the whole launch.

    Never in IEEE precision, whose products take their operands from registers.
    """
    return precision != "ieee" and 2 * width * pad_block(obs_dim) * operand_dtype(precision).itemsize <= 32768


def chunk(d_out: int, d_in: int, tile: int) -> int:
    """Columns of a (d_out, d_in) weight that one tile of at most `tile` elements takes; all sizes are powers of two."""
    return max(MIN_DOT, min(d_in, tile // max(d_out, 64)))


def mlp_launch(width: int, precision: str, capability: int) -> Launch:
    """Sizes of the policy and frozen-MLP kernels; width: of the widest hidden layer.

    A tile of weights is (padded width, tile / padded width).
    """
    block = pad_block(width)
    depth = {"ieee": 16, "fp16": 64 if block <= 256 else 32}[precision]
    # With 16 particles, fp32 tiles of this width would spill registers.
    narrow = precision == "ieee" and block > 256
    three_stages = shared_limit(capability) > 150_000 and precision == "fp16"
    return Launch(
        block_m=8 if narrow else 16,
        tile=block * depth,
        num_warps=16 if block > 256 else 8 if block > 128 else 4,
        # fp32 tiles of this width leave no registers for the addresses of prefetched ones.
        num_stages=3 if three_stages else 1 if narrow else 2,
    )


def mlp_options(launch: Launch) -> dict[str, int]:
    """Options of the compiler for the policy and frozen-MLP kernels."""
    # Without a bound the assembler spills a few registers to fit a second program on the multiprocessor.
    max_registers = 128 if launch.num_warps == 16 else 255
    return dict(num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=max_registers)


def outer_launch(precision: str) -> Launch:
    """Sizes of the weight-gradient kernel: (block_m, block_m) weights, tile / block_m rows at a time."""
    if precision == "ieee":
        return Launch(block_m=32, tile=32 * 16, num_warps=4, num_stages=3)
    # Few programs run, each over all rows, so large blocks of rows save waiting for loads.
    return Launch(block_m=64, tile=64 * 64, num_warps=4, num_stages=3)


def row_parts(n_rows: int, n_tiles: int) -> int:
    """Parts that the rows of one episode's weight gradient are split into; a second launch adds up more than one.

    n_tiles: programs of one part. A part keeps at least 256 rows, and a multiprocessor gets at most two programs of an
    episode. Fewer than three parts do not make up for the second launch. The number of episodes does not count, because
    the bits of a sum depend on its order.
    """
    parts = min(8, n_rows // 256, 2 * MULTIPROCESSORS // n_tiles)
    return parts if parts >= 3 else 1
