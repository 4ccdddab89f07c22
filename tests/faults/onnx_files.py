"""Policies in ONNX files, and ways to make them damaged or hostile."""

import random
import shutil
from pathlib import Path

import numpy as np
from bundles import replace_file
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_policies import external, policy_bytes, weights, with_loop, with_node

NAMES = ("\x1b[2J", "a\nb", "\u202e", "", "x" * 10**5, "noise", "action", "../x")
DRAWS = (
    *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"),
    "Dropout",
)


def save_base(folder: Path) -> None:
    """Save a policy, one with noise, and one with its weights in another file."""
    params = weights(11, 3)
    content, data = external(policy_bytes(params))
    contents = {"mean.onnx": policy_bytes(params), "sampler.onnx": policy_bytes(params, 0.3), "outside.onnx": content}
    for name, content in (contents | {"weights.bin": data}).items():
        (folder / name).write_bytes(content)


class Mutations:
    """Damaged copies of the policies."""

    def __init__(self, base: Path):
        self.base = base

    def __call__(self, rng: random.Random, place: Path) -> tuple[str, bool]:
        """Make a damaged copy at place/policy.onnx, with weights.bin beside it; see `campaign.Make`."""
        name = rng.choice(["mean", "sampler", "outside"])
        shutil.copy(self.base / "weights.bin", place)
        shutil.copy(self.base / f"{name}.onnx", place / "policy.onnx")
        mutate = rng.choice([flip, flip, cut, draws, endless, elsewhere, elsewhere, sizes, names, large, special])
        return f"{mutate.__name__} of {name}", mutate(rng, place / "policy.onnx")


def flip(rng: random.Random, path: Path) -> bool:
    """Flip a few bits anywhere."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 10])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return False


def cut(rng: random.Random, path: Path) -> bool:
    """Remove the end or a part in the middle, or replace all of the file."""
    content, at = path.read_bytes(), rng.randrange(path.stat().st_size)
    other = rng.choice([b"", rng.randbytes(1000), b"\x0a" * 100, b"PK\x03\x04", b"\xff" * 20])
    path.write_bytes(rng.choice([content[:at], content[:at] + content[at + rng.choice([1, 10, 100]) :], other]))
    return False


def draws(rng: random.Random, path: Path) -> bool:
    """Add an operator that draws numbers, in any place for operators."""
    kind = rng.choice(DRAWS)
    if kind.endswith("Like") or kind in ("Bernoulli", "Multinomial", "Dropout"):
        inputs = ["b0", "", "yes"] if kind == "Dropout" else ["w0" if kind == "Multinomial" else "b0"]
        node = helper.make_node(kind, inputs, ["drawn_too"])
    else:
        node = helper.make_node(kind, [], ["drawn_too"], shape=[1])
    inside = rng.choice(["graph", "branch", "function"])
    path.write_bytes(with_node(path.read_bytes(), node, inside))
    return True


def endless(rng: random.Random, path: Path) -> bool:
    """Add a long loop."""
    path.write_bytes(with_loop(path.read_bytes(), rng.choice([2, 10**9, 2**62])))
    return True


def elsewhere(rng: random.Random, path: Path) -> bool:
    """Refer to weights in another file, or in a missing part of the file."""
    model = ModelProto.FromString(path.read_bytes())
    if not any(tensor.data_location for tensor in model.graph.initializer):
        content, data = external(path.read_bytes())
        model = ModelProto.FromString(content)
        path.with_name("weights.bin").write_bytes(data)
    tensor = rng.choice(list(model.graph.initializer))
    entry = rng.choice(list(tensor.external_data))
    bad = {
        "location": ("", ".", "..", "/etc/passwd", "../weights.bin", "x/../weights.bin", "none.bin", "\x1b[2J",
                     "x" * 300, "a\nb", "pipe", "link", "*/_ORT_MEM_ADDR_/*"),
        "offset": ("-1", "x", str(2**70), str(10**8), "1e3", "nan", "9" * 5000),
        "length": ("-1", "x", str(2**70), str(10**8), "0", "9" * 5000),
    }  # fmt: skip
    path.with_name("link").symlink_to("/etc/passwd")
    replace_file(rng, path.with_name("pipe"), "fifo")
    entry.value = rng.choice(bad[entry.key])
    path.write_bytes(model.SerializeToString())
    return True


def sizes(rng: random.Random, path: Path) -> bool:
    """Replace the policy by one for another simulator, with or without stated sizes."""
    model = ModelProto.FromString(policy_bytes(weights(*rng.choice([(17, 6), (12, 3), (11, 4), (1, 1)]))))
    if rng.random() < 0.5:
        for item in (*model.graph.input, *model.graph.output):
            item.type.tensor_type.shape.dim[1].dim_param = "any"
    path.write_bytes(model.SerializeToString())
    return True


def names(rng: random.Random, path: Path) -> bool:
    """Change names, shapes and types of inputs and outputs, or the version."""
    model = ModelProto.FromString(path.read_bytes())
    item, kind = rng.choice([*model.graph.input, *model.graph.output]), rng.randrange(6)
    if kind == 0:
        item.name = rng.choice(NAMES)
    elif kind == 1:
        item.type.tensor_type.elem_type = rng.choice([0, TensorProto.DOUBLE, TensorProto.STRING, TensorProto.INT64, 99])
    elif kind == 2:
        item.type.tensor_type.shape.dim.add().dim_value = rng.choice([0, 1, -1, 2**40])
    elif kind == 3:
        model.opset_import[0].version = rng.choice([0, 1, 7, 13, 99, 2**62])
    elif kind == 4:
        # protobuf refuses to write text that is no UTF-8.
        path.write_bytes(path.read_bytes().replace(b"batch", b"b\xe1tch"))
        return False
    else:
        model.graph.node[-1].output[0] = rng.choice(NAMES)
    path.write_bytes(model.SerializeToString())
    return False


def large(rng: random.Random, path: Path) -> bool:
    """Add an operator whose result is larger than any memory."""
    model = ModelProto.FromString(path.read_bytes())
    shape = numpy_helper.from_array(np.array([rng.choice([2**33, 2**40, 2**62])]), "shape_of_large")
    model.graph.initializer.append(shape)
    # The sum is part of the action, so no optimiser removes it.
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape_of_large"], ["large"]))
    model.graph.node.append(helper.make_node("ReduceSum", ["large"], ["sum_of_large"], keepdims=0))
    last = next(node for node in model.graph.node if node.op_type == "Tanh")
    output, last.output[0] = last.output[0], "before_large"
    model.graph.node.append(helper.make_node("Add", ["before_large", "sum_of_large"], [output]))
    path.write_bytes(model.SerializeToString())
    return True


def special(rng: random.Random, path: Path) -> bool:
    """Replace the file by something else."""
    replace_file(rng, path)
    return True
