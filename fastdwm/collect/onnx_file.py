"""An ONNX file as it is read before it runs: its weights put in, and nothing in it that draws numbers or never ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdwm.checks import require
from fastdwm.errors import InputError, first_line
from fastdwm.files import read_bytes

MAX_BYTES = 2**28
"""of the file and of the weights that lie beside it, each"""

DRAWS = (
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
    *("Sampling", "BiasDropout", "BitmaskDropout", "BitmaskBiasDropout"),
)
"""operators of ONNX and of onnxruntime whose numbers differ from call to call; Dropout in training mode is another"""
LOOPS = ("Loop", "Scan", "SequenceMap", "BeamSearch", "GreedySearch", "WhisperBeamSearch")


def read_onnx(path: Path) -> tuple[bytes, list[bytes]]:
    """A self-contained ONNX model, and the contents of all files that it was read from.

    Raises InputError for a file that is none, for weights that do not lie beside it, and for operators that draw
    numbers, because the same command must record the same actions, or repeat others, because they may never end.
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
    # onnxruntime hands such a name on to Python, which cannot read it.
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
        # Many tensors may be the same part of a file.
        size += len(values)
        require(size <= MAX_BYTES, f"policy: {path}: expected at most {MAX_BYTES} bytes of weights beside it")
        tensor.raw_data = values
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return model.SerializeToString(), [content, *(files[name] for name in sorted(files))]


def _parts(message: Any) -> Iterator[Any]:
    """All messages inside a message: those of subgraphs and functions too."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                yield item
                yield from _parts(item)


def _is_text(message: Any) -> bool:
    """Whether every string of the message is UTF-8; protobuf gives the bytes of one that is not."""
    fields = ((field, value) for field, value in message.ListFields() if field.type == field.TYPE_STRING)
    texts = (text for _, value in fields for text in ([value] if isinstance(value, str | bytes) else value))
    return all(isinstance(text, str) for text in texts)


def _check_operator(path: Path, node: Any) -> None:
    """Raise InputError for an operator that draws or repeats."""
    kind = node.op_type
    trains = kind == "Dropout" and len(node.input) > 2 and node.input[2]
    require(
        kind not in DRAWS and not trains,
        f"policy: {path}: {kind} draws numbers of its own; let them be an input named noise",
    )
    require(kind not in LOOPS, f"policy: {path}: {kind} may never end; unroll it")


def _weights(path: Path, tensor: Any, files: dict[str, bytes]) -> bytes:
    """The bytes of a tensor that a file beside the model holds.   files: those read so far, by name."""
    about = {entry.key: entry.value for entry in tensor.external_data}
    name = about.get("location", "")
    # A name with a folder, or a link out of the folder, could be any file of the user's.
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
    # ValueError: of a number; RuntimeError and OSError: of a link that leads to itself or is too long.
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"policy: {path}: its weights are in {ascii(name[:200])}: {error}") from None
    return files[name][offset:end]
