"""Captured decisions and updates without a GPU: replayed, they equal the eager ones to the bit.

The tensors are on the CPU and say that they are on a GPU. A capture notes every operator of torch and every launch with
its very tensors; a replay does them again, with NaN in all memory that was allocated, and nothing else.
"""

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import nodes  # noqa: E402
from problems import OBS_DIM, Problem, Size, generator  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from trainers import PARTS, plain_torch  # noqa: E402

from fastdwm import ITPOConfig  # noqa: E402
from fastdwm.errors import InputError  # noqa: E402
from fastdwm.itpo import graphs  # noqa: E402
from fastdwm.itpo.deadline import LEARNING, Deadline  # noqa: E402
from fastdwm.itpo.episodes import AgentContext  # noqa: E402
from fastdwm.itpo.fused import FusedObjective  # noqa: E402
from fastdwm.itpo.graphs import CudaGraphEpisodes  # noqa: E402
from fastdwm.itpo.rules import make_rule  # noqa: E402
from fastdwm.train.fit import EAGER_UPDATES  # noqa: E402

SIZE = Size(B=2, M=3, K=2, H=1, D=16)
BOUND = {"max_deviation": 0.05}
CASES = {
    "bound": ("diffusion", BOUND),
    "sgd": ("meanflow", {"optimiser": "sgd", "inner_steps": 2, "noise": "step"}),
    "adam": ("diffusion", {"optimiser": "adam", "termination": "soft", "terminal_value": "mean"}),
    "time": ("meanflow", BOUND | {"noise": "time", "reset": "decision", "termination": "mask"}),
    "deadline": ("diffusion", BOUND | {"inner_steps": 2}),
    "score": ("meanflow", BOUND),
}


class Recorder(nodes.Recorder):
    """Notes what is done, with all its tensors, as functions that do it again."""

    in_kernel = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if self.in_kernel:
            return result
        if name == "_local_scalar_dense":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if "empty" in name:
            self.nodes.append(lambda: result.fill_(torch.nan if result.is_floating_point() else 77))
        elif not func.is_view and name not in nodes.FREE:
            self.nodes.append(lambda: self.again(func, args, kwargs, result))
        return result

    @staticmethod
    def again(func, args, kwargs, result):
        for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
            if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                old.copy_(new)

    def launch(self, kernel, grid, *args, **kwargs):
        self.nodes.append(lambda: kernel[grid](*args, **kwargs))
        self.in_kernel = True
        kernel[grid](*args, **kwargs)
        self.in_kernel = False


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    def register_generator_state(self, generator):
        pass

    def replay(self):
        with torch.no_grad():
            for node in self.nodes:
                node()


class ExecutedGraph(Graph):
    """The capture, which is an execution here, stands for the first replay."""

    executed = False

    def replay(self):
        if self.executed:
            super().replay()
        self.executed = True


class Stream(SimpleNamespace):
    def synchronize(self):
        pass

    def wait_stream(self, other):
        pass


