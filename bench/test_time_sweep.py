"""Scaling of the fused rollout gradient, and the cost of launch sizes; only with `--device cuda`.

The sweep changes one axis at a time around B=1, M=64: episodes, particles, hidden width, precision of the products. The
sampler with its VJP runs with other blocks of particles and numbers of warps.
"""

from dataclasses import replace

import pytest
import torch
from peers import capture
from problems import ACTION_DIM, OBS_DIM, Problem, Size

from fastdwm.itpo.fused import FusedObjective
from fastdwm_kernels.sampler import sample

BASE = Size(M=64, device="cuda")
EPISODES = [replace(BASE, B=B, M=16) for B in (1, 10, 100, 132)]
PARTICLES = [replace(BASE, M=M) for M in (64, 256, 1024, 4096)]
WIDTHS = [replace(BASE, D=D) for D in (128, 512)]
ROLLOUTS = [(size, "fp16") for size in (*EPISODES, *PARTICLES, *WIDTHS)]
ROLLOUTS += [(replace(BASE, M=M), "ieee") for M in (64, 4096)]

LAUNCHES = [(block_m, warps) for block_m in (8, 16, 32, 64) for warps in (4, 8, 16)]
SAMPLERS = [(replace(BASE, M=M, H=1), *launch) for M in (64, 4096) for launch in LAUNCHES]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    here = metafunc.config.getoption("device") == "cuda"
    if "precision" in metafunc.fixturenames:
        cases = ROLLOUTS if here else []
        metafunc.parametrize(("size", "precision"), cases, ids=[f"{size}-{p}" for size, p in cases])
    elif "block_m" in metafunc.fixturenames:
        cases = SAMPLERS if here else []
        ids = [f"rows{size.rows}-block{block_m}-warps{warps}" for size, block_m, warps in cases]
        metafunc.parametrize(("size", "block_m", "warps"), cases, ids=ids)


def test_rollout_sweep(size, precision, problem, race):
    objective = FusedObjective(problem.policy, problem.world, problem.config, precision=precision)
    race(
        "rollout gradient",
        size,
        f"fused graph {precision}",
        capture(lambda: objective.gradient(*problem.arguments)[:2]),
        lambda: problem.reference.gradient(*problem.arguments)[:2],
        precision,
    )


def test_sampler_launch(size, block_m, warps, problem, race):
    weights = problem.fused.models.sampler
    other = replace(weights, launch=replace(weights.launch, block_m=block_m, num_warps=warps, larger=()))
    race(
        "sampler and VJP",
        size,
        f"block {block_m}, {warps} warps",
        capture(sampler_with_vjp(problem, other)),
        sampler_with_vjp(problem, weights),
        problem.precision,
    )


def sampler_with_vjp(problem: Problem, weights):
    """Function without arguments that returns the gradients of obs and action for a random upstream gradient."""
    rows, size = problem.size.rows, problem.size
    obs = problem.normal(14, rows, OBS_DIM).requires_grad_(True)
    action = problem.normal(15, rows, ACTION_DIM).tanh().requires_grad_(True)
    noise, upstream = problem.normal(12, size.K, rows, OBS_DIM), problem.normal(13, rows, OBS_DIM)
    return lambda: torch.autograd.grad(sample(weights, obs, action, noise), (obs, action), upstream)
