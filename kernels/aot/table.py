"""Resources of compiled kernels as a Markdown table."""

from fastdwm_kernels.aot.machine_code import Resources

HEAD = ("kernel", "target", "registers", "stack, bytes", "spills", "shared, bytes", "tensor-core instructions")
LAYER = ("instructions per warp and hidden layer", "shuffles of these")


def table(rows: list[tuple[str, int, Resources]]) -> str:
    """Markdown table of (case name, capability, resources)."""
    lines = ["| " + " | ".join(HEAD + LAYER) + " |", "|" + "---|" * len(HEAD + LAYER)]
    for name, capability, used in rows:
        cells = (name, f"sm_{capability}", used.registers, used.stack_bytes, used.spills, used.shared_bytes)
        layer = (used.layer.instructions, used.layer.shuffles) if used.layer else ("", "")
        lines.append("| " + " | ".join(map(str, (*cells, used.tensor_core_instructions, *layer))) + " |")
    return "\n".join(lines) + "\n"
