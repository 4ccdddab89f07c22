"""Bring simulators into the form that the package works in: flat observations, and actions in [-1, 1].

Dict observations are flattened in the order of Gymnasium's FlattenObservation: the entries in the order of the space,
which Gymnasium sorts by name, and nested entries in place. Other action boxes are mapped to [-1, 1] by an affine
function. numpy and gymnasium are imported where they are used.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastdwm.checks import require

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Form:
    """Sizes of a simulator after `adapt`, and what `adapt` changes."""

    obs_dim: int
    action_dim: int
    action_low: tuple[float, ...] | None
    """bounds of an action in the simulator's units (A,); none: -1 and 1"""
    action_high: tuple[float, ...] | None
    obs_parts: tuple[str, ...]
    """entries of a dict observation in the order in which they are flattened, nested ones as `outer/inner`; empty for
    an array"""


def form_of(env: Any) -> Form:
    """Describe a gymnasium.Env; InputError for actions that are no box, and for pixels and other observations."""
    import numpy as np

    name, box = env.spec.id if env.spec else type(env.unwrapped).__name__, env.action_space
    real = _is_box(box) and len(box.shape) == 1 and np.issubdtype(box.dtype, np.floating)
    require(real, f"env: expected actions that are a list of real numbers, {name} has {box}")
    finite = np.isfinite(box.low).all() and np.isfinite(box.high).all() and (box.low < box.high).all()
    require(bool(finite), f"env: expected a finite low < high of each number of an action, {name} has {box}")
    parts = dict(_parts(env.observation_space, name))
    unit = np.all(box.low == -1) and np.all(box.high == 1)
    low, high = (None if unit else tuple(map(float, bound)) for bound in (box.low, box.high))
    obs_dim = sum(math.prod(space.shape) for space in parts.values())
    return Form(obs_dim, box.shape[0], low, high, tuple(filter(None, parts)))


def adapt(env: Any) -> Any:
    """Wrap a gymnasium.Env so that it observes (S,) and acts in [-1, 1]; raises InputError as `form_of`."""
    from gymnasium import wrappers

    form = form_of(env)
    if form.obs_parts or len(env.observation_space.shape) != 1:
        env = wrappers.FlattenObservation(env)
    return env if form.action_low is None else wrappers.RescaleAction(env, -1.0, 1.0)


def to_unit(action: "np.ndarray", low: Any, high: Any) -> "np.ndarray":
    """Map actions (..., A) in [low, high], numbers or (A,), to [-1, 1]; the dtype stays."""
    import numpy as np

    low, high = np.asarray(low, action.dtype), np.asarray(high, action.dtype)
    return 2 * (action - low) / (high - low) - 1


def from_unit(action: "np.ndarray", low: Any, high: Any) -> "np.ndarray":
    """Map actions (..., A) in [-1, 1] to [low, high], numbers or (A,); the dtype stays."""
    import numpy as np

    low, high = np.asarray(low, action.dtype), np.asarray(high, action.dtype)
    return low + (action + 1) / 2 * (high - low)


def _is_box(space: Any) -> bool:
    from gymnasium.spaces import Box

    return isinstance(space, Box)


def _parts(space: Any, name: str, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name of the entry, box) in the order in which Gymnasium flattens them; InputError for other spaces."""
    from gymnasium.spaces import Dict

    if isinstance(space, Dict):
        for key, part in space.spaces.items():
            yield from _parts(part, name, f"{path}/{key}" if path else key)
        return
    expected = "env: expected observations that are real numbers, or a dict of such"
    require(_is_box(space), f"{expected}, {name} has {space}")
    pixels = space.dtype.name == "uint8" and len(space.shape) > 1
    require(not pixels, f"{expected}, not pixels, {name} has {space}")
    yield path, space
