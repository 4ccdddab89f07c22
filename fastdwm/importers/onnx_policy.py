"""ONNX: a policy that is a chain of Gemm, or MatMul and Add, with Relu or Tanh between, and Tanh or Clip last."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdwm.checks import require
from fastdwm.errors import InputError, one_line_errors
from fastdwm.importers.imported import Imported
from fastdwm.importers.layers import Tensors, network, policy_spec
from fastdwm.importers.onnx_file import read_onnx

FUNCTIONS = {"Relu": "relu", "Tanh": "tanh", "Clip": "clip"}


def read_onnx_policy(path: Path, with_critics: bool) -> Imported:
    """The policy in an ONNX file; it has no critics. Actions without a last Tanh or Clip are clipped to [-1, 1].

    Raises InputError for a file as `read_onnx` does, and for another graph.
    """
    content, _ = read_onnx(path)
    import onnx

    where = str(path)
    graph = onnx.load_model_from_string(content).graph
    with one_line_errors(where, "an MLP"):
        tensors, functions = _chain(graph, _constants(graph), where)
    layers = list(dict.fromkeys(name.split(".")[0] for name in tensors))
    params = network(tensors, layers, where)
    hidden, output = set(functions[: len(layers) - 1]), functions[len(layers) - 1 :]
    plain = len(hidden) == 1 and hidden <= {"relu", "tanh"} and output in ([], ["tanh"], ["clip"])
    require(plain, f"{where}: expected Relu or Tanh after every hidden layer, and Tanh or Clip last, got {functions}")
    result = Imported(params, policy_spec(params, hidden.pop(), output[0] if output else "clip"))
    return result if output else result.noting("its last layer has no tanh, so its actions are clipped to [-1, 1]")


def _constants(graph: Any) -> dict[str, np.ndarray]:
    """The weights of the graph by name."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}


def _chain(graph: Any, constants: dict[str, np.ndarray], where: str) -> tuple[Tensors, list[str]]:
    """Weights and biases, as layers 0, 1, ..., and the functions between them, from the input to the end."""
    starts = [item.name for item in graph.input if item.name not in constants]
    require(len(starts) == 1, f"{where}: expected one input, got {', '.join(starts)[:120] or 'none'}")
    value, tensors, functions = starts[0], {}, []
    for _ in range(len(graph.node) + 1):
        users = [node for node in graph.node if value in node.input]
        if not users:
            return tensors, functions
        require(len(users) == 1, f"{where}: expected a chain of layers, but {len(users)} operators read {value[:60]!r}")
        _add(users[0], value, constants, tensors, functions, where)
        value = users[0].output[0]
    raise InputError(f"{where}: expected a chain of layers, got a circle")


def _add(
    node: Any, value: str, constants: dict[str, np.ndarray], tensors: Tensors, functions: list[str], where: str
) -> None:
    """Add the operator that reads `value` to the layers or to the functions between them."""
    kind, others = node.op_type, [constants[name] for name in node.input if name in constants]
    layer = len(tensors) // 2
    if kind in FUNCTIONS:
        limits = [float(x) for x in others]
        require(kind != "Clip" or limits == [-1, 1], f"{where}: Clip: expected limits of -1 and 1, got {limits}")
        # A function belongs to the layer before it.
        require(len(functions) == layer - 1, f"{where}: expected a layer before {kind}")
        functions.append(FUNCTIONS[kind])
    elif kind in ("Gemm", "MatMul"):
        require(node.input[0] == value and bool(others), f"{where}: {kind}: expected the weights as its second input")
        require(len(functions) == layer, f"{where}: expected Relu or Tanh between two layers")
        settings = {item.name: item.f if item.type == item.FLOAT else item.i for item in node.attribute}
        require(not settings.get("transA"), f"{where}: Gemm: transA is not supported")
        weight = others[0] if settings.get("transB") else others[0].T
        bias = settings.get("beta", 1.0) * others[1] if len(others) > 1 else np.zeros(1, np.float32)
        bias = np.broadcast_to(bias.reshape(-1), (len(weight),))
        tensors[f"{layer}.weight"] = torch.from_numpy(np.array(settings.get("alpha", 1.0) * weight, np.float32))
        tensors[f"{layer}.bias"] = torch.from_numpy(np.array(bias, np.float32))
    elif kind == "Add" and others and layer > len(functions):
        bias = tensors[f"{layer - 1}.bias"]
        tensors[f"{layer - 1}.bias"] = bias + torch.from_numpy(np.array(others[0], np.float32).reshape(-1))
    else:
        require(kind == "Identity", f"{where}: expected Gemm, MatMul, Add, Relu, Tanh or Clip, got {kind[:40]}")
