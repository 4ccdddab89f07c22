"""Compile kernels without a GPU, and read the resources that they use from the machine code.

Triton's wheel brings the assembler and the disassembler, so registers, stack, shared memory and the instructions
themselves can be checked on any machine. Triton itself does not fail when a kernel spills registers or asks for more
shared memory than the device has.
"""

from fastdwm_kernels.aot.compile import compile_case, compiled
from fastdwm_kernels.aot.machine_code import Layer, Resources
from fastdwm_kernels.aot.table import table

__all__ = ["Layer", "Resources", "compile_case", "compiled", "table"]
