"""The end of a captured decision, whatever went wrong in it: what stays, what is done, and what the host is told.

In place on buffers that never move, so that a replayed graph needs no copy of its own.
"""

import torch
from torch import Tensor

from fastdwm.kernels.contract import check_tensor
from fastdwm.kernels.finish.reference import NUMBERS, Outcome, finish_reference


@torch.no_grad()
def finish(found: Outcome, first_news: int, params: Tensor, evidence: Tensor, times: Tensor, report: Tensor) -> None:
    """Keep the new state or return to the old, count the decision and report it; all in place.

    Where objective, norm or action is not finite, or `finite` does not hold, the parameters are those of the start, the
    action is base_action, and of the old evidence all columns from `first_news` on are NaN. What does not exist is
    no reason to do so.
    params: (B, P).   evidence: (B, 8), the old one before.   times: (B,) int64, one more afterwards.
    report: (B, A + 7), the action done and `NUMBERS`, NaN where unknown.
    float32 (on the CPU also float64), contiguous; start may be params.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    dtype = torch.float64 if params.dtype == torch.float64 and not params.is_cuda else torch.float32
    n, n_actions = len(params), found.action.shape[-1]
    shapes = {"start": params.shape, "after": params.shape, "action": (n, n_actions), "base_action": (n, n_actions)}
    shapes |= {"evidence": evidence.shape}
    check_tensor("params", params, (None, None), dtype)
    check_tensor("evidence", evidence, (n, None), dtype, params.device)
    check_tensor("times", times, (n,), torch.int64, params.device)
    check_tensor("report", report, (n, n_actions + len(NUMBERS)), dtype, params.device)
    kinds = {"finite": torch.bool, "reason": torch.int64}
    for name, value in found._asdict().items():
        if value is not None:
            check_tensor(name, value, shapes.get(name, (n,)), kinds.get(name, dtype), params.device)
    if params.is_cuda:
        from fastdwm.kernels.finish.kernel import finish_into

        finish_into(found, first_news, params, evidence, times, report)
    else:
        finish_reference(found, first_news, params, evidence, times, report)
