"""Other ways to run the same computation: what the fused operators have to beat.

Only JAX and torch.compile may be skipped where they cannot run; whatever else fails is a failure.
"""

from collections.abc import Callable

import pytest
import torch
from problems import Problem

from fastdwm.itpo.rollout import imagined_return
from fastdwm_kernels.launch import captured, on_stream


def gradient_peer(name: str, problem: Problem, threads: int) -> Callable:
    """A function without arguments: J (B,) and its gradient (B, P) by the peer of this name."""
    if name == "reference":
        return lambda: problem.reference.gradient(*problem.arguments)[:2]
    if name == "fused":
        return lambda: problem.fused.gradient(*problem.arguments)[:2]
    if name == "reference graph":
        return capture(lambda: problem.reference.gradient(*problem.arguments)[:2])
    if name == "fused graph":
        return capture(lambda: problem.fused.gradient(*problem.arguments)[:2])
    if name == "compile":
        return compiled(problem)
    jax_twin = pytest.importorskip("jax_twin", reason="the JAX twin needs jax (extra: peers)", exc_type=ImportError)
    return tried("JAX", lambda: jax_twin.gradient(problem, threads))


def compiled(problem: Problem) -> Callable:
    """The eager gradient by torch.compile: one graph for all H steps forward, one backward.

    Compiled on the first call; skips with the reason if that fails.
    """
    mode = "reduce-overhead" if problem.size.device == "cuda" else "default"
    torch.compiler.reset()
    forward = torch.compile(imagined_return, mode=mode, dynamic=False)
    (params, obs, noise), policy = problem.arguments, problem.policy

    def call():
        torch.compiler.cudagraph_mark_step_begin()
        leaves = {k: value.detach().requires_grad_(True) for k, value in policy.layout.views(params).items()}
        returns = forward(policy, leaves, problem.world, obs, noise, problem.config)
        grads = torch.autograd.grad(returns.sum(), list(leaves.values()))
        return returns.detach(), policy.layout.pack(dict(zip(leaves, grads, strict=True)))

    return tried("torch.compile", lambda: call)


def capture(call: Callable) -> Callable:
    """`call` as one CUDA graph; the results are the graph's memory."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with on_stream(stream):
        for _ in range(3):
            call()
    with captured(graph, stream):
        results = call()

    def replay():
        graph.replay()
        return results

    return replay


def tried(name: str, make: Callable[[], Callable]) -> Callable:
    """The rival that `make` makes, after a first call; skips with the reason if either fails."""
    try:
        call = make()
        call()
    except Exception as error:  # noqa: BLE001 - whatever stops a rival is reported as its reason
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        pytest.skip(f"{name} failed: {reason[:200]}")
    return call
