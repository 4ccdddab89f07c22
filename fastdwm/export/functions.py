"""The base policy and a whole decision as functions of tensors, for tracing."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdwm.agent import Agent
from fastdwm.bundle import Bundle
from fastdwm.checks import require
from fastdwm.itpo.decision import all_finite, propose, rolled_back
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.itpo.rules import PolicyState
from fastdwm.models.policy import Policy

INITIAL_ROWS = 2
"""rows of the example that the policy is traced with; any other number does, since it treats every row alike"""


@dataclass(frozen=True)
class Function:
    """A function of tensors, examples of its arguments by name, and the names of its results."""

    call: Callable[..., tuple[Tensor, ...]]
    examples: dict[str, Tensor]
    results: tuple[str, ...]


def base_policy(policy: Policy, obs_dim: int) -> Function:
    """action (N, A) in [-1, 1] of obs (N, S)."""
    params = policy.layout.views(policy.base)

    def call(obs: Tensor) -> tuple[Tensor, ...]:
        return (policy.apply(params, obs.unsqueeze(0)).squeeze(0).clamp(-1, 1),)

    return Function(call, {"obs": policy.base.new_zeros(INITIAL_ROWS, obs_dim)}, ("action",))


def decision(agent: Agent, bundle: Bundle, world: str | None, world_steps: int | None) -> Function:
    """One decision of one episode, with the default rule, as the reference path computes it.

    Arguments: obs (S,); begins, a bool: the episode begins, so params and memory are the base policy's, whatever is
    given; params (P,) and memory (2,), the results of the decision before; noise (E or 1, H, K, M, S).
    Results: action (A,), params (P,), memory (2,).
    Computes in float64, for which the operators are plain torch and not compiled.
    Raises InputError for settings that never adapt, other rules, and termination.
    """
    config = agent.config
    require(config.adapts, "decision: the settings never adapt the policy (E = 0); export the base policy instead")
    for name, expected in {"optimiser": "bound", "termination": "none"}.items():
        value = getattr(config, name)
        require(
            value == expected, f"decision: expected the {name} {expected}, which alone can be exported, got {value}"
        )
    policy, rule = replace(agent.policy, base=agent.policy.base.double()), agent.context.rule
    models = bundle.world(world, steps=world_steps, dtype=torch.float64)
    objective, base = ReferenceObjective(policy, models, config), policy.base
    start = rule.init(base)

    def call(obs: Tensor, begins: Tensor, params: Tensor, memory: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        given = PolicyState(params.unsqueeze(0), (memory.unsqueeze(0),))
        state = start.where(begins.unsqueeze(0), given)
        proposal = propose(policy, rule, state, base, objective, obs.unsqueeze(0), noise.unsqueeze(3), config)
        state, action = rolled_back(proposal, all_finite(proposal))
        return tuple(value.squeeze(0) for value in (action.clamp(-1, 1), *state.tensors))

    shape = config.noise_banks, config.horizon, models.dynamics.noise_steps, config.particles, bundle.obs_dim
    examples = {
        "obs": bundle.statistics["obs_mean"].double(),
        "begins": torch.tensor(True),
        "params": base[0],
        "memory": start.memory[0][0],
        "noise": torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    }
    return Function(call, examples, ("action", "next_params", "next_memory"))
