"""Read an ONNX file: load its external weights into it, and refuse operators that draw numbers or may never end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdwm.checks import require
from fastdwm.errors import InputError, first_line
from fastdwm.files import read_bytes

MAX_BYTES = 2**28
"""largest size of the file, and of its external weights"""

DRAWS = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
    *("Sampling", "BiasDropout", "BitmaskDropout", "BitmaskBiasDropout"),
)
"""operators of ONNX and onnxruntime that draw random numbers; Dropout in training mode is another"""
LOOPS = ("Loop", "Scan", "SequenceMap", "BeamSearch", "GreedySearch", "WhisperBeamSearch")


def read_onnx(path: Path) -> tuple[bytes, list[bytes]]:
    """The ONNX model with all its weights, and the contents of the files that it was read from.

    Raises InputError for a file that is not ONNX, for weights outside its folder, for operators that draw random
    numbers (the same command must record the same actions), and for loops (they may never end).
    """
    try:
        import onnx
    except ImportError:
        raise InputError("policy: onnx is not installed; pip install 'fastdwm[collect]'") from None
    content = read_bytes(path, MAX_BYTES)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has a type of its own
        raise InputError(f"policy: {path}: not an ONNX model: {first_line(error)}") from None
    parts = [model, *_parts(model)]
    # onnxruntime passes such a name to Python, which cannot decode it.
    require(all(map(_is_text, parts)), f"policy: {path}: not an ONNX model: it has names that are not UTF-8")
    for node in (part for part in parts if isinstance(part, onnx.NodeProto)):
        _check_operator(path, node)
    tensors = [part for part in parts if isinstance(part, onnx.TensorProto)]
    external = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if not external:
        return content, [content]
    files: dict[str, bytes] = {}
    size = 0
    for tensor in external:
        values = _weights(path, tensor, files)
        # Several tensors may share one part of a file, so their sizes are added up.
        size += len(values)
        require(size <= MAX_BYTES, f"policy: {path}: expected at most {MAX_BYTES} bytes of weights beside it")
        tensor.raw_data = values
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return model.SerializeToString(), [content, *(files[name] for name in sorted(files))]


def _parts(message: Any) -> Iterator[Any]:
    """All messages inside a message, including those of subgraphs and functions."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield item
                yield from _parts(item)


def _is_text(message: Any) -> bool:
    """Whether all strings of the message are UTF-8; protobuf returns bytes for a string that is not."""
    fields = ((field, value) for field, value in message.ListFields() if field.type == field.TYPE_STRING)
    texts = (text for _, value in fields for text in ([value] if isinstance(value, str | bytes) else value))
    return all(isinstance(text, str) for text in texts)


def _check_operator(path: Path, node: Any) -> None:
    """Raise InputError for an operator that draws random numbers, and for a loop."""
    kind = node.op_type
    trains = kind == "Dropout" and len(node.input) > 2 and node.input[2]
    require(
        kind not in DRAWS and not trains,
        f"policy: {path}: {kind} draws numbers of its own; let them be an input named noise",
    )
    require(kind not in LOOPS, f"policy: {path}: {kind} may never end; unroll it")


def _weights(path: Path, tensor: Any, files: dict[str, bytes]) -> bytes:
    """The bytes of a tensor from a file beside the model.   files: contents of the files read so far, by name."""
    about = {entry.key: entry.value for entry in tensor.external_data}
    name = about.get("location", "")
    # A name with a folder, or a link out of the folder, could read any of the user's files.
    plain = name not in ("", ".", "..") and not set(name) & set("/\\\0")
    require(plain, f"policy: {path}: expected weights in a file beside it, got {ascii(name[:200])}")
    try:
        if name not in files:
            beside = path.with_name(name)
            own = beside.resolve().parent in (path.parent.resolve(), path.resolve().parent)
            require(own, f"{beside} is a link out of the folder")
            files[name] = read_bytes(beside, MAX_BYTES - sum(map(len, files.values())))
        offset = int(about.get("offset", "0"))
        end = offset + int(about["length"]) if "length" in about else len(files[name])
        require(0 <= offset <= end <= len(files[name]), f"it has {len(files[name])} bytes, expected {offset} to {end}")
    # ValueError: invalid offset or length; RuntimeError and OSError: a link to itself, or a path that is too long.
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"policy: {path}: its weights are in {ascii(name[:200])}: {error}") from None
    return files[name][offset:end]
