"""Compile kernels for a GPU that is not there, and read what they cost from the machine code.

Triton's wheel brings the assembler and the disassembler, so registers, stack, shared memory and the presence of
tensor-core instructions can be checked on any machine. Triton itself does not fail when a kernel spills registers or
asks for more shared memory than the device has.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class AotCase:
    """One compilation, described without compiling; every kernel folder lists its own in `aot_cases`."""

    name: str
    """kernel and configuration, as it appears in the table"""
    kernel: Any
    """the @triton.jit function"""
    pointers: Mapping[str, str]
    """element type of every pointer argument, such as "fp32"; 16-byte aligned unless the kernel does not rely on it"""
    constexprs: Mapping[str, Any]
    """compile-time arguments; every argument in no mapping is an int32"""
    options: Mapping[str, Any]
    """num_warps, num_stages"""
    tensor_cores: bool
    """whether the products must run on tensor cores"""
    scalars: Mapping[str, str] = field(default_factory=dict)
    """type of every scalar argument that is no int32: "fp32" for a Python float"""


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


def compile_case(case: AotCase, capability: int) -> Resources:
    """Compile for compute capability `capability` (90 for sm_90) and read the result; seconds, no GPU."""
    code = compiled(case, capability)
    return _read(code.asm["cubin"], code.metadata.shared)


def compiled(case: AotCase, capability: int) -> Any:
    """Triton's compiled kernel, `asm` of which holds every stage by name: ttir, ptx, cubin."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {name: f"*{element}" for name, element in case.pointers.items()} | dict(case.scalars)
    kinds |= dict.fromkeys(case.constexprs, "constexpr")
    aligned = [p for p in case.kernel.params if p.name in case.pointers and not p.do_not_specialize_on_alignment]
    source = ASTSource(
        case.kernel,
        signature={name: kinds.get(name, "i32") for name in case.kernel.arg_names},
        constexprs=dict(case.constexprs),
        attrs={(p.num,): [["tt.divisibility", 16]] for p in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(case.options))


def _read(cubin: bytes, shared_bytes: int) -> Resources:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _output(knobs.nvidia.nvdisasm.path, "-c", file.name)
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", code, re.MULTILINE)
    return Resources(
        registers=used["REG"],
        stack_bytes=used["STACK"],
        spills=sum(opcode in ("LDL", "STL") for opcode in opcodes),
        shared_bytes=shared_bytes,
        tensor_core_instructions=sum(opcode in ("HMMA", "HGMMA") for opcode in opcodes),
    )


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(rows: list[tuple[str, int, Resources]]) -> str:
    """Markdown table of (case name, capability, resources)."""
    lines = [
        "| kernel | target | registers | stack, bytes | shared, bytes | tensor-core instructions |",
        "|" + "---|" * 6,
    ]
    for name, capability, used in rows:
        cells = (name, f"sm_{capability}", used.registers, used.stack_bytes, used.shared_bytes)
        lines.append("| " + " | ".join(map(str, (*cells, used.tensor_core_instructions))) + " |")
    return "\n".join(lines) + "\n"
