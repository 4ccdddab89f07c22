"""Policies as ONNX files, with two layers and a tanh at the end."""

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def weights(obs_dim, action_dim, hidden=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w0": (obs_dim, hidden), "b0": (hidden,), "w1": (hidden, action_dim), "b1": (action_dim,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def policy_bytes(params, std=None, output="action", squash="Tanh", noise="noise"):
    """ONNX file of tanh(relu(observations w0 + b0) w1 + b1 + std noise).

    std: none: without the input noise.   squash: last operation.   output, noise: their names.
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


def with_node(content, node, inside="graph"):
    """Policy with one more operator, whose outputs are unused.   inside: graph, branch (of an If) or function."""
    model = ModelProto.FromString(content)
    if inside == "function":
        opsets = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("own", "Wrapped", [], list(node.output), [node], opsets))
        model.opset_import.append(helper.make_opsetid("own", 1))
        node = helper.make_node("Wrapped", [], list(node.output), domain="own")
    if inside == "branch":
        outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in node.output]
        branch = helper.make_graph([node], "branch", [], outputs)
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        names = [f"{name}_of_branch" for name in node.output]
        node = helper.make_node("If", ["yes"], names, then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, node)
    return model.SerializeToString()


def loop(n_iterations):
    """Loop operator without effect, and its number of iterations as a tensor."""
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    inputs = [helper.make_tensor_value_info("i", TensorProto.INT64, []), going]
    outputs = [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, [])]
    body = helper.make_graph([helper.make_node("Identity", ["going"], ["goes_on"])], "body", inputs, outputs)
    return helper.make_node("Loop", ["n", ""], [], body=body), numpy_helper.from_array(np.array(n_iterations), "n")


def with_loop(content, n_iterations):
    """Policy with a loop."""
    model = ModelProto.FromString(content)
    node, count = loop(n_iterations)
    model.graph.node.insert(0, node)
    model.graph.initializer.append(count)
    return model.SerializeToString()


def external(content, place="weights.bin", **changes):
    """Policy with all weights in another file, as torch writes them, and the content of that file.

    changes: other values for the first tensor's reference to that file.
    """
    model, data = ModelProto.FromString(content), b""
    for tensor in model.graph.initializer:
        about = {"location": place, "offset": len(data), "length": len(tensor.raw_data)}
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (about | changes).items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        changes = {}
    return model.SerializeToString(), data


def serialised(nodes, inputs, outputs, tensors=()):
    graph = helper.make_graph(nodes, "policy", inputs, outputs, list(tensors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()
