"""Building blocks of the CPU kernels: float32 functions that numba compiles at their first use and then caches.

A kernel (in an operator's `cpu.py`) works on the items start..stop-1 of its buffers, rows or policies, without the
GIL, so threads can share the items. All arrays are C-contiguous. The result for a row is the same to the bit whatever
the other rows are and however many threads there are.

No `fastmath` option assumes finite numbers: an imagined state that diverges must stay visible.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from fastdwm_kernels.layout import MLPLayout

try:
    from llvmlite import binding
    from numba import carray, njit, types
    from numba.core.errors import TypingError
    from numba.extending import intrinsic

    from fastdwm_kernels.cpu_cache import OPTIONS, compiled, compiled_callback
    from fastdwm_kernels.gemm import LANES, TALL, product_of_columns, product_of_rows, transpose_tile
except ImportError as error:
    raise ImportError(f"the CPU kernels need numba: install it, or use --backend reference ({error})") from error

FUNCTIONS = ("relu", "tanh", "clip")
"""functions of a layer's result, by their numbers in a `layer_table`"""
RELU, TANH, CLIP = range(3)

ROW_BLOCK = 32
"""rows that go through a pass together, so that their activations stay in the cache"""

MIN_PRODUCTS = 1 << 23
"""multiply-adds that are worth a thread: they take 70 us at 230 GFLOP/s, and waking a thread takes 30 us"""

helper = njit(**OPTIONS, fastmath={"contract"})
summing = njit(**OPTIONS, fastmath={"contract", "reassoc"})
"""`helper` for sums over a row, whose order the compiler may choose to use vectors"""

SIZE, LAYERS = types.int64, types.int64[:, ::1]
ROW, MATRIX, STACK = types.float32[::1], types.float32[:, ::1], types.float32[:, :, ::1]
"""types of the kernels' arguments"""

POINTER = types.CPointer(types.float32)
GEMM = types.void(*[POINTER, SIZE] * 4, POINTER, SIZE, SIZE, SIZE)
"""type of the matrix products, whose operands are pointers"""

SOURCES = sorted([*Path(__file__).parent.rglob("cpu*.py"), Path(__file__).parent / "gemm.py"])
STAMP = f"_{crc32(b''.join(path.read_bytes() for path in SOURCES)):08x}"
"""suffix of the kernels' names, after which numba names its cache files: it notices only changes of a function's own
file, but a kernel must be compiled anew if a file changes whose functions it calls"""

SIGNATURES: dict[Callable, Any] = {}
"""argument types of each kernel"""

ADDRESSES: list[Any] = []
"""compiled functions that others call by their address, kept alive for them"""


def kernel(*arguments: types.Type) -> Callable:
    """Declare a kernel (start, stop, *arguments), which Python calls by `run` and other kernels call directly."""

    def decorate(function: Callable) -> Callable:
        function.__qualname__ += STAMP
        inner = helper(function)
        SIGNATURES[inner] = types.void(types.int64, types.int64, *arguments)
        return inner

    return decorate


@lru_cache
def entry(function: Callable) -> Callable:
    """A kernel as Python calls it, compiled now or read from the cache; it accepts only the declared argument types."""
    return compiled(SIGNATURES[function], function.py_func)


