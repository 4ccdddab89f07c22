"""The end of a decision in torch: any dtype and device. What it means: `op.finish`."""

from typing import Any

import torch
from torch import Tensor


def finish_reference(
    found: Any, first_news: int, params: Tensor, evidence: Tensor, times: Tensor, report: Tensor
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
