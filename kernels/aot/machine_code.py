"""Resources counted in disassembled machine code: registers, spills, tensor-core instructions, cost of a layer."""

import re
from collections import Counter
from dataclasses import dataclass

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)((?:\.\w+)*)")
LABEL = re.compile(r"^(\.L\w+):")
JUMP = re.compile(r"BRA.*`\((\.L\w+)\)")


@dataclass(frozen=True)
class Layer:
    """Cost of one hidden layer of a kernel that loops over hidden layers."""

    instructions: int
    """instructions that a warp executes"""
    shuffles: int
    """those among them that exchange registers between threads"""


@dataclass(frozen=True)
class Resources:
    """Resources of one compiled kernel."""

    registers: int
    """per thread"""
    stack_bytes: int
    """per thread; more than zero if registers spill"""
    spills: int
    """instructions that touch local memory"""
    shared_bytes: int
    tensor_core_instructions: int
    layer: Layer | None = None
    """None unless the kernel loops over hidden layers on tensor cores"""


def resources_of(usage: str, machine_code: str, shared_bytes: int, layer: Layer | None) -> Resources:
    """Resources from the outputs of `cuobjdump -res-usage` and of `nvdisasm -c`."""
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    opcodes = [match[1] for line in machine_code.splitlines() if (match := INSTRUCTION.match(line))]
    return Resources(
        registers=used["REG"],
        stack_bytes=used["STACK"],
        spills=sum(opcode in ("LDL", "STL") for opcode in opcodes),
        shared_bytes=shared_bytes,
        tensor_core_instructions=sum(opcode in ("HMMA", "HGMMA") for opcode in opcodes),
        layer=layer,
    )


def layer_of(machine_code: str, products: int) -> Layer | None:
    """Cost of a hidden layer with `products` multiplications per warp; None without a loop of tensor-core instructions.

    The function takes the longest innermost loop with tensor-core instructions. Its unconditional part multiplies one
    tile or a few, and repeats until the layer's products are done. A part that one jump can skip ends a layer, so it
    counts once; a part within it that a second jump can skip ends a denoising step, so it does not count.
    """
    lines = machine_code.splitlines()
    starts = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    jumps = [(i, starts[match[1]]) for i, line in enumerate(lines) if (match := JUMP.search(line))]
    loops = [(first, last) for last, first in jumps if first < last and _count(lines[first:last])["products"]]
    innermost = [a for a in loops if not any(a[0] <= b[0] and b[1] <= a[1] and a != b for b in loops)]
    if not innermost:
        return None
    first, last = max(innermost, key=lambda loop: loop[1] - loop[0])
    skips = [(i, target) for i, target in jumps if first <= i < target <= last + 1]
    depth = [sum(i < at < target for i, target in skips) for at in range(first, last + 1)]
    tile, end = (_count([lines[first + k] for k, d in enumerate(depth) if d == level]) for level in (0, 1))
    rounds = products / tile["products"]
    return Layer(*(round(rounds * tile[name] + end[name]) for name in ("instructions", "shuffles")))


def _count(lines: list[str]) -> Counter:
    """Instructions, shuffles and products (multiplications) of one warp."""
    count = Counter()
    for opcode, modifiers in (match.groups() for match in map(INSTRUCTION.match, lines) if match):
        count["instructions"] += 1
        count["shuffles"] += opcode == "SHFL"
        count["products"] += _products(opcode, modifiers)
    return count


def _products(opcode: str, modifiers: str) -> int:
    """Multiplications of one instruction by one warp: HGMMA is 64xNxK by four warps, HMMA.168K is 16x8xK by one."""
    if opcode == "HGMMA" and (shape := re.match(r"\.(\d+)x(\d+)x(\d+)", modifiers)):
        rows, columns, depth = map(int, shape.groups())
        return rows * columns * depth // 4
    if opcode == "HMMA" and (shape := re.match(r"\.168(\d+)", modifiers)):
        return 16 * 8 * int(shape[1])
    return 0
