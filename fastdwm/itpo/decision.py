"""Inference-time policy optimisation, [ITPO] v1 Algorithm 1: one decision, for B episodes at once.

Every episode owns a copy of the policy; a sum over episodes has each copy's own gradient, so one backward pass adapts
them all. An update that is not finite is rolled back in its own episode alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.objective import Objective
from fastdwm.itpo.rules import PolicyState, Rule
from fastdwm.models.policy import Policy
from fastdwm_kernels.commit import NUMBERS


@dataclass(frozen=True)
class Decision:
    """The result of one decision, per episode.

    action: (B, A).   numbers: (B, 4), the `NUMBERS` of `kernels.commit`, which the properties name; values that do not
    exist are NaN.   n_steps: inner steps taken.
    """

    action: Tensor
    numbers: Tensor
    n_steps: int

    @classmethod
    def of_report(cls, report: Tensor, n_steps: int) -> "Decision":
        """Split the report (B, A + 4) of `kernels.commit`."""
        return cls(report[:, : -len(NUMBERS)], report[:, -len(NUMBERS) :], n_steps)

    @property
    def objective(self) -> Tensor:
        """(B,), J at the first inner step."""
        return self.numbers[:, 0]

    @property
    def grad_norm(self) -> Tensor:
        """(B,), norm of the gradient at the first inner step."""
        return self.numbers[:, 1]

    @property
    def discarded(self) -> Tensor:
        """(B,) bool, whether the update was rolled back."""
        return self.numbers[:, 2] != 0

    @property
    def deviation(self) -> Tensor:
        """(B,), the root mean square distance of the action from the base policy's before it was clipped."""
        return self.numbers[:, 3]

    @property
    def inner_steps(self) -> Tensor:
        """(B,) float, the number of inner steps."""
        return torch.full_like(self.objective, self.n_steps)


@dataclass(frozen=True)
class Proposal:
    """A decision before it is committed or rolled back.

    start, state: the policies before and after it.   action, base_action: (B, A).   deviation: (B,).
    objective, grad_norm: (B,), at the first inner step.   finite: (B,) bool, whether those of all later steps are.
    A field is None if there is no such step.
    """

    start: PolicyState
    state: PolicyState
    action: Tensor
    base_action: Tensor
    deviation: Tensor | None
    objective: Tensor | None
    grad_norm: Tensor | None
    finite: Tensor | None
    n_steps: int


def decide(
    policy: Policy,
    rule: Rule,
    state: PolicyState,
    base: Tensor,
    objective: Objective,
    obs: Tensor,
    noise: Tensor,
    config: ITPOConfig,
    steps: Iterable[int] | None = None,
) -> tuple[PolicyState, Decision]:
    """Adapt the policies to their states by gradient steps on J, then act.

    state: adapted copies of `policy`.   base: the base policy's parameters (B, P).   obs: (B, S) raw units.
    noise: (E or 1, H, K, B, M, S), one bank for each inner step or one for all.
    steps: 0, 1, .., the inner steps, ending early at a deadline; none: config.inner_steps of them.
    An episode whose objective, gradient or action is not finite discards the whole update of this decision: it keeps
    its previous parameters and executes the base policy's action.
    """
    return commit(propose(policy, rule, state, base, objective, obs, noise, config, steps))


def propose(
    policy: Policy,
    rule: Rule,
    state: PolicyState,
    base: Tensor,
    objective: Objective,
    obs: Tensor,
    noise: Tensor,
    config: ITPOConfig,
    steps: Iterable[int] | None = None,
) -> Proposal:
    """Run the inner steps and return the candidate; arguments as in `decide`."""
    start, first, finite, n_steps = state, (None, None), None, 0
    for i in range(config.inner_steps) if steps is None else steps:
        n_steps += 1
        gradient = objective.gradient(state.params, obs, noise[i % len(noise)])
        state, norm = rule.step(state, gradient)
        if i == 0:
            first = gradient.returns, norm
        else:
            # This takes two launches; `isfinite` of both takes six.
            step_finite = gradient.returns.abs().maximum(norm) < torch.inf
            finite = step_finite if finite is None else finite & step_finite
    base_action, deviation = policy.act(base, obs), None
    action = policy.act(state.params, obs) if config.adapts else base_action
    if config.adapts:
        state, action, deviation = rule.act(state, base, action, base_action)
    return Proposal(start, state, action, base_action, deviation, *first, finite, n_steps)


def commit(proposal: Proposal) -> tuple[PolicyState, Decision]:
    """Roll back the episodes where a value is not finite; return the policies and the decision."""
    state, action, finite = proposal.state, proposal.action, all_finite(proposal)
    # On a GPU, copying the parameters costs less than the synchronisation needed to know whether to copy.
    if action.is_cuda or not finite.all():
        state, action = rolled_back(proposal, finite)
    missing = torch.full_like(action[:, 0], torch.nan)
    numbers = proposal.objective, proposal.grad_norm, (~finite).to(action.dtype), proposal.deviation
    columns = [missing if value is None else value for value in numbers]
    return state, Decision(action, torch.stack(columns, 1), proposal.n_steps)


def all_finite(proposal: Proposal) -> Tensor:
    """Whether all values of each episode are finite, (B,) bool."""
    # One comparison checks all values, for `maximum` propagates NaN and each launch costs more than it computes.
    largest = proposal.action.abs().amax(1)
    if proposal.objective is not None:
        largest = largest.maximum(proposal.objective.abs()).maximum(proposal.grad_norm)
    finite = largest < torch.inf
    return finite if proposal.finite is None else finite & proposal.finite


def rolled_back(proposal: Proposal, finite: Tensor) -> tuple[PolicyState, Tensor]:
    """The policies and actions, where an episode is not finite those from before the decision and the base policy's."""
    action = torch.where(finite.unsqueeze(1), proposal.action, proposal.base_action)
    return proposal.state.where(finite, proposal.start), action
