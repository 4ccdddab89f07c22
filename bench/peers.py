"""Peers of the fused operators: other ways to run the same computation."""

from collections.abc import Callable

import pytest
import torch
from problems import Problem

from fastdwm.itpo.rollout import imagined_return


def gradient_peer(name: str, problem: Problem, threads: int) -> Callable:
    """Function without arguments that returns J (B,) and its gradient (B, P) by the peer of this name."""
    if name == "reference":
        return lambda: problem.reference.gradient(*problem.arguments)[:2]
    if name == "fused":
        return lambda: problem.fused.gradient(*problem.arguments)[:2]
    if name == "reference graph":
        return captured(lambda: problem.reference.gradient(*problem.arguments)[:2])
    if name == "fused graph":
        return captured(lambda: problem.fused.gradient(*problem.arguments)[:2])
    if name == "compile":
        return compiled(problem)
    jax_twin = pytest.importorskip("jax_twin", reason="the JAX twin needs jax (extra: peers)", exc_type=ImportError)
    return jax_twin.gradient(problem, threads)


def compiled(problem: Problem) -> Callable:
    """Gradient by torch.compile, with one graph for all H steps forward and one backward; skips if that fails."""
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

    return tried("torch.compile", call)


def captured(call: Callable) -> Callable:
    """Capture the call as a CUDA graph; skips if that fails."""
    return tried("CUDA graph capture", lambda: capture(call), once=True)


def capture(call: Callable) -> Callable:
    """Replay of the call as one CUDA graph, which owns the results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay():
        graph.replay()
        return results

    return replay


def tried(name: str, call: Callable, once: bool = False):
    """Call once, and skip with the reason if that fails; returns the call, or its result if `once`."""
    try:
        result = call()
    except Exception as error:  # noqa: BLE001 - any error is the reason to skip a peer
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        pytest.skip(f"{name} failed: {reason[:200]}")
    return result if once else call
