"""What the caller has set in torch, and how it made its tensors, does not reach the agent."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdwm.bundle import Bundle
from fastdwm.models.nets import map_params


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """No inference mode, whose tensors autograd refuses, and no autocast. (No gradients flow: see `own_bundle`.)"""
    with torch.inference_mode(False), ExitStack() as stack:
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def isolated(method: Callable) -> Callable:
    """A method of an object with a `device`, run in its own modes."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        kind = self.device.type
        # To enter the modes costs a hundredth of a decision, to ask for them nothing.
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(kind) or torch.is_autocast_enabled("cpu"):
            with own_modes(self.device):
                return method(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    return call


def own_bundle(bundle: Bundle) -> Bundle:
    """The bundle with tensors that autograd takes as constants, whatever mode and for whatever use they were made."""

    def own(value: Tensor) -> Tensor:
        return value.detach().clone() if value.is_inference() else value.detach()

    networks = [item.name for item in fields(bundle) if _holds_tensors(getattr(bundle, item.name))]
    worlds = {name: replace(model, params=map_params(own, model.params)) for name, model in bundle.worlds.items()}
    return replace(bundle, worlds=worlds, **{name: map_params(own, getattr(bundle, name)) for name in networks})


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def own_rows(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """A contiguous float32 copy, without history, of numbers of any kind, strides and device; too large: infinity."""
    if isinstance(values, Tensor):
        return values.detach().to(device, torch.float32, copy=True, memory_format=torch.contiguous_format)
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(values, dtype=np.float32, order="C")).to(device)
