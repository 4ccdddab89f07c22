"""Compile one case, and read its resources from the machine code."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from fastdwm_kernels.aot.machine_code import Resources, layer_of, resources_of
from fastdwm_kernels.aot_case import AotCase


def compile_case(case: AotCase, capability: int) -> Resources:
    """Compile for a compute capability (90 for sm_90), which takes seconds and no GPU, and read the resources."""
    code = compiled(case, capability)
    usage, machine_code = disassembled(code.asm["cubin"])
    layer = layer_of(machine_code, case.layer_products // case.options["num_warps"]) if case.layer_products else None
    return resources_of(usage, machine_code, code.metadata.shared, layer)


def compiled(case: AotCase, capability: int) -> Any:
    """Triton's compiled kernel, whose `asm` holds every stage by name: ttir, ptx, cubin."""
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


def disassembled(cubin: bytes) -> tuple[str, str]:
    """Outputs of `cuobjdump -res-usage` and of `nvdisasm -c`."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        return usage, _output(knobs.nvidia.nvdisasm.path, "-c", file.name)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
