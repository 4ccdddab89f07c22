"""Input checks shared by every operator: the only place that words these errors.

Checks read shapes, dtypes, strides and devices, never values, so they cost no host synchronisation.
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
    """Raise unless `value` is a contiguous tensor of this shape (None: any size), dtype and, if given, device.

    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype; both name the argument, what was
    expected and what came.
    """
    got = value.shape
    # A whole shape is compared at once: a decision makes some fifty of these checks.
    if got != shape and not fits(got, shape):
        got = tuple(got)
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({expected}), got {got}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if not value.is_contiguous():
        raise ValueError(f"{name}: expected contiguous memory, got strides {value.stride()} for shape {tuple(got)}")
    if device is not None and value.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {value.device}")


def fits(got: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    if len(got) != len(shape):
        return False
    for want, size in zip(shape, got, strict=True):
        if want is not None and want != size:
            return False
    return True


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_precision(precision: str, on_gpu: bool) -> None:
    """Raise ValueError unless the device's operators have products of this precision."""
    check_choice("precision", precision, PRECISIONS if on_gpu else ("ieee",))


def operands(name: str, weights: Tensor, precision: str) -> Tensor:
    """The weights as operands of this precision. Reads their values: for use when packing, never in a decision.

    Raises ValueError where they exceed the range of fp16.
    """
    if precision == "ieee":
        return weights
    rounded = weights.to(operand_dtype(precision))
    if not rounded.isfinite().all():
        most, largest = torch.finfo(rounded.dtype).max, float(weights.abs().max())
        raise ValueError(f"{name}: expected weights up to {most:g}, got {largest:g}: use precision 'ieee'")
    return rounded


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {value}")


def refuse_second_order(op: str) -> None:
    """Raise NotImplementedError if called in a backward pass that is itself to be differentiated.

    To be the first line of every hand-written backward: without it autograd returns wrong second derivatives silently.
    """
    if torch.is_grad_enabled():
        raise NotImplementedError(f"{op}: second-order gradients are not implemented; use the plain torch path")


@cache
def cpu_kernels(operator: str) -> ModuleType | None:
    """Those of this operator; none without numba, which what is imagined in plain torch does not need."""
    try:
        return import_module(f"fastdwm_kernels.{operator}.cpu")
    except ImportError:
        return None
