"""Convert a function of tensors to an ONNX graph: trace it to ATen operators, and translate each of them.

The function may take gradients by autograd: the trace holds forward and backward pass alike. Shapes are those of the
example, so loops are unrolled; what depends on no input is computed once, here. Floating-point numbers become float32.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fastdwm.errors import InputError

OPSET, IR_VERSION = 17, 8
"""versions of ONNX of 2021, which every current runtime reads"""

aten = torch.ops.aten

ELEMENTWISE = {
    aten.mul: "Mul",
    aten.div: "Div",
    aten.tanh: "Tanh",
    aten.sigmoid: "Sigmoid",
    aten.relu: "Relu",
    aten.sqrt: "Sqrt",
    aten.reciprocal: "Reciprocal",
    aten.neg: "Neg",
    aten.abs: "Abs",
    aten.exp: "Exp",
    aten.log: "Log",
    aten.pow: "Pow",
    aten.maximum: "Max",
    aten.minimum: "Min",
}
COMPARISONS = {aten.lt: "Less", aten.le: "LessOrEqual", aten.gt: "Greater", aten.ge: "GreaterOrEqual"}
COMPARISONS |= {aten.eq: "Equal", aten.ne: "Equal"}
LOGIC = {aten.logical_and: "And", aten.bitwise_and: "And", aten.logical_or: "Or", aten.bitwise_or: "Or"}
REDUCTIONS = {aten.sum: "ReduceSum", aten.mean: "ReduceMean", aten.amin: "ReduceMin", aten.amax: "ReduceMax"}
SAME = (aten.alias, aten.clone, aten.detach, aten._to_copy, aten.lift_fresh_copy, aten.lift_fresh)
PLACEMENT = {"dtype", "layout", "device", "pin_memory", "memory_format"}
"""arguments of operators that say what the example of the result shows"""
RESHAPES = (aten.view, aten.reshape, aten._unsafe_view)


def trace(function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]) -> fx.GraphModule:
    """The ATen operators of a function of tensors without changes in place; it may call `torch.autograd.grad`."""
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    module = make_fx(function, decomposition_table=core_aten_decompositions())(*examples)
    module.graph.eliminate_dead_code()
    return module


def to_onnx(
    function: Callable[..., tuple[Tensor, ...]],
    examples: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    rows: Mapping[str, int] | None = None,
) -> bytes:
    """The ONNX file of a function of tensors.

    examples: an argument of each name, which sets its shape.   outputs: a name for each tensor of the function's tuple.
    rows: by name of an input or output, the axis whose length is free; the function must treat its rows one by one.
    Raises InputError for an operator that has no translation.
    """
    module, graph = trace(function, list(examples.values())), Translation()
    names = iter(examples)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            graph.values[node] = next(names)
        elif node.op == "get_attr":
            graph.values[node] = getattr(module, node.target)
        elif node.op == "call_function":
            graph.values[node] = graph.translate(node)
        else:
            results = node.args[0]
    return graph.model(examples, dict(zip(outputs, results, strict=True)), rows or {})


@dataclass
class Translation:
    """The nodes of an ONNX graph so far.

    values: for each node of the trace the name of its tensor, a tuple of names, or a tensor if it is constant.
    """

    values: dict[fx.Node, Any] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    constants: dict[tuple, tuple[str, Tensor]] = field(default_factory=dict)
    made: dict[tuple, str] = field(default_factory=dict)
    reshaped: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """source of each reshape, and the source's shape"""

    def translate(self, node: fx.Node) -> Any:
        """The value of an operator's node: computed if all its arguments are constant, else added to the graph."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda other: self.values[other])
        tensors = [self.values[other] for other in node.all_input_nodes]
        if all(isinstance(value, Tensor) for value in tensors):
            return node.target(*args, **kwargs)
        if not isinstance(node.target, torch._ops.OpOverload):
            return node.target(*args)  # operator.getitem
        kind, like = node.target.overloadpacket, node.meta["val"]
        kinds = [other.meta["val"] for other in node.all_input_nodes]
        if kind in SAME and like.dtype == kinds[0].dtype:
            return args[0]
        if kind is aten.mul and like.dtype == torch.bool:
            return self.add("And", *args)
        if kind in (*ELEMENTWISE, aten.add, aten.sub):
            return self.arithmetic(kind, [self.cast(x, y, like) for x, y in zip(args, node.args, strict=False)], kwargs)
        if kind in COMPARISONS:
            sides = [self.cast(x, y, kinds[0]) for x, y in zip(args, node.args, strict=True)]
            result = self.add(COMPARISONS[kind], *sides)
            return self.add("Not", result) if kind is aten.ne else result
        if kind in LOGIC or kind in (aten.logical_not, aten.bitwise_not):
            return self.add(LOGIC.get(kind, "Not"), *args)
        if kind in REDUCTIONS:
            return self.reduce(REDUCTIONS[kind], self.cast(args[0], node.args[0], like), kinds[0], *args[1:3])
        if kind is aten.squeeze and len(args) > 1:
            dims, sizes = [args[1]] if isinstance(args[1], int) else args[1], kinds[0].shape
            return self.add("Squeeze", args[0], [dim % len(sizes) for dim in dims if sizes[dim] == 1])
        method = getattr(self, f"op_{kind.__name__.removeprefix('_')}", None)
        if kind in RESHAPES:
            return self.reshape(args[0], kinds[0].shape, like.shape)
        if method is None or kwargs.keys() - PLACEMENT:
            raise InputError(f"to: {node.target} has no translation to ONNX")
        return method(like, *args)

    def reshape(self, x: str, before: Sequence[int], after: Sequence[int]) -> str:
        """Reshape x, unless its shape is right; a reshape of a reshape takes the place of both."""
        source, shape = self.reshaped.get(x, (x, tuple(before)))
        if shape == tuple(after):
            return source
        result = self.add("Reshape", source, list(after))
        self.reshaped[result] = source, shape
        return result

    def arithmetic(self, kind: Any, args: list, kwargs: dict) -> str:
        if kind not in (aten.add, aten.sub):
            return self.add(ELEMENTWISE[kind], *args)
        alpha = kwargs.get("alpha", 1)
        right = args[1] if alpha == 1 else self.add("Mul", args[1], float(alpha))
        return self.add("Add" if kind is aten.add else "Sub", args[0], right)

    def reduce(self, op: str, x: Any, like: Tensor, dims: Any = None, keep: bool = False) -> str:
        """Reduce over `dims`, all of them if there are none."""
        dims = list(range(like.dim())) if dims is None or dims == [] else dims
        axes = [dim % like.dim() for dim in ([dims] if isinstance(dims, int) else dims)]
        if op == "ReduceSum":
            return self.add(op, x, axes, keepdims=int(keep))
        return self.add(op, x, axes=axes, keepdims=int(keep))

    def cast(self, value: Any, of: Any, like: Tensor) -> Any:
        """The value in the type of `like`, as torch promotes it.   of: its node, or a plain number."""
        if not isinstance(of, fx.Node):
            return torch.tensor(value, dtype=like.dtype)
        same = of.meta["val"].dtype.is_floating_point == like.dtype.is_floating_point
        if isinstance(value, Tensor):
            return value.to(like.dtype)
        return value if same and of.meta["val"].dtype != torch.bool else self.add("Cast", value, to=onnx_type(like))

    # One method for each remaining operator: op_NAME(example of the result, *arguments).

    def op_to_copy(self, like: Tensor, x: Any) -> str:
        return self.add("Cast", x, to=onnx_type(like))

    def op_mm(self, like: Tensor, x: Any, y: Any) -> str:
        return self.add("MatMul", x, y)

    op_bmm = op_mm

    def op_addmm(self, like: Tensor, bias: Any, x: Any, y: Any) -> str:
        return self.add("Gemm", x, y, bias)

    def op_baddbmm(self, like: Tensor, bias: Any, x: Any, y: Any) -> str:
        return self.add("Add", self.add("MatMul", x, y), bias)

    def op_permute(self, like: Tensor, x: Any, dims: Sequence[int]) -> str:
        return self.add("Transpose", x, perm=[dim % like.dim() for dim in dims])

    def op_unsqueeze(self, like: Tensor, x: Any, dim: int) -> str:
        return self.add("Unsqueeze", x, [dim % like.dim()])

    def op_expand(self, like: Tensor, x: Any, *_: Any) -> str:
        return self.add("Expand", x, list(like.shape))

    def op_select(self, like: Tensor, x: Any, dim: int, index: int) -> str:
        return self.add("Gather", x, torch.tensor(index), axis=dim)

    def op_slice(
        self, like: Tensor, x: Any, dim: int = 0, start: int | None = 0, end: int | None = None, step: int = 1
    ):
        last = torch.iinfo(torch.int64).max if end is None else end
        return self.add("Slice", x, [start or 0], [last], [dim], [step])

    def op_slice_scatter(self, like: Tensor, x: Any, source: Any, dim: int = 0, start: Any = 0, end: Any = None) -> str:
        start, size = start or 0, like.shape[dim]
        end = size if end is None else min(end, size)
        before = [self.op_slice(like, x, dim, 0, start)] if start else []
        after = [self.op_slice(like, x, dim, end)] if end < size else []
        return self.op_cat(like, [*before, source, *after], dim)

    def op_cat(self, like: Tensor, parts: Sequence[Any], dim: int = 0) -> str:
        return self.add("Concat", *parts, axis=dim % like.dim())

    def op_where(self, like: Tensor, mask: Any, x: Any, y: Any) -> str:
        return self.add("Where", mask, x, y)

    def op_full_like(self, like: Tensor, x: Any, value: float) -> Tensor:
        return torch.full(like.shape, value, dtype=like.dtype)

    def op_clamp(self, like: Tensor, x: Any, low: float, high: float) -> str:
        return self.add("Clip", x, float(low), float(high))

    op_hardtanh = op_clamp

    def op_native_layer_norm(
        self, like: Any, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float
    ) -> tuple:
        axes = list(range(-len(shape), 0))
        mean = self.add("ReduceMean", x, axes=axes, keepdims=1)
        centred = self.add("Sub", x, mean)
        variance = self.add("ReduceMean", self.add("Mul", centred, centred), axes=axes, keepdims=1)
        scale = self.add("Reciprocal", self.add("Sqrt", self.add("Add", variance, float(eps))))
        y = self.add("Mul", centred, scale)
        y = y if weight is None else self.add("Mul", y, weight)
        return (y if bias is None else self.add("Add", y, bias)), mean, scale

    def add(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node, unless there is an equal one; the name of its result.

        inputs: names, tensors, numbers (float32) or lists of integers (int64).
        """
        from onnx import helper

        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        key = (op, *names, *((name, str(value)) for name, value in attributes.items()))
        if key not in self.made:
            self.made[key] = f"v{len(self.nodes)}"
            self.nodes.append(helper.make_node(op, names, [self.made[key]], **attributes))
        return self.made[key]

    def constant(self, value: Any) -> str:
        """The name of a constant; equal ones are stored once."""
        value = torch.tensor(value) if not isinstance(value, Tensor) else value.detach()
        value = (value.float() if value.is_floating_point() else value).contiguous()
        key = value.dtype, value.shape, value.numpy().tobytes()
        return self.constants.setdefault(key, (f"c{len(self.constants)}", value))[0]

    def used(self, results: Iterable[str]) -> list[Any]:
        """The nodes that the results need, in order."""
        needed, kept = set(results), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        return kept[::-1]

    def model(
        self,
        examples: Mapping[str, Tensor],
        results: Mapping[str, fx.Node],
        rows: Mapping[str, int],
    ) -> bytes:
        """The file with these inputs and outputs, checked."""
        import onnx
        from onnx import helper, numpy_helper

        def describe(name: str, value: Tensor) -> Any:
            shape = ["N" if rows.get(name) == axis else size for axis, size in enumerate(value.shape)]
            return helper.make_tensor_value_info(name, onnx_type(value), shape)

        for name, node in results.items():
            value = self.values[node]
            source = value if isinstance(value, str) else self.constant(value)
            self.nodes.append(helper.make_node("Identity", [source], [name]))
        graph = helper.make_graph(
            self.used(results),
            "fastdwm",
            [describe(name, value) for name, value in examples.items()],
            [describe(name, node.meta["val"]) for name, node in results.items()],
            [numpy_helper.from_array(value.numpy(), name) for name, value in self.constants.values()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="fastdwm")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()


def onnx_type(value: Tensor) -> int:
    """ONNX's number for the type of a tensor."""
    from onnx import TensorProto

    if value.dtype == torch.bool:
        return TensorProto.BOOL
    return TensorProto.FLOAT if value.is_floating_point() else TensorProto.INT64
