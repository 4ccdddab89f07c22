"""Commit or roll back a decision in torch, on any device and in any dtype."""

from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = ("objective", "grad_norm", "discarded", "deviation")
"""columns of a report, after those of the action"""


class Candidate(NamedTuple):
    """The result of a decision of B episodes, before it is committed or rolled back.

    start, after: (B, P), the old and the new parameters.
    action, base_action: (B, A), the new action and the one that replaces it if something is not finite.
    finite: (B,) bool, whether all that is not checked here is finite.   objective, grad_norm, deviation: (B,).
    """

    start: Tensor
    after: Tensor
    action: Tensor
    base_action: Tensor
    objective: Tensor | None
    grad_norm: Tensor | None
    finite: Tensor | None
    deviation: Tensor | None


def commit_reference(candidate: Candidate, params: Tensor, times: Tensor, report: Tensor) -> None:
    """Arguments as in `op.commit`."""
    finite = candidate.action.isfinite().all(1)
    for value in (candidate.objective, candidate.grad_norm):
        finite = finite if value is None else finite & value.isfinite()
    finite = finite if candidate.finite is None else finite & candidate.finite
    keep = finite.unsqueeze(1)
    params.copy_(torch.where(keep, candidate.after, candidate.start))
    times += 1
    numbers = candidate.objective, candidate.grad_norm, ~finite, candidate.deviation
    missing = torch.full_like(params[:, 0], torch.nan)
    columns = [missing if value is None else value.to(report.dtype) for value in numbers]
    action = torch.where(keep, candidate.action, candidate.base_action)
    report.copy_(torch.cat([action, torch.stack(columns, 1)], 1))
