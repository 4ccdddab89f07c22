"""One whole decision from a numpy observation to a numpy action, including the noise."""

import numpy as np
import torch
from problems import OBS_DIM, Problem

from fastdwm import Agent
from fastdwm.itpo.episodes import Episodes
from fastdwm.itpo.graphs import CudaGraphEpisodes

PEERS = {"cpu": ("reference", "fused"), "cuda": ("reference", "reference graph", "fused", "fused graph")}
RACES = {"test_decision": (lambda size: size, PEERS)}


def observations(problem: Problem) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(problem.size.B, OBS_DIM)).astype(np.float32)


def agent_of(problem: Problem, peer: str) -> Agent:
    """Agent of this backend, with decisions captured as a CUDA graph or not."""
    backend, *graph = peer.split()
    size = problem.size
    agent = Agent.of(problem.bundle, problem.config, device=size.device, backend=backend, world=size.world)
    agent.episodes = (CudaGraphEpisodes if graph else Episodes)(agent.context, size.B, OBS_DIM)
    agent._forget_counts(size.B)
    return agent


def improvement(problem: Problem, peer: str) -> np.ndarray:
    """Change of the base policy's action by the first decision; later decisions draw other noise."""
    agent, obs = agent_of(problem, peer), observations(problem)
    rows = torch.as_tensor(obs, device=problem.size.device)
    return agent.act(obs) - agent.policy.act(agent.policy.base.expand(len(rows), -1), rows).cpu().numpy()


def test_decision(size, peer, problem, race):
    obs, agent = observations(problem), agent_of(problem, peer)
    # A captured decision draws its noise on the device: compare it with a captured reference.
    reference = "reference graph" if peer.endswith("graph") else "reference"
    race(
        "decision",
        size,
        peer,
        lambda: agent.act(obs),
        lambda: improvement(problem, reference),
        problem.precision if peer.startswith("fused") else "ieee",
        check=lambda: improvement(problem, peer),
    )
