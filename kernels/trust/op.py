"""How far each episode's policy may go, and what a decision teaches of that: checks, then one small kernel each.

Some sixty operations on a few numbers per episode, which cost nothing to compute and much to call one by one.
"""

import torch
from torch import Tensor

from fastdwm.kernels.contract import check_tensor, cpu_kernels
from fastdwm.kernels.trust import reference
from fastdwm.kernels.trust.reference import COLUMNS, TrustSettings, Weights, told


def weigh(evidence: Tensor, settings: TrustSettings, n_steps: int, n_actions: int) -> Weights:
    """Trust, anchor and step size of a decision that begins with this evidence.

    evidence: (B, 8), the columns of `reference.COLUMNS`, fp32 (on the CPU also fp64), contiguous.
    n_steps: H + 1.   n_actions: (H + 1) A.
    Where nothing is known, the trust and the anchor's weight are 0.
    Raises ValueError on a wrong shape, stride or device, TypeError on a wrong dtype, as all operators here do.
    """
    check(evidence)
    if evidence.is_cuda:
        from fastdwm.kernels.trust.kernel import weigh_fwd

        return weigh_fwd(evidence, settings, n_steps, n_actions)
    return on_cpu(evidence, "weigh")(evidence, settings, n_steps, n_actions)


def clip(weights: Weights, norm: Tensor) -> Tensor:
    """Factor (B,) of gradients of these norms (B,): the step size, less where the norm is beyond its bound.

    0 for what is not finite, as the step size of an episode of which nothing is known.
    """
    check_tensor("norm", norm, (None,), dtype_of(norm))
    for name, value in (("step", weights.step), ("bound", weights.bound)):
        check_tensor(name, value, norm.shape, norm.dtype, norm.device)
    if norm.is_cuda:
        from fastdwm.kernels.trust.kernel import clip_fwd

        return clip_fwd(weights, norm)
    return on_cpu(norm, "clip")(weights, norm)


def hold(
    action: Tensor, base_action: Tensor, trust: Tensor, evidence: Tensor, settings: TrustSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """The action to execute, no further from the base policy's than the trust allows.

    action, base_action: (B, A).   trust: (B,).   evidence: (B, 8) that it rests on.
    Returns the action held (B, A); its root mean square distance (B,) from base_action before that; and the reason
    (B,), int64: 0 not held, 1 the action was too far, 2 and 3 the trust was low, for the error of the critic or of the
    world model.
    """
    check(evidence, trust=trust)
    for name, value in (("action", action), ("base_action", base_action)):
        check_tensor(name, value, (len(evidence), action.shape[-1]), evidence.dtype, evidence.device)
    if evidence.is_cuda:
        from fastdwm.kernels.trust.kernel import hold_fwd

        return hold_fwd(action, base_action, trust, evidence, settings)
    return on_cpu(evidence, "hold")(action, base_action, trust, evidence, settings)


def observe(
    evidence: Tensor,
    slopes: Tensor,
    norm: Tensor,
    reward: Tensor,
    value: Tensor,
    returns: Tensor,
    discount: float,
    earned: Tensor | None = None,
) -> Tensor:
    """The evidence (B, 8) after a decision.

    slopes: (H + 1, B, M, A), of each particle's J by its actions.   norm: (B,) of the gradient.   reward: (B,) of the
    action taken.   value, returns: V and J (B,) in the state where it was taken.   earned: (B,), the real reward of the
    action before, in place of what the evidence has, where it is not NaN.
    What is not finite changes no running mean, and what is unknown stays so until something is known.
    """
    check(evidence, norm=norm, reward=reward, value=value, returns=returns)
    check_tensor("slopes", slopes, (None, len(evidence), None, None), evidence.dtype, evidence.device)
    if earned is not None:
        check_tensor("earned", earned, evidence.shape[:1], evidence.dtype, evidence.device)
    given = slopes, norm, reward, value, returns, discount
    if evidence.is_cuda:
        from fastdwm.kernels.trust.kernel import observe_fwd

        return observe_fwd(evidence, *given, earned)
    evidence = evidence if earned is None else told(evidence, earned)
    return on_cpu(evidence, "observe")(evidence, *given)


def check(evidence: Tensor, **per_episode: Tensor) -> None:
    check_tensor("evidence", evidence, (None, len(COLUMNS)), dtype_of(evidence))
    for name, value in per_episode.items():
        check_tensor(name, value, evidence.shape[:1], evidence.dtype, evidence.device)


def dtype_of(value: Tensor) -> torch.dtype:
    """The one that is expected."""
    return torch.float64 if value.dtype == torch.float64 and not value.is_cuda else torch.float32


def on_cpu(value: Tensor, name: str):
    """The operator of this name for tensors of this dtype."""
    compiled = cpu_kernels("trust") if value.dtype == torch.float32 else None
    return getattr(reference, f"{name}_reference") if compiled is None else getattr(compiled, f"{name}_compiled")
