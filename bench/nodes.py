"""python bench/nodes.py: what one captured decision launches on a GPU, counted without one, as tables in Markdown.

The very body that `itpo/graphs.py` captures runs on meta tensors that say they are on a GPU. They have shapes and no
numbers: operators of torch compute nothing, what reads a number back fails, and the project's kernels are noted in the
place of being launched. An operator on tensors of two devices fails too, since no capture can hold a copy from the
host. What only looks at memory (views) or reserves it costs no node. An operator of torch may be more than one node (a
long reduction, say), so this is the least that a graph holds. `update_nodes` does the same for an update of training.
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
from torch.utils._pytree import tree_leaves
from trainers import PARTS

import fastdwm_kernels
from fastdwm import ITPOConfig
from fastdwm.itpo.episodes import AgentContext
from fastdwm.itpo.graphs import CudaGraphEpisodes
from fastdwm.itpo.rules import make_rule
from fastdwm.train.fit import CapturedUpdates
from fastdwm_kernels import launch

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"}
"""operators that launch nothing, besides views"""
RULES = {"bound": {"max_deviation": 0.05}, "sgd": {"optimiser": "sgd"}}
SIZES = ((1, 64), (1, 1), (4, 17), (33, 16))
"""episodes and particles"""


class Recorder(TorchDispatchMode):
    """Notes every operator that launches something, and every launch of a kernel."""

    def __init__(self):
        super().__init__()
        self.nodes: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in FREE:
            self.nodes.append(name)
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if len(devices := {tensor.device.type for tensor in tensors}) > 1:
            raise RuntimeError(f"{name}: tensors on {' and '.join(sorted(devices))} in what a graph holds")
        return result

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        """In the place of `launch.run`."""
        if not all(getattr(arg, "device", torch.device("meta")).type == "meta" for arg in args):
            raise RuntimeError(f"{kernel.__name__}: tensors of the host among its arguments")
        if min(grid) < 1:
            raise RuntimeError(f"{kernel.__name__}: an empty grid {grid}")
        self.nodes.append(kernel.__name__)


@contextmanager
def fake_gpu(recorder: Recorder) -> Iterator[None]:
    """Tensors may be on a GPU that is not there, and launches are noted."""
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
        stack.enter_context(patch("torch.cuda.Stream", lambda device: None))
        stack.enter_context(patch("torch.optim.Adam", CapturableAdam))
        stack.enter_context(patch("torch.Generator", DeviceGenerator))
        yield


class CapturableAdam:
    """Stands in for torch's fused Adam, which accepts no meta tensors, and is one launch."""

    def __init__(self, params: list[torch.Tensor], lr: torch.Tensor, *, fused: bool, capturable: bool):
        assert fused and capturable and lr.device == params[0].device
        self.param_groups = [{"lr": lr}]

    def step(self) -> None:
        pass


class DeviceGenerator(torch.Generator):
    """Meta tensors take a generator of the CPU, which says here that it is on their device."""

    def __new__(cls, device: str = "cpu"):
        return super().__new__(cls, "cpu")

    device = torch.device("meta")


def on_gpu(value: Any) -> Any:
    """The same with meta tensors, in dataclasses, tuples and dictionaries however deep."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(on_gpu, value))
    if isinstance(value, dict):
        return {name: on_gpu(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: on_gpu(getattr(value, item.name)) for item in fields(value)})
    return value


class Counted(CudaGraphEpisodes):
    """Episodes whose graphs are counted in the place of being captured."""

    def __init__(self, recorder: Recorder, *args: Any):
        self._recorder = recorder
        super().__init__(*args)

    def _capture(self, n_steps: int) -> None:
        # The first run makes what later ones keep, as before a capture.
        self._run(n_steps)
        self._recorder.nodes.clear()
        with self._recorder:
            self._run(n_steps)
        self.counted = list(self._recorder.nodes)


def nodes(size: Size, backend: str = "fused", **settings: Any) -> list[str]:
    """List the launches of one captured decision of this size, in order."""
    problem = Problem(size)
    problem.config = ITPOConfig(horizon=size.H, particles=size.M, **settings)
    policy, noise_steps = problem.policy, problem.world.dynamics.noise_steps
    objective, recorder = copy(getattr(problem, backend)), Recorder()
    with fake_gpu(recorder), torch.no_grad():
        if backend == "reference":
            objective = on_gpu(objective)
        else:
            objective.models, objective.returns = on_gpu(objective.models), on_gpu(objective.returns)
            # The default on a GPU, which a CPU refuses.
            objective.models = replace(objective.models, sampler=replace(objective.models.sampler, precision="fp16"))
        shared = AgentContext(on_gpu(policy), make_rule(problem.config), objective, problem.config, noise_steps, 0)
        return Counted(recorder, shared, size.B, OBS_DIM).counted


def update_nodes(part: str, width: int = 256) -> list[str]:
    """List the launches of one captured update of this part of training, in order, without the optimiser's step."""
    recorder = Recorder()
    with fake_gpu(recorder):
        problem = PARTS[part](Problem(Size(D=width, device="meta")))
        updates = CapturedUpdates(problem.trainer, problem.batches, problem.batch_size)
        kind = problem.trainer.advance()
        # The first run makes what later ones keep, as before a capture.
        updates.step(kind)
        with recorder:
            updates.step(kind)
    return recorder.nodes


def size_of(world: str, n_episodes: int, particles: int, width: int = 256) -> Size:
    return Size(B=n_episodes, M=particles, K=10 if world == "diffusion" else 1, D=width, world=world)


def table(world: str, rule: str) -> str:
    """Nodes by operator, one column for each size."""
    counts = [Counter(nodes(size_of(world, *size), **RULES[rule])) for size in SIZES]
    names = sorted(set().union(*counts), key=lambda name: (-counts[0][name], name))
    rows = [("**all**", *(f"**{count.total()}**" for count in counts))]
    rows += [(name, *(count[name] for count in counts)) for name in names]
    head = [f"{world}, {rule}", *(f"B {b}, M {m}" for b, m in SIZES)]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for world in ("diffusion", "meanflow"):
        for rule in RULES:
            print(table(world, rule))


if __name__ == "__main__":
    main()
