"""A frozen denoiser packed for the sampler: first layer split, time features tabulated, weights padded and tiled.

The first layer is linear in (y, obs, action, time features), so z_0 = y W_y + (obs, action) W_c + (t_k W_t + b_0). The
last term is a table of K rows, computed here; the middle one is one product for all K steps; only y W_y is computed in
every step.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdwm_kernels.checks import check_choice, check_range, check_tensor, operands
from fastdwm_kernels.launch import (
    PRECISIONS,
    Launch,
    chunk,
    device_capability,
    pad_block,
    sampler_launch,
    sampler_resident,
)
from fastdwm_kernels.layout import MLPLayout

MAX_OBS, MAX_ACTION, MAX_WIDTH = 128, 32, 512
"""largest sizes that the Triton kernels are compiled and checked for"""


@dataclass(frozen=True)
class DenoiserShape:
    """Sizes that the kernels are compiled for; width: the padded hidden width, n_rows: the particles of a launch."""

    obs_dim: int
    action_dim: int
    width: int
    hidden_layers: int
    precision: str
    capability: int
    n_rows: int = 1

    @property
    def launch(self) -> Launch:
        return sampler_launch(self.width, self.obs_dim, self.precision, self.capability).for_rows(self.n_rows)


class CPUSampler(NamedTuple):
    """A sampler for the CPU kernels.

    forward, backward: first arguments of the kernels, numpy arrays.   hidden: sum of the hidden widths.
    cost: multiply-adds of one row.
    """

    forward: tuple
    backward: tuple
    hidden: int
    cost: int


@dataclass(frozen=True, eq=False)
class SamplerWeights:
    """K reverse steps of one frozen denoiser in memory of their own, made by `pack_sampler`.

    For the reference, in the state's dtype:
    w_in (S, D), w_cond (S + A, D), table (K, D), w_hidden and b_hidden (one of each per hidden-to-hidden layer),
    w_out (S, D), transposed, b_out (S,), coefficients (K, 3), and `affine`, the same as Python floats.

    For the kernels, padded with zeros to the common width D = `width`, a power of two, in the operands' dtype:
    tiles     (d_out, d_in) matrices one after the other: cond, in, hidden.., out; each cut into the tiles of columns
              that `launch` streams, or in one tile if it stays in shared memory (in and out)
    tiles_t   their transposes, cut likewise, in the order of the VJP: cond, in, the last hidden matrix first, out
    constants b_hidden (n, D), b_out, table (K, D), in float32
    """

    obs_dim: int
    action_dim: int
    precision: str
    w_in: Tensor
    w_cond: Tensor
    table: Tensor
    w_hidden: tuple[Tensor, ...]
    b_hidden: tuple[Tensor, ...]
    w_out: Tensor
    b_out: Tensor
    coefficients: Tensor
    affine: tuple[tuple[float, float, float], ...]
    width: int
    launch: Launch
    tiles: Tensor
    tiles_t: Tensor
    constants: Tensor

    @property
    def steps(self) -> int:
        """Network calls per sample (K)."""
        return len(self.affine)

    @property
    def hidden_layers(self) -> int:
        return 1 + len(self.w_hidden)

    @cached_property
    def for_cpu(self) -> CPUSampler:
        """The sampler for the CPU kernels."""
        from fastdwm_kernels.cpu import layer_table, transposed

        matrices = self.w_in, *self.w_hidden, self.w_out.mT
        # The table takes the place of the first layer's bias.
        biases = torch.zeros_like(self.table[0]), *self.b_hidden, self.b_out
        layout = MLPLayout((*(len(w) for w in matrices), self.obs_dim))
        params = {f"w{i}": w.unsqueeze(0) for i, w in enumerate(matrices)}
        flat = layout.pack(params | {f"b{i}": b.unsqueeze(0) for i, b in enumerate(biases)})
        layers, w_cond, coefficients = layer_table(layout), self.w_cond, self.coefficients.numpy()
        return CPUSampler(
            (layers, flat[0].numpy(), w_cond.numpy(), self.table.numpy(), coefficients),
            (layers, transposed(layout, flat)[0].numpy(), w_cond.mT.contiguous().numpy(), coefficients),
            sum(layout.sizes[1:-1]),
            self.steps * layout.n_params,
        )

    @cached_property
    def single_steps(self) -> tuple["SamplerWeights", ...]:
        """Each step as a sampler of one step, without its noise; entry k - 1 is step k."""
        rest = self.constants[: -self.steps * self.width]
        rows = self.constants[-self.steps * self.width :].view(self.steps, self.width)
        return tuple(
            replace(
                self,
                table=self.table[k : k + 1],
                coefficients=F.pad(self.coefficients[k : k + 1, :2], (0, 1)),
                affine=((*self.affine[k][:2], 0.0),),
                constants=torch.cat([rest, rows[k]]),
            )
            for k in range(self.steps)
        )

    @property
    def dtype(self) -> torch.dtype:
        """dtype of observations, noise and results."""
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        return self.table.device


@torch.no_grad()
def pack_sampler(
    params: dict[str, Tensor],
    embedding: Tensor,
    coefficients: Tensor,
    obs_dim: int,
    action_dim: int,
    precision: str = "ieee",
) -> SamplerWeights:
    """Copy a denoiser into the form that the sampler's operators read.

    params: w0 (S + S + A + features, D0), b0, .., layout (d_in, d_out), input order (y, obs, action, time features),
    SiLU after every layer but the last; float32, or float64 on the CPU.   embedding: (K, features).
    coefficients: (K, 3) rows (c_y, c_out, sigma); row k - 1 belongs to step k; copied to the host.
    precision: operands of every product, "fp16" (on a GPU) or "ieee"; sums and states are float32.
    Raises ValueError on shapes that disagree, on weights beyond the range of fp16 and, on CUDA, on sizes beyond
    MAX_OBS, MAX_ACTION and MAX_WIDTH.
    """
    check_choice("precision", precision, PRECISIONS)
    layers = [(params[f"w{i}"].detach(), params[f"b{i}"].detach()) for i in range(len(params) // 2)]
    _check(layers, embedding, coefficients, obs_dim, action_dim)
    (w_first, b_first), *hidden, (w_out, b_out) = layers
    dtype = w_first.dtype
    inputs = [obs_dim, obs_dim + action_dim, embedding.shape[1]]
    w_in, w_cond, w_time = w_first.split(inputs)
    table = (embedding.double() @ w_time.double() + b_first.double()).to(dtype)
    natural = [w.contiguous() for w in (w_cond, w_in, *(w for w, _ in hidden), w_out)]
    width = pad_block(max(w.shape[1] for w, _ in layers[:-1]))
    launch = sampler_launch(width, obs_dim, precision, device_capability(w_first.device))
    # A matrix that stays in shared memory is one tile.
    ends = width * MAX_OBS if sampler_resident(width, obs_dim, precision) else launch.tile
    limits = [launch.tile, ends, *(launch.tile for _ in hidden), ends]
    tiles, tiles_t = _tiles([operands("params", w, precision) for w in natural], width, limits)
    biases = [*(b for _, b in hidden), b_out, *table]
    sizes = [width] * len(hidden) + [pad_block(obs_dim)] + [width] * len(table)
    return SamplerWeights(
        obs_dim=obs_dim,
        action_dim=action_dim,
        precision=precision,
        w_in=natural[1].clone(),
        w_cond=natural[0].clone(),
        table=table,
        w_hidden=tuple(w.clone() for w in natural[2:-1]),
        b_hidden=tuple(b.clone() for _, b in hidden),
        w_out=natural[-1].mT.clone(memory_format=torch.contiguous_format),
        b_out=b_out.clone(),
        coefficients=coefficients.to(dtype=dtype, device=w_first.device, copy=True),
        affine=tuple(tuple(row) for row in coefficients.double().tolist()),
        width=width,
        launch=launch,
        tiles=tiles,
        tiles_t=tiles_t,
        constants=torch.cat([F.pad(b.float(), (0, n - len(b))) for b, n in zip(biases, sizes, strict=True)]),
    )


def _check(layers: list, embedding: Tensor, coefficients: Tensor, obs_dim: int, action_dim: int) -> None:
    """Raise unless the layers form the denoiser that `pack_sampler` describes."""
    check_range("number of layers", len(layers), 2, 16)
    device, dtype = layers[0][0].device, layers[0][0].dtype
    check_tensor("embedding", embedding, (None, None), embedding.dtype)
    check_tensor("coefficients", coefficients, (len(embedding), 3), coefficients.dtype)
    d_in = 2 * obs_dim + action_dim + embedding.shape[1]
    for i, (w, b) in enumerate(layers):
        d_out = obs_dim if i == len(layers) - 1 else w.shape[-1]
        check_tensor(f"w{i}", w, (d_in, d_out), dtype, device)
        check_tensor(f"b{i}", b, (d_out,), dtype, device)
        d_in = d_out
    if device.type == "cuda":
        check_range("obs_dim", obs_dim, 1, MAX_OBS)
        check_range("action_dim", action_dim, 1, MAX_ACTION)
        check_range("hidden width", max(w.shape[1] for w, _ in layers[:-1]), 1, MAX_WIDTH)


def _tiles(matrices: list[Tensor], width: int, limits: list[int]) -> tuple[Tensor, Tensor]:
    """The padded (d_out, d_in) matrices, flat and cut into tiles, and their transposes; `matrices` are (d_in, d_out).

    limits: maximum elements of a tile of each matrix.
    """
    last = len(matrices) - 1
    rows = [pad_block(len(w)) if i < 2 else width for i, w in enumerate(matrices)]
    columns = [pad_block(w.shape[1]) if i == last else width for i, w in enumerate(matrices)]
    padded = [F.pad(w, (0, n - w.shape[1], 0, m - w.shape[0])) for w, m, n in zip(matrices, rows, columns, strict=True)]
    tiles = [_cut(w.mT, limit) for w, limit in zip(padded, limits, strict=True)]
    tiles_t = [_cut(w, limit) for w, limit in zip(padded, limits, strict=True)]
    return torch.cat(tiles), torch.cat([*tiles_t[:2], *tiles_t[-2:1:-1], tiles_t[-1]])


def _cut(w: Tensor, limit: int) -> Tensor:
    """w (d_out, d_in) as flat (n_tiles, d_out, columns).

    Bit 3 of a column's number is the lowest bit of its tile's number, and its highest bits are the others; see
    `tiles.rows_of_tile`.
    """
    columns = chunk(*w.shape, limit)
    n_tiles = w.shape[1] // columns
    if n_tiles == 1:
        return w.flatten()
    return w.reshape(len(w), n_tiles // 2, columns // 8, 2, 8).permute(1, 3, 0, 2, 4).flatten()