@contextmanager
def interpreted_gpu():
    """A GPU that runs in the interpreter; yields the (pool, stream) of every capture."""
    recorder, captures = Recorder(), []

    @contextmanager
    def capture(graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        captures.append((pool, stream))
        recorder.nodes = graph.nodes = []
        with recorder:
            yield
        recorder.nodes = []

    with ExitStack() as stack, nodes.fake_gpu(recorder):
        for name, stub in {
            "CUDAGraph": Graph,
            "graph": capture,
            "graph_pool_handle": object,
            "Stream": lambda device: Stream(device=device),
            "current_stream": lambda device: Stream(device=device),
            "stream": lambda stream: ExitStack(),
            "device_of": lambda tensor: ExitStack(),
        }.items():
            stack.enter_context(patch(f"torch.cuda.{name}", stub))
        yield captures


def score(world, states, actions):
    return states[..., 0].mean(-1).sum(0) - actions.square().sum(-1).mean(-1).sum(0)


def reading_score(world, states, actions):
    return score(world, states, actions) / states.detach().abs().max().item()


def episodes_of(name, own_score=None):
    world, settings = CASES[name]
    size = replace(SIZE, world=world, K=1 if world == "meanflow" else SIZE.K)
    problem, config = Problem(size), ITPOConfig(horizon=size.H, particles=size.M, **settings)
    objective = FusedObjective(problem.policy, problem.world, config, own_score)
    assert objective.models.sampler.precision == "fp16"
    deadline = Deadline(1e6) if name == "deadline" else None
    parts = make_rule(config), objective, config, problem.world.dynamics.noise_steps
    return CudaGraphEpisodes(AgentContext(problem.policy, *parts, 5, deadline), size.B, OBS_DIM)


def decided(episodes, obs):
    deadline = episodes.shared.deadline or Deadline(1e6)
    deadline.start()
    decision = episodes.decide(obs)
    deadline.finish()
    return decision, [decision.action, decision.numbers, *episodes._state.tensors]


def replays(name):
    """Compare replays with the eager body, and count captures, pools and streams."""
    result = {"different": [], "discarded": [], "steps": []}
    with interpreted_gpu() as captures, patch.object(graphs, "EAGER_DECISIONS", 1):
        own_score = score if name == "score" else None
        replayed = episodes_of(name, own_score)
        with patch.object(CudaGraphEpisodes, "_capture", lambda self, n_steps: None):
            eager = episodes_of(name, own_score)
        # A deadline tries single steps first.
        obs = torch.randn(LEARNING + 1 if name == "deadline" else 3, SIZE.B, OBS_DIM, generator=generator(1))
        obs[1, 0, 0] = torch.nan
        for i, o in enumerate(obs):
            (decision, values), (_, expected) = decided(replayed, o), decided(eager, o)
            same = [torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(values, expected, strict=True)]
            result["different"] += [] if all(same) else [i]
            result["discarded"].append(decision.discarded.tolist())
            result["steps"].append(int(decision.inner_steps[0]))
    pools, streams = ({id(value) for value in values} for values in zip(*captures, strict=True))
    return result | {"captures": len(captures), "pools": len(pools), "streams": len(streams)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_replay_is_the_eager_body(interpreted, name):
    result = interpreted(replays, name)
    assert result["different"] == []
    n = len(result["discarded"])
    assert result["discarded"] == [[i == 1, False] for i in range(n)]
    steps = CASES[name][1].get("inner_steps", 1)
    assert result["steps"] == ([1] * LEARNING + [steps] if name == "deadline" else [steps] * n)
    # A deadline chooses among graphs, which share their memory.
    assert result["captures"] == (steps + 1 if name == "deadline" else 1)
    assert result["pools"] == result["streams"] == 1


def capture_reading_score():
    with interpreted_gpu(), patch.object(graphs, "EAGER_DECISIONS", 1):
        episodes_of("score", reading_score)


@pytest.mark.slow
def test_a_score_that_waits_for_the_device_is_refused_in_one_line(interpreted):
    with pytest.raises(
        InputError, match="^score: expected operations on the GPU alone.*capturing.*'reference'"
    ) as error:
        interpreted(capture_reading_score)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", PARTS)
def test_a_captured_update_is_the_eager_one(name):
    real = {"optim.Adam": torch.optim.Adam, "Generator": torch.Generator, "cuda.CUDAGraph": ExecutedGraph}
    with plain_torch(), interpreted_gpu() as captures, ExitStack() as stack:
        for attribute, value in real.items():
            stack.enter_context(patch(f"torch.{attribute}", value))
        parts = [PARTS[name](Problem(Size(D=16))) for _ in range(2)]
        captured, eager = (part.update(captured) for part, captured in zip(parts, (True, False), strict=True))
        for _ in range(EAGER_UPDATES + 3):
            scalars, expected = captured(), eager()
            assert all(torch.equal(scalars[key], value) for key, value in expected.items())
    assert len(captures) == 1
    for networks in zip(*(part.trainer.networks[part.network].values() for part in parts), strict=True):
        assert torch.equal(*networks)
