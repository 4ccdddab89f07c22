"""One whole decision as the host sees it: a numpy observation in, a numpy action out, noise drawn on the way."""

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
    """An agent of this backend, its decisions captured as a CUDA graph or made one operator after the other."""
    backend, *graph = peer.split()
    size = problem.size
    agent = Agent.of(problem.bundle, problem.config, device=size.device, backend=backend, world=size.world)
    agent.episodes = (CudaGraphEpisodes if graph else Episodes)(agent.context, size.B, OBS_DIM)
    agent._forget_counts(size.B)
    return agent


def improvement(problem: Problem, peer: str) -> np.ndarray:
    """What the first decision changes about the base policy's action; later ones see other noise."""
    agent, obs = agent_of(problem, peer), observations(problem)
    rows = torch.as_tensor(obs, device=problem.size.device)
    return agent.act(obs) - agent.policy.act(agent.policy.base.expand(len(rows), -1), rows).cpu().numpy()


def test_decision(size, peer, problem, race):
    obs, agent = observations(problem), agent_of(problem, peer)
    # The captured decision draws its noise on the device: it is compared with its like.
    like = "reference graph" if peer.endswith("graph") else "reference"
    race(
        "decision",
        size,
        peer,
        lambda: agent.act(obs),
        lambda: improvement(problem, like),
        problem.precision if peer.startswith("fused") else "ieee",
        check=lambda: improvement(problem, peer),
    )
