"""python bench/nodes.py: count the nodes of a captured decision without a GPU, as tables in Markdown.

The function that `itpo/graphs.py` captures runs on meta tensors that claim to be on a GPU. They have shapes but no
numbers: torch's operators compute nothing, reading a number back fails, and the project's kernels are recorded instead
of launched. Views and allocations cost no node. One of torch's operators may launch several kernels (a long reduction,
say), so the count is a lower bound.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import copy
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pkgutil import walk_packages
from typing import Any
from unittest.mock import patch

import torch
from problems import OBS_DIM, Problem, Size
from torch.utils._python_dispatch import TorchDispatchMode

import fastdwm_kernels
from fastdwm import ITPOConfig
from fastdwm.itpo.episodes import AgentContext
from fastdwm.itpo.graphs import CudaGraphEpisodes
from fastdwm.itpo.rules import make_rule
from fastdwm.tables import markdown_table
from fastdwm_kernels import launch

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
"""operators that launch nothing, besides views"""
RULES = {"bound": {"max_deviation": 0.05}, "sgd": {"optimiser": "sgd"}}
SIZES = ((1, 64), (1, 1), (4, 17), (33, 16))
"""episodes and particles"""


class Recorder(TorchDispatchMode):
    """Record every operator that launches something, and every launch of a kernel."""

    def __init__(self):
        super().__init__()
        self.nodes: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in FREE:
            self.nodes.append(name)
        return func(*args, **(kwargs or {}))

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        """Record the kernel's name instead of `launch.run`."""
        self.nodes.append(kernel.__name__)


@contextmanager
def fake_gpu(recorder: Recorder) -> Iterator[None]:
    """Let tensors claim to be on a GPU that does not exist, and record launches."""
    names = [module.name for module in walk_packages(fastdwm_kernels.__path__, "fastdwm_kernels.")]
    modules = [import_module(name) for name in names if name.endswith("kernel") or name.endswith("triton_ops")]
    launchers = [module for module in modules if getattr(module, "run", None) is launch.run]
    with ExitStack() as stack:
        for module in launchers:
            stack.enter_context(patch.object(module, "run", recorder.launch))
        stack.enter_context(patch.object(torch.Tensor, "is_cuda", property(lambda tensor: True)))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor))
        stack.enter_context(patch("torch.cuda.device", nullcontext))
        stack.enter_context(patch("torch.cuda.graph_pool_handle", lambda: None))
        yield


def on_gpu(value: Any) -> Any:
    """The value with meta tensors in place of its tensors, also inside dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(on_gpu, value))
    if is_dataclass(value):
        return replace(value, **{item.name: on_gpu(getattr(value, item.name)) for item in fields(value)})
    return value


class Counted(CudaGraphEpisodes):
    """Episodes whose graphs are counted instead of captured."""

    def __init__(self, recorder: Recorder, *args: Any):
        self._recorder = recorder
        super().__init__(*args)

    def _capture(self, n_steps: int) -> None:
        # The first run allocates the buffers, as before a capture.
        self._run(n_steps)
        self._recorder.nodes.clear()
        with self._recorder:
            self._run(n_steps)
        self.counted = list(self._recorder.nodes)


def nodes(size: Size, **settings: Any) -> list[str]:
    """Names of the operators and kernels that one captured decision of this size launches, in order."""
    problem = Problem(size)
    problem.config = ITPOConfig(horizon=size.H, particles=size.M, **settings)
    policy, objective, noise_steps = problem.policy, copy(problem.fused), problem.world.dynamics.noise_steps
    recorder = Recorder()
    with fake_gpu(recorder), torch.no_grad():
        objective.models, objective.returns = on_gpu(objective.models), on_gpu(objective.returns)
        # The default on a GPU, which a CPU does not have.
        objective.models = replace(objective.models, sampler=replace(objective.models.sampler, precision="fp16"))
        shared = AgentContext(on_gpu(policy), make_rule(problem.config), objective, problem.config, noise_steps, 0)
        return Counted(recorder, shared, size.B, OBS_DIM).counted


def size_of(world: str, n_episodes: int, particles: int, width: int = 256) -> Size:
    return Size(B=n_episodes, M=particles, K=10 if world == "diffusion" else 1, D=width, world=world)


def table(world: str, rule: str) -> str:
    """Markdown table of the nodes by operator, one column for each size."""
    counts = [Counter(nodes(size_of(world, *size), **RULES[rule])) for size in SIZES]
    names = sorted(set().union(*counts), key=lambda name: (-counts[0][name], name))
    rows = [("**all**", *(f"**{count.total()}**" for count in counts))]
    rows += [(name, *(count[name] for count in counts)) for name in names]
    head = [f"{world}, {rule}", *(f"B {b}, M {m}" for b, m in SIZES)]
    return markdown_table(head, [map(str, row) for row in rows]) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for world in ("diffusion", "meanflow"):
        for rule in RULES:
            print(table(world, rule))


if __name__ == "__main__":
    main()
