"""Isolate the agent from the caller's torch modes and from how the caller made its tensors."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdwm.checks import require
from fastdwm.errors import InputError


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Switch off inference mode, whose tensors autograd refuses, and autocast. (Gradients are cut by `own`.)"""
    with torch.inference_mode(False), ExitStack() as stack:
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def isolated(method: Callable) -> Callable:
    """Decorate a method of an object with a `device`, to run in `own_modes`."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = self.device.type
        # Entering the modes costs a hundredth of a decision, asking for them next to nothing.
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(kind) or torch.is_autocast_enabled("cpu"):
            with own_modes(self.device):
                return method(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    return call


def own(value: Any) -> Any:
    """The value with all its tensors, also in nested dicts and dataclasses, as constants that autograd accepts."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.is_inference() else value.detach()
    if isinstance(value, dict):
        return {name: own(item) for name, item in value.items()}
    if is_dataclass(value):
        return replace(value, **{item.name: own(getattr(value, item.name)) for item in fields(value)})
    return value


def own_rows(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy real numbers of any dtype, strides and device to contiguous float32, detached; overflow gives infinity.

    Raises InputError for values that are no real numbers, or are masked."""
    kind = values.dtype if isinstance(values, Tensor) else np.asarray(values).dtype
    real = not kind.is_complex if isinstance(values, Tensor) else kind.kind in "biuf"
    if not real:  # before the message, since its text takes longer to make than the copy
        raise InputError(f"obs: expected an array of real numbers, got {kind}")
    require(not np.ma.is_masked(values), "obs: expected a value everywhere, got a masked array")
    if isinstance(values, Tensor):
        return values.detach().to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(values, dtype=np.float32, order="C")).to(device)
