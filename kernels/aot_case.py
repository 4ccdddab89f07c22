"""Description of one compilation of a Triton kernel, for checks ahead of time without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def operand_type(precision: str) -> str:
    """Triton's name of the type of a product's operands."""
    return "fp32" if precision == "ieee" else precision


@dataclass(frozen=True)
class AotCase:
    """One compilation; the `aot_cases` of a kernel's file list those of its kernels."""

    name: str
    """kernel and configuration, as it appears in the table"""
    kernel: Any
    """the @triton.jit function"""
    pointers: Mapping[str, str]
    """element type, such as "fp32", of every pointer argument that is not None; aligned to 16 bytes unless the kernel
    declares `do_not_specialize_on_alignment`"""
    constexprs: Mapping[str, Any]
    """compile-time arguments; an argument in none of the mappings is an int32"""
    options: Mapping[str, Any]
    """compiler options: num_warps, and num_stages and maxnreg where they are set"""
    tensor_cores: bool
    """whether the machine code must contain tensor-core instructions"""
    scalars: Mapping[str, str] = field(default_factory=dict)
    """type of every scalar argument that is not an int32: "fp32" for a Python float"""
    layer_products: int = 0
    """multiplications of one hidden layer in one program, if the kernel loops over hidden layers; else 0"""
