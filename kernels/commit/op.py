"""Commit or roll back a decision inside the CUDA graph, and pack its results for one copy to the host.

It works in place on buffers that never move, so a replayed graph needs no copies of them.
"""

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_tensor
from fastdwm_kernels.commit.reference import NUMBERS, Candidate, commit_reference


@torch.no_grad()
def commit(candidate: Candidate, params: Tensor, times: Tensor, report: Tensor) -> None:
    """Keep the new parameters or restore the old ones, count the decision and write its report, in place.

    An episode whose objective, grad_norm or action is not finite, or whose `finite` is false, gets its start parameters
    and base_action. Fields that are None are not checked.
    params: (B, P).   times: (B,) int64, incremented.   report: (B, A + 4), the executed action and `NUMBERS`, NaN for a
    field that is None.   float32 (on the CPU also float64), contiguous; start may be params.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    dtype = torch.float64 if params.dtype == torch.float64 and not params.is_cuda else torch.float32
    n, n_actions = len(params), candidate.action.shape[-1]
    shapes = {"start": params.shape, "after": params.shape, "action": (n, n_actions), "base_action": (n, n_actions)}
    check_tensor("params", params, (None, None), dtype)
    check_tensor("times", times, (n,), torch.int64, params.device)
    check_tensor("report", report, (n, n_actions + len(NUMBERS)), dtype, params.device)
    for name, value in candidate._asdict().items():
        if value is not None:
            kind = torch.bool if name == "finite" else dtype
            check_tensor(name, value, shapes.get(name, (n,)), kind, params.device)
    if params.is_cuda:
        from fastdwm_kernels.commit.kernel import commit_into

        commit_into(candidate, params, times, report)
    else:
        commit_reference(candidate, params, times, report)
