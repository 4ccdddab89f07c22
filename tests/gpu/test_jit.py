"""The kernels of whole decisions through Triton's JIT without a GPU: bound, specialised and compiled, but not launched.

The driver in the place of CUDA's says that there is a GPU with sm_90, and launches nothing.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import nodes  # noqa: E402
from problems import OBS_DIM, Problem, Size  # noqa: E402

from fastdwm import ITPOConfig  # noqa: E402
from fastdwm.itpo.episodes import AgentContext  # noqa: E402
from fastdwm.itpo.fused import FusedObjective  # noqa: E402
from fastdwm.itpo.graphs import CudaGraphEpisodes  # noqa: E402
from fastdwm.itpo.rules import make_rule  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="needs the compiler, not the interpreter"),
]
SIZE = Size(B=1, M=16, K=2, H=1, D=32)
BOUND = {"max_deviation": 0.05}


class Driver:
    """In the place of triton.backends.nvidia.driver.CudaDriver."""

    def __init__(self):
        properties = {"max_shared_mem": 232448, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: properties,
            # Module, function, registers, spills and the most threads of a program.
            load_binary=lambda name, kernel, shared, device: (0, 0, 0, 0, 1024),
        )
        self.launcher_cls = lambda source, metadata: self.launch

    def launch(self, x: int, y: int, z: int, stream: int, function: int, *args: object) -> None:
        assert 0 < x < 2**31 and 0 < y < 2**16 and 0 < z < 2**16
        self.launches += 1

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


DRIVER = Driver()
"""the only one of the process: what is compiled keeps the driver that it was compiled with"""


class Launcher(nodes.Recorder):
    """Launches by the JIT."""

    def launch(self, kernel, grid, *args, **kwargs):
        kernel[grid](*args, **kwargs)


def decide(size: Size, settings: dict) -> tuple[dict[str, int], int]:
    """Run the body of one decision; how often each kernel was compiled, and how many launches there were."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compilations, compile_one = Counter(), JITFunction._do_compile

    def counted(self, *args):
        compilations[self.__name__] += 1
        return compile_one(self, *args)

    driver.set_active(DRIVER)
    DRIVER.launches = 0
    problem, config = Problem(size), ITPOConfig(horizon=size.H, particles=size.M, **settings)
    with nodes.fake_gpu(Launcher()), torch.no_grad(), patch.object(JITFunction, "_do_compile", counted):
        objective = FusedObjective(problem.policy, problem.world, config)
        assert objective.models.sampler.precision == "fp16"
        parts = make_rule(config), objective, config, problem.world.dynamics.noise_steps
        with patch.object(CudaGraphEpisodes, "_capture", CudaGraphEpisodes._run):
            CudaGraphEpisodes(AgentContext(problem.policy, *parts, 0), size.B, OBS_DIM)
    return dict(compilations), DRIVER.launches


@pytest.fixture(scope="module")
def jit() -> Iterator[Callable]:
    """`decide` in a process of its own: its driver is for good, and what is compiled stays for the next call."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
        yield lambda *args: worker.submit(decide, *args).result(timeout=600)


@pytest.mark.parametrize("settings", [BOUND, {"optimiser": "sgd"}, {"optimiser": "adam"}], ids=["bound", "sgd", "adam"])
@pytest.mark.parametrize("termination", ["none", "soft", "mask"])
def test_the_kernels_of_a_decision_compile_once(jit, settings, termination):
    """Neither another decision, nor other numbers of episodes and particles, nor the other model compile anything."""
    settings = settings | {"termination": termination}
    _, launches = jit(SIZE, settings)
    assert launches > 15
    for size in (SIZE, replace(SIZE, B=3, M=17), replace(SIZE, B=33), replace(SIZE, K=1, world="meanflow")):
        assert jit(size, settings) == ({}, launches)


def test_the_first_decision_compiles_every_kernel_of_it():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
        compilations, launches = worker.submit(decide, replace(SIZE, M=400), BOUND).result(timeout=600)
    expected = {"normal_fwd_kernel", "sampler_fwd_kernel", "sampler_bwd_kernel", "terms_kernel", "bound_step_kernel"}
    expected |= {"policy_weight_bwd_kernel", "policy_sum_kernel", "pull_back_kernel", "commit_kernel"}
    assert expected <= compilations.keys() and len(compilations) <= launches
