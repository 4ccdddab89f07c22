"""The gradient of any objective: from that of each step's own terms back to the policies."""

from typing import Any, NamedTuple

from torch import Tensor


class Gradient(NamedTuple):
    """An objective and its gradient, per policy.

    returns: the objective J (B,).   grads: gradient (B, P) of J.
    action_grads: gradient (H + 1, B, M, A) of each particle's own J with respect to its actions.
    partial_sq_norms: (B, any), parts of the squared norm of grads.
    """

    returns: Tensor
    grads: Tensor
    action_grads: Tensor
    partial_sq_norms: Tensor


def backward(rollout: Any, noise: Tensor, returns: Tensor, direct: Tensor) -> Gradient:
    """The gradient through a rollout.   noise: (H, K, B, M, S).   returns: (B,).

    direct: (H + 1, N, S + A), gradient of each step's own terms in the mean over particles.
    """
    _, _, n_policies, particles, _ = noise.shape
    grads, partial_sq_norms, action_grads = rollout.backward(direct)
    action_grads = particles * action_grads.unflatten(1, (n_policies, particles))
    return Gradient(returns, grads, action_grads, partial_sq_norms)
