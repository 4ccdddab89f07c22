"""Policies in ONNX files, two layers with a tanh at the end, made here."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def weights(obs_dim, action_dim, hidden=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w0": (obs_dim, hidden), "b0": (hidden,), "w1": (hidden, action_dim), "b1": (action_dim,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def policy_bytes(params, std=None, output="action", squash="Tanh", noise="noise"):
    """tanh(relu(observations w0 + b0) w1 + b1 + std noise); std: none, without the second input.

    squash: the last operation.   output, noise: their names.
    """
    obs_dim, action_dim = params["w0"].shape[0], params["b1"].shape[0]
    inputs = [helper.make_tensor_value_info("observations", FLOAT, ["batch", obs_dim])]
    nodes = [
        helper.make_node("Gemm", ["observations", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["mean"]),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in params.items()]
    last = "mean"
    if std is not None:
        inputs.append(helper.make_tensor_value_info(noise, FLOAT, ["batch", action_dim]))
        tensors.append(numpy_helper.from_array(np.full(action_dim, std, np.float32), "std"))
        nodes += [
            helper.make_node("Mul", [noise, "std"], ["scaled"]),
            helper.make_node("Add", ["mean", "scaled"], ["drawn"]),
        ]
        last = "drawn"
    nodes.append(helper.make_node(squash, [last], [output]))
    outputs = [helper.make_tensor_value_info(name, FLOAT, ["batch", action_dim]) for name in (output, "mean")]
    return serialised(nodes, inputs, outputs, tensors)


def serialised(nodes, inputs, outputs, tensors=()):
    graph = helper.make_graph(nodes, "policy", inputs, outputs, list(tensors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()
