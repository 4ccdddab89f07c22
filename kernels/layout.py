"""Layouts of named parameters in one flat buffer, which kernels and optimiser steps work on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Self

import torch
from torch import Tensor

Params = dict[str, Tensor]

ALIGNMENT = 16
"""a row of the buffer is a multiple of so many elements, so that each episode's weights start on a vector boundary"""


ACTIVATIONS = ("relu", "tanh")
"""functions after the hidden layers of policies and frozen networks"""

OUTPUTS = ("tanh", "clip")
"""functions after the last layer of a policy; "clip" is max(-1, min(1, z)), whose derivative is 0 at and beyond +-1"""


class Layout:
    """Parameters of these names and shapes, row-major, one after the other.

    A buffer is (B, width): B copies of the network, each `n_params` values and then padding, which no network reads and
    whose gradient is zero.
    """

    shapes: Mapping[str, tuple[int, ...]]
    """shape of every parameter of one copy, in the order of the buffer"""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = dict(shapes)

    @classmethod
    def of(cls, params: Params) -> Self:
        """The layout of parameters (B, ...)."""
        return cls({name: tuple(value.shape[1:]) for name, value in params.items()})

    @cached_property
    def offsets(self) -> dict[str, int]:
        """First column of each parameter in the buffer."""
        offsets, start = {}, 0
        for name, shape in self.shapes.items():
            offsets[name] = start
            start += prod(shape)
        return offsets

    @cached_property
    def n_params(self) -> int:
        """Parameters of one copy."""
        return sum(map(prod, self.shapes.values()))

    @property
    def width(self) -> int:
        """Columns of the buffer, padding included."""
        return -(-self.n_params // ALIGNMENT) * ALIGNMENT

    def views(self, flat: Tensor) -> Params:
        """The parameters (B, ...) as views of `flat` (B, width)."""
        rows = flat.shape[0]
        return {
            name: flat[:, start : start + prod(shape)].view(rows, *shape)
            for (name, shape), start in zip(self.shapes.items(), self.offsets.values(), strict=True)
        }

    def pack(self, params: Params) -> Tensor:
        """A new buffer (B, width) with these parameters (B, ...); its padding is zero."""
        rows = [params[name].flatten(1) for name in self.shapes]
        padding = rows[0].new_zeros(len(rows[0]), self.width - self.n_params)
        return torch.cat([*rows, padding], 1)


@dataclass(frozen=True)
class MLPLayout(Layout):
    """Layout w0, b0[, scale0, shift0], w1, ... of an MLP with layer widths `sizes`, which the kernels require.

    activation, output: one of `ACTIVATIONS` for the hidden layers and one of `OUTPUTS` for a policy's actions. Frozen
    networks have no output function; the sampler and training ignore both, for they have activations of their own.
    """

    sizes: tuple[int, ...]
    layer_norm: bool = False
    activation: str = "relu"
    output: str = "tanh"

    @classmethod
    def of(cls, params: Params, activation: str = "relu", output: str = "tanh") -> Self:
        """The layout of parameters w0 (B, d_in, d_out), b0 (B, d_out), ...

        Raises ValueError for an unknown function, or unless all shapes agree with those of the weights.
        """
        for name, value, choices in (("activation", activation, ACTIVATIONS), ("output", output, OUTPUTS)):
            if value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        weights = [params[f"w{i}"] for i in range(sum(name.startswith("w") for name in params))]
        if not weights or weights[0].dim() != 3:
            raise ValueError("params: expected weights w0, w1, ... (B, d_in, d_out)")
        sizes = weights[0].shape[1], *(w.shape[2] for w in weights)
        layout = cls(sizes, "scale0" in params, activation, output)
        layout.check(params)
        return layout

    @property
    def title(self) -> str:
        """Its widths, and its functions unless they are relu and tanh."""
        functions = [name for name, usual in ((self.activation, "relu"), (self.output, "tanh")) if name != usual]
        return " ".join(["-".join(map(str, self.sizes)), *functions])

    def check(self, params: Params) -> None:
        """Raise ValueError unless `params` has this layout's names and shapes, with one leading axis."""
        if params.keys() != self.shapes.keys():
            raise ValueError(f"params: expected {', '.join(self.shapes)}, got {', '.join(params)}")
        copies = params["w0"].shape[0]
        for name, shape in self.shapes.items():
            actual = tuple(params[name].shape)
            if actual != (copies, *shape):
                raise ValueError(f"params[{name}]: expected shape {(copies, *shape)}, got {actual}")

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        last = len(self.sizes) - 2
        for i, (d_in, d_out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            shapes |= {f"w{i}": (d_in, d_out), f"b{i}": (d_out,)}
            if self.layer_norm and i < last:
                shapes |= {f"scale{i}": (d_out,), f"shift{i}": (d_out,)}
        return shapes
