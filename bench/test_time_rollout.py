"""Imagined return of B policies, and its gradient: one inner step without the update."""

import pytest
from peers import gradient_peer
from problems import TARGETS

PEERS = {
    "cpu": ("reference", "fused", "compile", "jax"),
    "cuda": ("reference", "reference graph", "compile", "fused", "fused graph", "jax"),
}
VALUE_PEERS = dict.fromkeys(PEERS, ("reference", "fused"))
RACES = {"test_rollout_value": (lambda size: size, VALUE_PEERS), "test_rollout_gradient": (lambda size: size, PEERS)}


def refuse_compilation(size, config) -> None:
    """Skip torch.compile unless it is requested; compiling H * K denoiser calls takes minutes for every size."""
    if not config.getoption("compile"):
        pytest.skip("torch.compile takes minutes for every size: only with --compile")
    if size not in TARGETS and not config.getoption("full"):
        pytest.skip("torch.compile takes minutes for every size: not a target, only with --full")


def test_rollout_value(size, peer, problem, race):
    objective = getattr(problem, peer)
    race(
        "rollout value",
        size,
        peer,
        lambda: objective.value(*problem.arguments),
        lambda: problem.reference.value(*problem.arguments),
        problem.precision if peer == "fused" else "ieee",
    )


def test_rollout_gradient(size, peer, problem, race, pytestconfig):
    if peer == "compile":
        refuse_compilation(size, pytestconfig)
    race(
        "rollout gradient",
        size,
        peer,
        gradient_peer(peer, problem, pytestconfig.getoption("threads")),
        lambda: problem.reference.gradient(*problem.arguments)[:2],
        problem.precision if peer.startswith("fused") else "ieee",
    )
