"""Read pickles of unknown origin without unpickling: the result is plain data, and nothing is imported or called.

The stack machine of `pickle`, of which only the operations exist that build lists, dicts, texts, bytes and numbers. An
object becomes an `Instance`, which holds the name of its class and its state.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastdwm.checks import require
from fastdwm.errors import one_line_errors

MAX_OPERATIONS = 500_000
VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""operations that push their argument"""
CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list},
}
MARK = object()


@dataclass(eq=False)
class Instance:
    """An object that the pickle describes: the name of its class or function, arguments, and state."""

    name: str
    args: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """A value of the state; none if there is none."""
        return self.state.get(key) if isinstance(self.state, dict) else None


def read_pickle(content: bytes, where: str) -> Any:
    """The value that a pickle of protocol 2 or later describes; raises InputError for anything else."""
    machine = _Machine()
    with one_line_errors(where, "a pickle of plain values"):
        for count, (opcode, value, _) in enumerate(pickletools.genops(content)):
            require(count < MAX_OPERATIONS, f"{where}: expected at most {MAX_OPERATIONS} operations")
            machine.run(opcode.name, value)
        return machine.stack.pop()


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, value: Any) -> None:
        """Run one operation; raises an error of Python for one that does not fit."""
        if name in VALUES:
            self.stack.append(value)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name == "MARK":
            self.stack.append(MARK)
        elif name not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise ValueError(f"the operation {name}")
            method(value)

    def pop_to_mark(self) -> list[Any]:
        """Take the values above the last mark from the stack."""
        start = max(i for i, value in enumerate(self.stack) if value is MARK)
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    do_long_binput = do_binput

    def do_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_long_binget = do_binget

    def do_pop(self, _: None) -> None:
        self.stack.pop()

    def do_tuple(self, _: None) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_tuple1(self, _: None) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def do_tuple2(self, _: None) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def do_tuple3(self, _: None) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def do_append(self, _: None) -> None:
        item = self.stack.pop()
        self.extend([item])

    def do_appends(self, _: None) -> None:
        items = self.pop_to_mark()
        self.extend(items)

    do_additems = do_appends

    def extend(self, items: list[Any]) -> None:
        """Append to the list, or the object like a list, on the stack."""
        target = self.stack[-1]
        (target.items if isinstance(target, Instance) else target).extend(items)

    def do_setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def do_setitems(self, _: None) -> None:
        items = self.pop_to_mark()
        self.update(items)

    def update(self, items: list[Any]) -> None:
        """Set keys and values, which alternate, of the dict or the object like a dict on the stack."""
        target = self.stack[-1]
        if isinstance(target, Instance):
            target.items.extend(items)
        else:
            target.update(zip(items[::2], items[1::2], strict=True))

    def do_global(self, name: str) -> None:
        self.stack.append(Instance(name.replace(" ", ".")))

    def do_stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Instance(f"{module}.{name}"))

    def do_reduce(self, _: None) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Instance(function.name, args))

    do_newobj = do_reduce

    def do_newobj_ex(self, _: None) -> None:
        self.stack.pop()
        self.do_reduce(_)

    def do_build(self, _: None) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state


def as_array(value: Any, where: str) -> np.ndarray:
    """The numbers of an array, or of a number, in a pickle, as float64; raises InputError for anything else."""
    with one_line_errors(where, "an array of numbers"):
        if isinstance(value, int | float):
            return np.array(float(value))
        name = value.name.rpartition(".")[2]
        if name == "_reconstruct":
            _, shape, kind, fortran, data = value.state
            return _array(data, kind, shape, "F" if fortran else "C")
        if name == "_frombuffer":
            data, kind, shape, order = value.args
            return _array(data, kind, shape, order)
        kind, data = value.args
        if name != "scalar":
            raise ValueError(f"an object of {value.name:.80}")
        return _array(data, kind, (), "C")


def _array(data: Any, kind: Instance, shape: tuple, order: str) -> np.ndarray:
    """An array from its bytes.   kind: its dtype, of floats or integers."""
    code = kind.args[0]
    if code[:1] not in ("f", "i", "u") or not code[1:].isdecimal():
        raise ValueError(f"the dtype {code!r:.40}")
    little = not (isinstance(kind.state, tuple) and kind.state[1] == ">")
    # Protocol 2 stores bytes as text, whose characters are the bytes.
    data = data.args[0].encode("latin1") if isinstance(data, Instance) else data
    return np.frombuffer(bytes(data), f"{'<' if little else '>'}{code}").reshape(shape, order=order).astype(np.float64)
