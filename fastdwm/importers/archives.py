"""Read zip archives and torch checkpoints of unknown origin: no code runs, and memory is bounded before it is taken."""

import io
import pickletools
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastdwm.checks import require
from fastdwm.errors import one_line_errors

MAX_BYTES = 2**28
"""largest size of a file, and of all that it unpacks to"""
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
ALLOWED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
ALLOWED |= {f"torch {name}Storage" for name in STORAGES}
"""the only names in a checkpoint: `torch.load(weights_only=True)` allows more, some of which take memory at will"""


def open_zip(content: bytes, where: str) -> dict[str, bytes]:
    """The entries of a zip archive by name.

    Raises InputError for a damaged archive, and for one that would unpack to more than MAX_BYTES.
    """
    with one_line_errors(where, "a zip archive"), zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        require(size <= MAX_BYTES, f"{where}: it unpacks to {size} bytes, expected at most {MAX_BYTES}")
        # Reading stops at the size that the entry states.
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def read_checkpoint(content: bytes, where: str) -> Any:
    """The tensors, lists, dicts, numbers and texts that `torch.save` wrote.

    Raises InputError for any other file, and for a checkpoint with other objects.
    """
    entries = open_zip(content, where)
    names = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    require(len(names) == 1, f"{where}: expected a checkpoint of torch.save, which holds one data.pkl")
    for name in _globals(entries[names[0]], where):
        require(name in ALLOWED, f"{where}: expected tensors, got an object of {name[:80]!r}")
    # Packed anew, because torch reads a crafted archive in another way than Python, which has checked this one.
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    packed.seek(0)
    with one_line_errors(where, "a checkpoint of torch.save"):
        return torch.load(packed, map_location="cpu", weights_only=True)


def _globals(content: bytes, where: str) -> Iterator[str]:
    """The names, MODULE NAME, that a pickle refers to."""
    with one_line_errors(where, "a checkpoint of torch.save"):
        for opcode, value, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                yield value
            # Other ways to a name, which torch.save does not use.
            elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                yield opcode.name


def state_dict(value: Any, where: str) -> dict[str, Tensor]:
    """Check that a value is a dict of tensors by name, and return a copy.

    Tensors that show more numbers than they hold (by strides of zero) are refused.
    """
    tensors = isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    require(tensors, f"{where}: expected tensors by name, got {type(value).__name__}")
    for name, tensor in value.items():
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        require(tensor.numel() <= held, f"{where}: {name[:80]!r} shows more numbers than it holds")
    return dict(value)
