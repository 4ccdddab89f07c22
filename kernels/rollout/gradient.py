"""From the gradient of each step's own terms to that of the policies: what every objective has in common."""

from typing import Any, NamedTuple

from torch import Tensor


class Gradient(NamedTuple):
    """The imagined return and its gradient, per policy.

    returns: the objective J (B,).   grads: gradient (B, P) of J.
    action_grads: gradient (H + 1, B, M, A) of each particle's own J with respect to its actions.
    partial_sq_norms: (B, any), parts of the squared norm of grads.
    """

    returns: Tensor
    grads: Tensor
    action_grads: Tensor
    partial_sq_norms: Tensor


def backward(rollout: Any, noise: Tensor, returns: Tensor, direct: Tensor) -> Gradient:
    """Back through the rollout.   noise: (H, K, B, M, S).   returns: (B,).

    direct: (H + 1, N, S + A), gradient of each step's own terms, with the mean over particles in it.
    """
    _, _, n_policies, particles, _ = noise.shape
    grads, partial_sq_norms, action_grads = rollout.backward(direct)
    action_grads = particles * action_grads.unflatten(1, (n_policies, particles))
    return Gradient(returns, grads, action_grads, partial_sq_norms)
