"""Ascending steps of all adapted policies, and the bound on how far their actions move. Nothing changes in place."""

import torch
from torch import Tensor

from fastdwm_kernels.checks import check_tensor, cpu_kernels
from fastdwm_kernels.memory import recycled
from fastdwm_kernels.update import reference


@torch.no_grad()
def bound_step(
    params: Tensor, grads: Tensor, partial_sq_norms: Tensor, action_grads: Tensor, memory: Tensor, action_step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Step along the gradient, with a step size chosen by how far the imagined actions should move.

    params, grads: (B, P) fp32 (on the CPU also fp64), contiguous, one row per episode.
    partial_sq_norms: (B, any), parts of |grads|^2.   action_grads: dJ/da (H + 1, B, M, A) of each particle's own J.
    memory: (B, 2), running statistics: the mean of G over an episode's steps, and their number; zeros at its start.
    action_step: c, in units of the action. With R the root mean square of dJ/da, and G = |grads|^2 / R^2, a measure of
    how strongly the actions follow the parameters, the step size is

        alpha = c (H + 1) A / (R mean(G)),

    so that to first order, for G = mean(G), J gains as much as if each of the (H + 1) A numbers of the imagined actions
    moved by c along a slope of R. The step does not depend on the scale of J, nor grow where the actions hardly follow
    the parameters, as under a saturated tanh. alpha is 0 if the formula is not finite.
    Returns the parameters (B, P), |grads| (B,) and the new memory (B, 2), which skips a G that is not finite.
    Source: a step size from the gain that it promises is Polyak's (Introduction to Optimization, 1987).
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype, as all operators here do.
    """
    check_params(params, grads=grads)
    like = params.dtype, params.device
    check_tensor("partial_sq_norms", partial_sq_norms, (len(params), None), *like)
    check_tensor("action_grads", action_grads, (None, len(params), None, None), *like)
    check_tensor("memory", memory, (len(params), 2), *like)
    return on(params, "bound_step")(params, grads, partial_sq_norms, action_grads, memory, action_step)


@torch.no_grad()
def pull_back(
    params: Tensor, base: Tensor, action: Tensor, base_action: Tensor, max_deviation: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clip the action's deviation from the base policy's to max_deviation, and shrink the policy's change likewise.

    params, base: (B, P), the adapted and the base policy; base may be one expanded row.   action, base_action: (B, A),
    their actions in one state.   max_deviation: a root mean square over the A numbers, may be infinite.   dtypes as in
    `bound_step`.
    Returns params (B, P) and action (B, A), each b + min(1, max_deviation / d) (x - b), which is x to the bit where d
    is within the bound, and d (B,), the root mean square of action - base_action.
    """
    check_params(params)
    kind = params.dtype, params.device
    # An expanded row is accepted as well, since rows are read `stride(0)` apart.
    shared = base.shape == params.shape and base.stride(0) == 0
    check_tensor("base", base[:1] if shared else base, (1, params.shape[1]) if shared else params.shape, *kind)
    check_tensor("action", action, (len(params), None), *kind)
    check_tensor("base_action", base_action, action.shape, *kind)
    return on(params, "pull_back")(params, base, action, base_action, max_deviation)


@torch.no_grad()
def sgd_step(params: Tensor, grads: Tensor, partial_sq_norms: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """params + lr grads (B, P) and |grads| (B,), one operation of torch each; arguments as in `bound_step`."""
    check_params(params, grads=grads)
    return torch.add(params, grads, alpha=lr, out=empty(params)), partial_sq_norms.sum(1).sqrt_()


@torch.no_grad()
def adam_step(
    params: Tensor, grads: Tensor, first: Tensor, second: Tensor, count: Tensor, lr: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One ascending Adam step (betas 0.9 and 0.999, eps 1e-8): the new params, first, second and count.

    first, second: (B, P) moments.   count: (B,) steps taken by each episode, in params' dtype.   Others: `bound_step`.
    """
    check_params(params, grads=grads, first=first, second=second)
    check_tensor("count", count, params.shape[:1], params.dtype, params.device)
    after = *(empty(rows).copy_(rows) for rows in (params, first, second)), count.clone()
    if params.is_cuda:
        from fastdwm_kernels.update.kernel import update_adam

        update_adam(after[0], grads, *after[1:], lr)
    else:
        reference.adam_reference(after[0], grads, *after[1:], lr)
    return after


def check_params(params: Tensor, **others: Tensor) -> None:
    """Raise unless all are contiguous matrices of one shape, dtype and device."""
    dtype = torch.float64 if params.dtype == torch.float64 and not params.is_cuda else torch.float32
    check_tensor("params", params, (None, None), dtype)
    for name, value in others.items():
        check_tensor(name, value, params.shape, dtype, params.device)


def empty(rows: Tensor) -> Tensor:
    """Uninitialised memory like `rows`, recycled on a CPU."""
    return torch.empty_like(rows) if rows.is_cuda or rows.dtype != torch.float32 else recycled(*rows.shape)


def on(rows: Tensor, name: str):
    """The operator of this name for the device and dtype of the rows."""
    if rows.is_cuda:
        from fastdwm_kernels.update import bound_kernel

        return getattr(bound_kernel, f"{name}_fwd")
    compiled = cpu_kernels("update") if rows.dtype == torch.float32 else None
    return getattr(reference, f"{name}_reference") if compiled is None else getattr(compiled, f"{name}_cpu")
