"""How a kernel's file describes the compilations of its kernel that are checked ahead of time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def operand_type(precision: str) -> str:
    """Element type of the operands of the products, as a case names it."""
    return "fp32" if precision == "ieee" else precision


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
    layer_products: int = 0
    """multiplications of one hidden layer in one program, of kernels that loop over such layers; else 0"""
