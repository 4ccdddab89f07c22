"""Building blocks of the Triton MLP kernels: one layer for a tile of particles, activations, and their derivatives.

Tiles of activations are transposed, (width, BLOCK_M), with the weights as the left operand of the product: so 16
particles fill a tensor-core instruction. Activations pass from layer to layer through global memory, where the backward
pass needs them anyway; the caller puts a barrier between writing and reading, and a program reads only what it wrote.
"""

from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import triton
import triton.language as tl

from fastdwm_kernels.layout import MLPLayout


@dataclass(frozen=True)
class Net:
    """An MLPLayout as a compile-time argument.

    sizes: layer widths.   w, b, scale, shift: first element of each layer's in the flat buffer of `width` elements.
    cols: first column of each hidden layer in a row of activations (n_cols).   activation, output: as in MLPLayout.
    """

    sizes: tuple[int, ...]
    w: tuple[int, ...]
    b: tuple[int, ...]
    scale: tuple[int, ...]
    shift: tuple[int, ...]
    cols: tuple[int, ...]
    n_cols: int
    n_params: int
    width: int
    activation: str
    output: str

    @classmethod
    @cache
    def of(cls, layout: MLPLayout) -> "Net":
        first = {
            kind: tuple(start for name, start in layout.offsets.items() if name.rstrip("0123456789") == kind)
            for kind in ("w", "b", "scale", "shift")
        }
        ends = list(accumulate(layout.sizes[1:-1]))
        cols = (0, *ends[:-1])
        size = dict(n_cols=ends[-1], n_params=layout.n_params, width=layout.width)
        return cls(layout.sizes, **first, cols=cols, **size, activation=layout.activation, output=layout.output)


@triton.jit
def dense(w_ptr, x_ptr, rows, row_mask, X_STRIDE: tl.constexpr, D_IN: tl.constexpr, D_OUT: tl.constexpr,
          STRIDE_IN: tl.constexpr, STRIDE_OUT: tl.constexpr, BLOCK_OUT: tl.constexpr,
          BLOCK_K: tl.constexpr):  # fmt: skip
    """sum over i of w[i, o] x[row, i], as a tile (BLOCK_OUT, BLOCK_M) in fp32; rows of the tile past D_OUT are zero.

    w[i, o] lies at i STRIDE_IN + o STRIDE_OUT, so the strides choose a layer or its transpose; x is (rows, X_STRIDE).
    """
    out = tl.arange(0, BLOCK_OUT)
    acc = tl.zeros((BLOCK_OUT, rows.shape[0]), tl.float32)
    for k in range(0, D_IN, BLOCK_K):
        i = k + tl.arange(0, BLOCK_K)
        w_mask = (out < D_OUT)[:, None] & (i < D_IN)[None, :]
        w = tl.load(w_ptr + out[:, None] * STRIDE_OUT + i[None, :] * STRIDE_IN, mask=w_mask, other=0.0)
        x_mask = (i < D_IN)[:, None] & row_mask[None, :]
        x = tl.load(x_ptr + i[:, None] + rows[None, :] * X_STRIDE, mask=x_mask, other=0.0)
        acc = dot(w, x, acc)
    return acc


@triton.jit
def dot(w, x, acc):
    """acc + w x with fp32 sums, x rounded to the dtype of w; acc may be None."""
    # Without input_precision fp32 operands would be rounded to TF32.
    return tl.dot(w, x.to(w.dtype), acc, input_precision="ieee")


@triton.jit
def load_vector(ptr, N: tl.constexpr, BLOCK: tl.constexpr):
    """ptr[0:N] as a column (BLOCK, 1) of fp32, zero past N."""
    i = tl.arange(0, BLOCK)
    return tl.load(ptr + i, mask=i < N, other=0.0).to(tl.float32)[:, None]


@triton.jit
def tile_offsets(rows, row_mask, STRIDE: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets and mask of the transposed tile (BLOCK, BLOCK_M) of columns 0:N of these rows."""
    i = tl.arange(0, BLOCK)[:, None]
    return i + rows[None, :] * STRIDE, (i < N) & row_mask[None, :]


@triton.jit
def silu(z):
    """z sigmoid(z), by a quotient, which is one instruction shorter than the product."""
    return z / (1.0 + tl.exp(-z))


@triton.jit
def silu_deriv(z):
    """silu'(z)."""
    s = tl.sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


@triton.jit
def tanh(x):
    """tanh to a few eps; by its series near zero, where 1 - exp(-2x) cancels."""
    square = x * x
    series = 1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * 62 / 2835)))
    e = tl.exp(-2 * tl.abs(x))
    far = tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)
    return tl.where(square < 1 / 16, x * series, far)


@triton.jit
def activate(z, NET: tl.constexpr):
    """The activation of a hidden layer. NaN passes, as in torch; tl.maximum would turn it into 0."""
    if NET.activation == "tanh":
        return tanh(z)
    else:
        return tl.where(z <= 0, 0.0, z)


@triton.jit
def through_activation(dh, h, NET: tl.constexpr):
    """Gradient of the activation's argument from that of its result h, dh."""
    if NET.activation == "tanh":
        h = h.to(tl.float32)
        return dh * (1 - h * h)
    else:
        # A product, since Triton 3.6 spills registers on sm_80 if `where` selects dh itself.
        return dh * tl.where(h <= 0, 0.0, 1.0)


@triton.jit
def limit(z, NET: tl.constexpr):
    """A policy's action from the result of its last layer; NaN passes."""
    if NET.output == "tanh":
        return tanh(z)
    else:
        return tl.where(z <= -1, -1.0, tl.where(z >= 1, 1.0, z))


@triton.jit
def through_limit(grad, action, NET: tl.constexpr):
    """Gradient of the last layer's result from that of the action."""
    if NET.output == "tanh":
        return grad * (1 - action * action)
    else:
        return tl.where(tl.abs(action) >= 1, 0.0, grad)
