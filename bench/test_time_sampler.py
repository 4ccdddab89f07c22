"""One reverse-diffusion step and the whole sampler, forward and with their VJP, on the rows of all particles."""

from dataclasses import replace

import torch
from problems import ACTION_DIM, OBS_DIM, Problem, Size

from fastdwm_kernels.sampler import reverse_step, sample

PEERS = {"cpu": ("reference", "fused"), "cuda": ("reference", "fused")}


def one_transition(size: Size) -> Size:
    """Size with the same rows in one episode, and a horizon of 1."""
    return replace(size, B=1, M=size.rows, H=1)


def one_call(size: Size) -> Size:
    return replace(one_transition(size), K=10, world="diffusion")


RACES = {
    "test_reverse_step": (one_call, PEERS),
    "test_reverse_step_vjp": (one_call, PEERS),
    "test_sampler": (one_transition, PEERS),
    "test_sampler_vjp": (one_transition, PEERS),
}


def step_of(problem: Problem, peer: str):
    """Function (obs, action) -> y_{k-1} of a step in the middle of the sampler; obs normalised."""
    dynamics, index, rows = problem.world.dynamics, problem.size.K // 2, problem.size.rows
    y, noise = problem.normal(10, rows, OBS_DIM), problem.normal(11, rows, OBS_DIM)
    if peer == "fused":
        weights = problem.fused.models.sampler
        return lambda obs, action: reverse_step(weights, index, y, obs, action, noise)
    c_y, c_out, sigma = dynamics.coefficients[index]
    features = dynamics.embedding[index]
    return lambda obs, action: c_y * y + c_out * dynamics.predict(y, features, obs, action) + sigma * noise


def sampler_of(problem: Problem, peer: str):
    """Function (obs, action) -> y_0; obs normalised."""
    dynamics, size = problem.world.dynamics, problem.size
    noise = problem.normal(12, size.K, size.rows, OBS_DIM)
    if peer == "fused":
        weights = problem.fused.models.sampler
        return lambda obs, action: sample(weights, obs, action, noise)

    def eager(obs, action):
        raw = obs * dynamics.obs_std + dynamics.obs_mean
        return (dynamics.next_obs(raw, action, noise) - raw - dynamics.delta_mean) / dynamics.delta_std

    return eager


def forward(problem: Problem, function):
    """Call of the function without gradients."""
    obs, action = rows_of(problem)
    return torch.no_grad()(lambda: function(obs, action))


def with_vjp(problem: Problem, function):
    """Call that returns the gradients of obs and action for a random upstream gradient."""
    obs, action = (x.requires_grad_(True) for x in rows_of(problem))
    upstream = problem.normal(13, *obs.shape)
    return lambda: torch.autograd.grad(function(obs, action), (obs, action), upstream)


def rows_of(problem: Problem):
    return problem.normal(14, problem.size.rows, OBS_DIM), problem.normal(15, problem.size.rows, ACTION_DIM).tanh()


def run(race, problem, peer, operation, of, how):
    precision = problem.precision if peer == "fused" else "ieee"
    call, expected = (how(problem, of(problem, name)) for name in (peer, "reference"))
    race(operation, problem.size, peer, call, expected, precision)


def test_reverse_step(size, peer, problem, race):
    run(race, problem, peer, "reverse step", step_of, forward)


def test_reverse_step_vjp(size, peer, problem, race):
    run(race, problem, peer, "reverse step and VJP", step_of, with_vjp)


def test_sampler(size, peer, problem, race):
    run(race, problem, peer, "sampler", sampler_of, forward)


def test_sampler_vjp(size, peer, problem, race):
    run(race, problem, peer, "sampler and VJP", sampler_of, with_vjp)
