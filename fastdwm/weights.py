"""Tensors as the content of a safetensors file, and the checks of tensors that anyone may have written."""

import math
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdwm.checks import require
from fastdwm.errors import InputError
from fastdwm.models.nets import Params

MAX_FILE_BYTES = 2**30
MAX_WEIGHT = 1e4
"""bound on the absolute value of a parameter. Trained ones stay below 10, and three layers of 512 with this
bound cannot overflow float32 for normalised inputs up to 1e9: 512e4^4 * 1e9 = 7e35."""
MAX_STATISTIC = 1e6
"""bound on a mean, a standard deviation and 1 / a standard deviation; real ones lie between 1e-3 and 10"""


def pack_tensors(groups: dict[str, Params]) -> bytes:
    """The content of a safetensors file with GROUP.NAME for every tensor; equal tensors give equal content."""
    named = {f"{group}.{name}": tensor for group, params in groups.items() for name, tensor in params.items()}
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in named.items()})


def max_bytes(shapes: dict[str, dict[str, tuple]]) -> int:
    """Largest accepted file of these tensors: twice their size, so that for a slightly different architecture the error
    names a tensor."""
    n_bytes = sum(4 * math.prod(shape) for names in shapes.values() for shape in names.values())
    return min(MAX_FILE_BYTES, 2 * n_bytes + 2**20)


def unpack_tensors(
    content: bytes,
    path: Path,
    shapes: dict[str, dict[str, tuple]],
    digest: str | None = None,
    optional: tuple[str, ...] = (),
) -> dict[str, Params]:
    """Tensors of a file, grouped by the part of their name before the dot and checked against `shapes` and `digest`.

    path: of the file, for error messages.   optional: groups whose tensors may be missing.
    """
    limit = max_bytes(shapes)
    require(len(content) <= limit, f"{path}: expected at most {limit} bytes, got {len(content)}")
    try:
        tensors = safetensors.torch.load(content)
    # The latter two come from dtypes that this torch does not know.
    except (SafetensorError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: expected a safetensors file ({error})") from None
    # Either all networks are stored in float16 or none: a single tensor of another dtype is damage.
    in_half = all(x.dtype == torch.float16 for name, x in tensors.items() if not name.startswith("statistics."))
    result: dict[str, Params] = {group: {} for group in shapes}
    for group, names in shapes.items():
        for name, shape in names.items():
            value = tensors.pop(f"{group}.{name}", None)
            if value is None:
                require(group in optional, f"{path}: tensor {group}.{name} is missing")
                continue
            value = value.float() if in_half and group != "statistics" else value
            largest = MAX_STATISTIC if group == "statistics" else MAX_WEIGHT
            check_tensor(f"{path}: {group}.{name}", value, tuple(shape), largest)
            result[group][name] = value
    extra = ascii(min(tensors, default=""))[1:-1]
    require(not tensors, f"{path}: tensor {extra} is not part of this architecture")
    same = digest in (None, sha256(content).hexdigest())
    require(same, f"{path}: damaged: these are not the weights whose SHA-256 bundle.json states")
    return result


def check_tensor(name: str, value: Tensor, shape: tuple, most: float) -> None:
    """Raise InputError unless the tensor is float32 of that shape, finite and up to `most`; a standard deviation must
    also be at least 1 / `most`."""
    actual = tuple(value.shape)
    right = actual == shape and value.dtype == torch.float32
    require(right, f"{name}: expected float32 {shape}, got {value.dtype} {actual}")
    require(bool(value.isfinite().all()), f"{name}: expected finite values, got NaN or infinity")
    largest = float(value.abs().max())
    require(largest <= most, f"{name}: expected values up to {most:g}, got {largest:g}")
    if name.endswith("_std"):
        least = float(value.min())
        require(least >= 1 / most, f"{name}: expected values of at least {1 / most:g}, got {least:g}")
