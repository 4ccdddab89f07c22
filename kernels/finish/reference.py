"""The end of a decision in torch: any dtype and device."""

from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = ("objective", "norm", "scale", "discarded", "trust", "distance", "reason")
"""columns of a report after those of the action"""


class Outcome(NamedTuple):
    """What a decision has come to, per episode, before anything is undone; none where it is unknown or does not exist.

    start, after: (B, P), the parameters to return to and the new ones.   evidence: (B, 8), the new one.
    action, base_action: (B, A), the action and what is done in its place where something is not finite.
    finite: (B,) bool of what is not seen here.   reason: (B,) int64.   All others: (B,).
    """

    start: Tensor
    after: Tensor
    action: Tensor
    base_action: Tensor
    evidence: Tensor | None
    objective: Tensor | None
    norm: Tensor | None
    finite: Tensor | None
    scale: Tensor | None
    trust: Tensor | None
    distance: Tensor | None
    reason: Tensor | None


def finish_reference(
    found: Outcome, first_news: int, params: Tensor, evidence: Tensor, times: Tensor, report: Tensor
) -> None:
    """Arguments as in `op.finish`."""
    fine = found.action.isfinite().all(1)
    for value in (found.objective, found.norm):
        fine = fine if value is None else fine & value.isfinite()
    fine = fine if found.finite is None else fine & found.finite
    kept = fine.unsqueeze(1)
    params.copy_(torch.where(kept, found.after, found.start))
    if found.evidence is not None:
        old = torch.cat([evidence[:, :first_news], torch.full_like(evidence[:, first_news:], torch.nan)], 1)
        evidence.copy_(torch.where(kept, found.evidence, old))
    times += 1
    numbers = found.objective, found.norm, found.scale, ~fine, found.trust, found.distance, found.reason
    unknown = torch.full_like(params[:, 0], torch.nan)
    columns = [unknown if value is None else value.to(report.dtype) for value in numbers]
    action = torch.where(kept, found.action, found.base_action)
    report.copy_(torch.cat([action, torch.stack(columns, 1)], 1))
