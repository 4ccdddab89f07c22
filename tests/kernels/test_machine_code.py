"""Resources counted in hand-written machine code; the table and its command."""

import subprocess
import sys

import pytest

from fastdwm_kernels.aot.machine_code import Layer, layer_of, resources_of
from fastdwm_kernels.aot.table import table

USAGE = " Function kernel:\n  REG:40 STACK:8 SHARED:0 LOCAL:0\n"
HGMMA = "HGMMA.64x16x16.F32.BF16 R32, gdesc[UR16], RZ, !UPT"
"""4096 products per warp, a quarter of 64 x 16 x 16"""


def code(*lines: str) -> str:
    """Instructions as nvdisasm prints them; lines that end in a colon are labels."""
    return "\n".join(line if line.endswith(":") else f"        /*0010*/                   {line} ;" for line in lines)


def test_spills_and_tensor_core_instructions_are_counted():
    lines = code("STL [R1], R2", "@P0 LDL R2, [R1]", "@!UP0 HMMA.16816.F32.BF16 R4, R8, R2, R4", HGMMA, "EXIT")
    used = resources_of(USAGE, lines, 512, None)
    assert (used.registers, used.stack_bytes, used.shared_bytes) == (40, 8, 512)
    assert (used.spills, used.tensor_core_instructions) == (2, 2)


def test_a_layer_is_a_loop_with_its_products():
    steps = ("SHFL.IDX PT, R1", ".L_1:", HGMMA, HGMMA, "FADD R1, R1", "@P0 BRA `(.L_1)", "FADD R1, R1")
    lines = code(".L_0:", *steps, "@P1 BRA `(.L_0)")
    assert layer_of(lines, 2 * 4096) == Layer(instructions=4, shuffles=0)


def test_a_loop_of_two_layers_counts_half():
    lines = code(".L_0:", HGMMA, "SHFL.IDX PT, R1", "SHFL.IDX PT, R1", HGMMA, "@P0 BRA `(.L_0)")
    assert layer_of(lines, 4096) == Layer(instructions=2, shuffles=1)


def test_the_end_of_a_layer_counts_once_and_the_end_of_a_step_not_at_all():
    step = ("@P2 BRA `(.L_1)", "SHFL.IDX PT, R1", HGMMA, ".L_1:")
    layer = ("@P1 BRA `(.L_2)", "FADD R1, R1", "SHFL.IDX PT, R1", *step, ".L_2:")
    lines = code(".L_0:", HGMMA, "SHFL.IDX PT, R1", *layer, "FADD R1, R1", "@P0 BRA `(.L_0)")
    assert layer_of(lines, 4 * 4096) == Layer(instructions=4 * 5 + 3, shuffles=4 + 1)


def test_of_several_loops_the_longest_counts():
    lines = code(".L_0:", HGMMA, "@P0 BRA `(.L_0)", ".L_1:", HGMMA, "FADD R1, R1", "@P0 BRA `(.L_1)")
    assert layer_of(lines, 4096) == Layer(instructions=3, shuffles=0)


def test_the_instructions_of_older_tensor_cores_count_as_well():
    lines = code(".L_0:", "HMMA.16816.F32.BF16 R4, R8, R2, R4", "HMMA.1688.F32.TF32 R4, R8, R2, R4", "BRA `(.L_0)")
    assert layer_of(lines, 16 * 8 * 24) == Layer(instructions=3, shuffles=0)


@pytest.mark.parametrize("lines", [(".L_0:", "FFMA R1, R1", "@P0 BRA `(.L_0)"), (HGMMA, "EXIT")], ids=["none", "once"])
def test_without_a_loop_of_products_there_is_no_layer(lines):
    assert layer_of(code(*lines), 4096) is None


def test_the_table_has_a_cell_for_every_figure():
    rows = [("a", 90, resources_of(USAGE, code(HGMMA), 512, layer)) for layer in (None, Layer(600, 2))]
    head, rule, *lines = table(rows).splitlines()
    assert {line.count("|") for line in (head, rule, *lines)} == {10}
    assert lines == ["| a | sm_90 | 40 | 8 | 0 | 512 | 1 |  |  |", "| a | sm_90 | 40 | 8 | 0 | 512 | 1 | 600 | 2 |"]


def test_the_command_lists_what_it_would_compile():
    for package in ("triton", "tyro"):
        pytest.importorskip(package)
    argv = [sys.executable, "-m", "fastdwm_kernels.aot", "--only"]
    result = subprocess.run([*argv, "noise"], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines() == ["1/2 normal_fwd_kernel sm_90", "2/2 normal_fwd_kernel sm_80"]
    wrong = subprocess.run([*argv, "pears"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: only: expected some of sampler, ") and "pears" in wrong.stderr
