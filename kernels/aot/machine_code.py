"""Counting in disassembled machine code: registers, spills, tensor-core instructions, and what a hidden layer costs."""

import re
from collections import Counter
from dataclasses import dataclass

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)((?:\.\w+)*)")
LABEL = re.compile(r"^(\.L\w+):")
JUMP = re.compile(r"BRA.*`\((\.L\w+)\)")


@dataclass(frozen=True)
class Layer:
    """One hidden layer in the loop over them."""

    instructions: int
    """that a warp executes"""
    shuffles: int
    """of these, exchanges of registers between threads"""


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses."""

    registers: int
    """per thread"""
    stack_bytes: int
    """per thread; above zero when registers spill"""
    spills: int
    """instructions that touch local memory"""
    shared_bytes: int
    tensor_core_instructions: int
    layer: Layer | None = None
    """of kernels that loop over hidden layers on tensor cores"""


def resources_of(usage: str, machine_code: str, shared_bytes: int, layer: Layer | None) -> Resources:
    """From the output of `cuobjdump -res-usage` and of `nvdisasm -c`."""
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    opcodes = [found[1] for line in machine_code.splitlines() if (found := INSTRUCTION.match(line))]
    return Resources(
        registers=used["REG"],
        stack_bytes=used["STACK"],
        spills=sum(opcode in ("LDL", "STL") for opcode in opcodes),
        shared_bytes=shared_bytes,
        tensor_core_instructions=sum(opcode in ("HMMA", "HGMMA") for opcode in opcodes),
        layer=layer,
    )


def layer_of(machine_code: str, products: int) -> Layer | None:
    """A hidden layer of `products` multiplications by each warp; None without a loop over tensor-core instructions.

    The loop that counts is the longest of the innermost loops with tensor-core instructions. What it does each time
    round is a tile, or a few; as often as the layer's products take. What a jump may pass over is done once, when a
    layer ends; and what a second jump in there may pass over belongs to a whole step and is left out.
    """
    lines = machine_code.splitlines()
    starts = {found[1]: i for i, line in enumerate(lines) if (found := LABEL.match(line))}
    jumps = [(i, starts[found[1]]) for i, line in enumerate(lines) if (found := JUMP.search(line))]
    loops = [(first, last) for last, first in jumps if first < last and _count(lines[first:last])["products"]]
    innermost = [a for a in loops if not any(a[0] <= b[0] and b[1] <= a[1] and a != b for b in loops)]
    if not innermost:
        return None
    first, last = max(innermost, key=lambda loop: loop[1] - loop[0])
    passed = [(i, target) for i, target in jumps if first <= i < target <= last + 1]
    depth = [sum(i < at < target for i, target in passed) for at in range(first, last + 1)]
    tile, end = (_count([lines[first + k] for k, d in enumerate(depth) if d == level]) for level in (0, 1))
    rounds = products / tile["products"]
    return Layer(*(round(rounds * tile[name] + end[name]) for name in ("instructions", "shuffles")))


def _count(lines: list[str]) -> Counter:
    """Instructions, shuffles, and the products that one warp has a share in."""
    count = Counter()
    for found in filter(None, map(INSTRUCTION.match, lines)):
        count["instructions"] += 1
        count["shuffles"] += found[1] == "SHFL"
        count["products"] += _products(found[1], found[2])
    return count


def _products(opcode: str, modifiers: str) -> int:
    """Multiplications by one warp: 64xNxK by four warps together, or 16x8xK, the K after 168, by one."""
    if opcode == "HGMMA" and (shape := re.match(r"\.(\d+)x(\d+)x(\d+)", modifiers)):
        rows, columns, depth = map(int, shape.groups())
        return rows * columns * depth // 4
    if opcode == "HMMA" and (shape := re.match(r"\.168(\d+)", modifiers)):
        return 16 * 8 * int(shape[1])
    return 0
