"""The update of all adapted policies at once, uphill: SGD without momentum, or Adam."""

import torch
from torch import Tensor

from fastdwm.kernels.contract import check_tensor, cpu_kernels
from fastdwm.kernels.memory import recycled
from fastdwm.kernels.update.reference import adam_reference, bounded_step_reference, sgd_reference


def copy_of(rows: Tensor) -> Tensor:
    """A copy to step in; on a CPU in recycled memory, for the pages of fresh memory cost more than the step itself."""
    return rows.clone() if _fresh(rows) else recycled(*rows.shape).copy_(rows)


def _fresh(rows: Tensor) -> bool:
    """Whether memory is to be fresh: only that of a CPU in float32 is recycled."""
    return rows.is_cuda or rows.dtype != torch.float32


def stepped(params: Tensor, grads: Tensor, factor: Tensor) -> Tensor:
    """params + factor grads in memory of its own, in one pass; arguments as in `sgd_ascent`, any device."""
    _check({"params": params, "grads": grads}, {"factor": factor})
    after = torch.empty_like(params) if _fresh(params) else recycled(*params.shape)
    return torch.addcmul(params, grads, factor.unsqueeze(1), out=after)


@torch.no_grad()
def bounded_step(
    params: Tensor,
    grads: Tensor,
    squares: Tensor,
    step: Tensor | None = None,
    bound: Tensor | None = None,
    *,
    lr: float = 0.0,
    clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The parameters after a step along gradients no longer than their bound, and the gradients' norms (B,).

    squares: (B, any), parts of the gradients' squared norms.   step, bound: (B,) of each episode, where a factor that
    is not finite counts as 0; or neither, for the step size lr and the bound `clip` of all.   Others: `sgd_ascent`.
    """
    _check({"params": params, "grads": grads}, {"step": step, "bound": bound})
    check_tensor("squares", squares, (len(params), None), params.dtype, params.device)
    if params.is_cuda:
        from fastdwm.kernels.update.ascent_kernel import bounded_step_fwd

        return bounded_step_fwd(params, grads, squares, step, bound, lr, clip or 0.0)
    compiled = cpu_kernels("update") if params.dtype == torch.float32 else None
    rule = bounded_step_reference if compiled is None else compiled.bounded_step_compiled
    return rule(params, grads, squares, step, bound, lr, clip or 0.0)


def sgd_ascent(params: Tensor, grads: Tensor, lr: float, *, factor: Tensor | None = None) -> None:
    """params += lr factor grads, in place.

    params, grads: (B, P) fp32 (on the CPU also fp64), contiguous, one row per episode, owned by the caller.
    factor: (B,) of params' dtype, what gradient clipping leaves of each episode's gradient.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype.
    """
    _check({"params": params, "grads": grads}, {"factor": factor})
    if params.is_cuda:
        from fastdwm.kernels.update.kernel import update_sgd

        update_sgd(params, grads, lr, factor)
        torch.autograd.graph.increment_version(params)
    else:
        sgd_reference(params, grads, lr, factor)


def adam_ascent(
    params: Tensor,
    grads: Tensor,
    first: Tensor,
    second: Tensor,
    count: Tensor,
    lr: float,
    *,
    factor: Tensor | None = None,
) -> None:
    """One Adam step along grads (betas 0.9 and 0.999, eps 1e-8), in place on params, first, second and count.

    first, second: (B, P) moments.   count: (B,) steps taken by each episode, in params' dtype.   Others: `sgd_ascent`.
    """
    rows = {"params": params, "grads": grads, "first": first, "second": second}
    _check(rows, {"count": count, "factor": factor})
    if params.is_cuda:
        from fastdwm.kernels.update.kernel import update_adam

        update_adam(params, grads, first, second, count, lr, factor)
        torch.autograd.graph.increment_version([params, first, second])
    else:
        adam_reference(params, grads, first, second, count, lr, factor)


def _check(rows: dict[str, Tensor], per_episode: dict[str, Tensor | None]) -> None:
    params = rows["params"]
    dtype = torch.float64 if params.dtype == torch.float64 and not params.is_cuda else torch.float32
    shape = tuple(params.shape) if params.dim() == 2 else (None, None)
    for name, value in rows.items():
        check_tensor(name, value, shape, dtype, params.device)
    for name, value in per_episode.items():
        if value is not None:
            check_tensor(name, value, shape[:1], dtype, params.device)
