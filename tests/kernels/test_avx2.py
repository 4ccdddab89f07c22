"""The CPU kernels as compiled without AVX-512, with vectors of eight lanes and other tiles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

from llvmlite.binding import get_host_cpu_features  # noqa: E402

HERE = Path(__file__).parent
HASWELL = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+popcnt,+sse4.1,+sse4.2,+ssse3,+sse3",
}

# Check that the kernels have eight lanes, then run the tests of products, sampler, policy and rollout.
RUN = """
import sys, pytest
from fastdwm_kernels import cpu
from fastdwm_kernels.gemm import LANES, TALL
assert (LANES, TALL) == (8, 4), (LANES, TALL)
code = "".join(cpu.entry(cpu.transpose).inspect_asm().values())
assert "ymm" in code and "zmm" not in code
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""
ESSENTIAL = (
    "multiply or vjp_of_a_layer or exact_to_rounding or keep_nan or transposed or short_rollouts"
    " or (sampler_error and one-thread and width)"
)


@pytest.mark.slow
@pytest.mark.skipif(not get_host_cpu_features().get("avx2"), reason="no x86-64 with AVX2")
def test_the_kernels_of_eight_lanes_pass_the_essential_tests(tmp_path):
    # A cache of its own, so that no kernel of this machine's processor is loaded.
    env = os.environ | HASWELL | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    files = [str(HERE / name) for name in ("test_cpu_functions.py", "test_cpu.py")]
    command = [sys.executable, "-c", RUN, *files, "-k", ESSENTIAL]
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout
