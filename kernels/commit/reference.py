"""The end of a decision in torch: any dtype and device."""

from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = ("objective", "grad_norm", "discarded", "deviation")
"""columns of a report after those of the action"""


class Candidate(NamedTuple):
    """The result of a decision before it is committed or rolled back, per episode; None for what does not exist.

    start, after: (B, P), the parameters to return to and the new ones.
    action, base_action: (B, A), the action and what is executed in its place where something is not finite.
    finite: (B,) bool of what is not checked here.   objective, grad_norm, deviation: (B,).
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
    fine = candidate.action.isfinite().all(1)
    for value in (candidate.objective, candidate.grad_norm):
        fine = fine if value is None else fine & value.isfinite()
    fine = fine if candidate.finite is None else fine & candidate.finite
    kept = fine.unsqueeze(1)
    params.copy_(torch.where(kept, candidate.after, candidate.start))
    times += 1
    numbers = candidate.objective, candidate.grad_norm, ~fine, candidate.deviation
    unknown = torch.full_like(params[:, 0], torch.nan)
    columns = [unknown if value is None else value.to(report.dtype) for value in numbers]
    action = torch.where(kept, candidate.action, candidate.base_action)
    report.copy_(torch.cat([action, torch.stack(columns, 1)], 1))
