"""Input checks shared by all operators.

They read shapes, dtypes, strides and devices, never values, so they cost no host synchronisation.
"""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from fastdwm_kernels.launch import PRECISIONS, operand_dtype


def check_tensor(
    name: str,
    value: Tensor,
    shape: tuple[int | None, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> None:
    """Raise unless `value` is a contiguous tensor of this shape (None: any size), dtype and, if not None, device.

    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    actual = value.shape
    # Equality is the fast path: a decision makes some fifty of these checks.
    if actual != shape and not fits(actual, shape):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({expected}), got {tuple(actual)}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if not value.is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, got strides {value.stride()} for shape {tuple(actual)}")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {value.device}")


def fits(actual: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    """Whether every size is the expected one, or None is expected."""
    if len(actual) != len(shape):
        return False
    # A loop, since a generator for `all` costs more than the comparisons.
    for size, expected in zip(actual, shape, strict=True):
        if expected is not None and expected != size:
            return False
    return True


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_precision(precision: str, on_gpu: bool) -> None:
    """Raise ValueError unless products of this precision exist on the device."""
    check_choice("precision", precision, PRECISIONS if on_gpu else ("ieee",))


def operands(name: str, weights: Tensor, precision: str) -> Tensor:
    """The weights in the dtype of a product's operands. Reads their values, so call it when packing, not in a decision.

    Raises ValueError if they exceed the range of fp16.
    """
    if precision == "ieee":
        return weights
    rounded = weights.to(operand_dtype(precision))
    if not rounded.isfinite().all():
        limit, largest = torch.finfo(rounded.dtype).max, float(weights.abs().max())
        raise ValueError(f"{name}: expected weights up to {limit:g}, got {largest:g}: use precision 'ieee'")
    return rounded


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value}")


def refuse_second_order(op: str) -> None:
    """Raise NotImplementedError in a backward pass that is itself differentiated.

    Every hand-written backward calls this first: without it autograd silently returns wrong second derivatives.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(f"{op}: second-order gradients are not implemented; use the plain torch path")


@cache
def cpu_kernels(operator: str) -> ModuleType | None:
    """The module of an operator's CPU kernels, or None if numba is not installed."""
    try:
        return import_module(f"fastdwm_kernels.{operator}.cpu")
    except ImportError:
        return None