def run(function: Callable, n_items: int, cost: int, *args, smallest: int = TALL) -> None:
    """Run function(start, stop, *args) over all items, on at most torch's number of threads, fewer for little work.

    args: tensors, or what numba takes; tuples hold only the latter.
    cost: multiply-adds of one item.   smallest: fewest items for a thread; the default fills a tile with rows.
    """
    function, args = entry(function), [value.numpy() if isinstance(value, Tensor) else value for value in args]
    n_threads = torch.get_num_threads()
    n_parts = min(n_items // smallest, n_items * cost // MIN_PRODUCTS, 4 * n_threads)
    if n_threads == 1 or n_parts <= 1:
        function(0, n_items, *args)
        return
    parts = [(n_items * i // n_parts, n_items * (i + 1) // n_parts) for i in range(n_parts)]

    # Each free thread takes the next part, since idle OpenMP threads spin and may delay the start of ours.
    def work() -> None:
        while parts:
            try:
                part = parts.pop()
            except IndexError:
                return
            function(*part, *args)

    running = [threads(n_threads - 1).submit(work) for _ in range(min(n_threads, n_parts) - 1)]
    work()
    for future in running:
        future.cancel() or future.result()


def arrays(*values: Tensor) -> tuple[np.ndarray, ...]:
    """Tensors as numba takes them."""
    return tuple([value.numpy() for value in values])


@lru_cache
def threads(n_threads: int) -> ThreadPoolExecutor:
    """A pool of threads that sleep while idle, unlike OpenMP's."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="fastdwm")


# A forked process has none of its parent's threads.
os.register_at_fork(after_in_child=threads.cache_clear)


@lru_cache
def layer_table(layout: MLPLayout) -> np.ndarray:
    """One row for each layer: d_in, d_out, the offset of w in the flat parameters (b, scale and shift follow), the sum
    of the widths of the layers before, which tells where its block is in a buffer of all layers' rows, and the number
    of the function of its result in `FUNCTIONS`."""
    widths, before = layout.sizes[1:], accumulate(layout.sizes[1:-1], initial=0)
    places = [layout.offsets[f"w{i}"] for i in range(len(widths))]
    functions = [FUNCTIONS.index(name) for name in (*[layout.activation] * (len(widths) - 1), layout.output)]
    return np.array(list(zip(layout.sizes, widths, places, before, functions, strict=False)), dtype=np.int64)


def transposed(layout: MLPLayout, flat: Tensor, flat_t: Tensor | None = None) -> Tensor:
    """flat (Q, P) with every weight transposed in its place and all else undefined; written to `flat_t` unless None."""
    flat_t = torch.empty_like(flat) if flat_t is None else flat_t
    run(transpose, len(flat), layout.n_params, layer_table(layout), flat, flat_t, smallest=1)
    return flat_t


@intrinsic
def address(typing, array, offset):
    """Pointer to element `offset` of an array."""
    if array.layout != "C":
        raise TypingError(f"expected a C-contiguous array, got {array}")

    def emit(context, b, signature, args):
        return b.gep(context.make_array(signature.args[0])(context, b, args[0]).data, [args[1]])

    return types.CPointer(types.float32)(array, types.int64), emit


@intrinsic
def noinline(typing):
    """Forbid LLVM to inline the calling function, which would take long to compile, and let it use vectors of 512 bits
    where they exist, for its default is half of that."""

    def emit(context, b, signature, args):
        b.function.attributes.add("noinline")
        # llvmlite's own `add` accepts no attribute with a value.
        set.add(b.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def null(typing):
    """A null pointer, for an operand that a product does not have."""
    pointer = types.CPointer(types.float32)
    return pointer(), lambda context, b, signature, args: context.get_constant_null(pointer)


def gemm(function: Callable) -> types.ExternalFunction:
    """Compile a matrix product once and call it by its address; compiled into each of its callers it would take half a
    minute."""
    function.__qualname__ += STAMP
    name = f"fastdwm_{function.__qualname__}"
    callback = compiled_callback(GEMM, function)
    binding.add_symbol(name, callback.address)
    ADDRESSES.append(callback)
    return types.ExternalFunction(name, GEMM)


@gemm
def rows_product(x, x_row, w, w_row, z, z_row, start, start_row, act_deriv, rows, depth, columns):
    product_of_rows(x, x_row, w, w_row, z, z_row, start, start_row, act_deriv, rows, depth, columns)


@gemm
def columns_product(x, x_row, w, w_row, z, z_row, start, start_row, act_deriv, rows, depth, columns):
    product_of_columns(x, x_row, w, w_row, z, z_row, start, start_row, act_deriv, rows, depth, columns)


@helper
def product(x, w, w_row, z, start, start_row, act_deriv):
    """z (n, d_out) = (start + x w) act_deriv; x (n, d_in) and z are arrays, the others pointers: see `gemm.product`."""
    (n, d_in), d_out = x.shape, z.shape[1]
    rows_product(address(x, 0), d_in, w, w_row, address(z, 0), d_out, start, start_row, act_deriv, n, d_in, d_out)


@helper
def multiply(x, w, z):
    """z (n, d_out) += x w: x (n, d_in), w (d_in, d_out)."""
    product(x, address(w, 0), w.shape[1], z, address(z, 0), z.shape[1], null())


@helper
def multiply_columns(x, w, z):
    """z (n, d_out) = x^T w: x (d_in, n), w (d_in, d_out)."""
    (d_in, n), d_out = x.shape, z.shape[1]
    out = address(z, 0)
    columns_product(address(x, 0), n, address(w, 0), d_out, out, d_out, null(), 0, null(), n, d_in, d_out)


@helper
def fill(z, value):
    noinline()
    for i in range(len(z)):
        for j in range(z.shape[1]):
            z[i, j] = value


@helper
def copy(x, z):
    noinline()
    for i in range(len(z)):
        for j in range(z.shape[1]):
            z[i, j] = x[i, j]


@helper
def combine(a, x, b, y, z):
    """z = a x + b y."""
    noinline()
    for i in range(len(z)):
        for j in range(z.shape[1]):
            z[i, j] = a * x[i, j] + b * y[i, j]


@helper
def add_to(x, z):
    """z += x."""
    noinline()
    for i in range(len(z)):
        for j in range(z.shape[1]):
            z[i, j] += x[i, j]


@summing
def square_of(row):
    total = float32(0)
    for i in range(len(row)):
        total += row[i] * row[i]
    return total


@helper
def scale(dz, act_deriv):
    """dz *= act_deriv."""
    noinline()
    for i in range(len(dz)):
        for j in range(dz.shape[1]):
            dz[i, j] *= act_deriv[i, j]


# In the following, `layer` is a row of `layer_table`.
@helper
def block(flat, at, rows, columns):
    """A matrix in a flat buffer, without reshape, whose error message alone takes three seconds to compile."""
    return carray(address(flat, at), (rows, columns))


@helper
def vector(flat, layer, i):
    """b (i = 0), or scale (1) or shift (2) of the layer norm."""
    return carray(address(flat, layer[2] + (layer[0] + i) * layer[1]), layer[1])


@helper
def affine(x, flat, layer, z):
    """z = x w + b."""
    product(x, address(flat, layer[2]), layer[1], z, address(vector(flat, layer, 0), 0), 0, null())


@helper
def affine_vjp(dz, flat_t, layer, dx):
    """dx = dz w^T; flat_t has the transposed weights."""
    product(dz, address(flat_t, layer[2]), layer[0], dx, null(), 0, null())


@helper
def affine_vjp_through(dz, flat_t, layer, act_deriv, dx):
    """dx = dz w^T act_deriv: the VJP of the layer and of the activation before it."""
    product(dz, address(flat_t, layer[2]), layer[0], dx, null(), 0, address(act_deriv, 0))


@helper
def rows_of(buffer, layer, low, high, n_rows):
    """Rows low..high-1 of a layer's block (n_rows, d_out)."""
    return block(buffer, n_rows * layer[3], n_rows, layer[1])[low:high]


@kernel(LAYERS, MATRIX, MATRIX)
def transpose(start, stop, layers, flat, flat_t):
    """Write the transposed weights of flat (Q, P) to the same places of flat_t."""
    for q in range(start, stop):
        for d_in, d_out, at, _, _ in layers:
            w, w_t = block(flat[q], at, d_in, d_out), block(flat_t[q], at, d_out, d_in)
            full_in, full_out = d_in - d_in % LANES, d_out - d_out % LANES
            for j in range(0, full_out, LANES):
                for k in range(0, full_in, LANES):
                    transpose_tile(address(w, k * d_out + j), d_out, address(w_t, j * d_in + k), d_in)
            for k in range(d_in):
                for j in range(full_out if k < full_in else 0, d_out):
                    w_t[j, k] = w[k, j]
