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

    The layer is told by its products: it is the smallest loop that holds as many, or that does with the loop over
    tiles in it going round as often as that takes.
    """
    cost, seen = Counter(), 0
    for loop in _loops(machine_code):
        own = Counter(loop)
        if seen:
            # What the loop inside it costs, as often as it must go round, for once.
            inside = own["products"] - seen
            rounds = max(1, (products - inside) // seen)
            own.update({name: (rounds - 1) * n for name, n in cost.items()})
        cost, seen = own, own["products"]
        if seen >= products:
            break
    if not seen:
        return None
    return Layer(*(round(cost[name] * products / seen) for name in ("instructions", "shuffles")))


def _loops(machine_code: str) -> list[Counter]:
    """Counts of the loops around the innermost loop with most products, from the inside out."""
    lines = machine_code.splitlines()
    starts = {found[1]: i for i, line in enumerate(lines) if (found := LABEL.match(line))}
    jumps = ((starts.get(found[1], i), i) for i, line in enumerate(lines) if (found := JUMP.search(line)))
    spans = sorted((span for span in jumps if span[0] < span[1]), key=lambda span: span[1] - span[0])
    counts = {span: _count(lines[span[0] : span[1] + 1]) for span in spans}
    spans = [span for span in spans if counts[span]["products"]]
    innermost = [s for s in spans if not any(s[0] <= o[0] and o[1] <= s[1] and o != s for o in spans)]
    if not innermost:
        return []
    first = max(innermost, key=lambda span: counts[span]["products"])
    return [counts[span] for span in spans if span[0] <= first[0] and first[1] <= span[1]]


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
