"""From the gradient of each step's own terms to that of the policies: what every objective has in common."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Anchor:
    """A penalty l |a_0 - action|^2 on the policy's action in the real state, where all particles are.

    action: (B, A), that of the base policy there.   weight: l of each episode (B,).
    """

    action: Tensor
    weight: Tensor


class Gradient(NamedTuple):
    """The way up, per policy.

    returns: the objective J (B,).   grads: gradient (B, P) of J less the anchor's penalty.
    slopes: gradient (H + 1, B, M, A) of each particle's own J with respect to its actions, without the anchor.
    squares: (B, any), parts of the gradients' squared norms, where the operators leave them.
    anchored: (B,), the terminal value of the real state with the anchor's action, where the operators leave it.
    """

    returns: Tensor
    grads: Tensor
    slopes: Tensor
    squares: Tensor | None = None
    anchored: Tensor | None = None


def backward(
    rollout: Any, actions: Tensor, noise: Tensor, returns: Tensor, direct: Tensor, anchor: Anchor | None
) -> Gradient:
    """Back through the rollout.   actions: (H + 1, N, A) of it.   noise: (H, K, B, M, S).   returns: (B,).

    direct: (H + 1, N, S + A), gradient of each step's own terms, with the mean over particles in it.
    """
    _, _, n_policies, particles, obs_dim = noise.shape
    if anchor is None:
        grads, slopes = rollout.backward(direct)
    else:
        pull = pull_of(anchor, actions[0].view(n_policies, particles, -1)).flatten(0, 1)
        # Not by -=, which would write what it changed in place once more.
        direct[0, :, obs_dim:].sub_(pull)
        grads, slopes = rollout.backward(direct)
        slopes[0].add_(pull)
    return Gradient(returns, grads, particles * slopes.unflatten(1, (n_policies, particles)))


def pull_of(anchor: Anchor, actions: Tensor) -> Tensor:
    """Gradient of the penalty with respect to the first actions (B, M, A), as the mean over particles."""
    weight = (2 / actions.shape[1]) * anchor.weight.view(-1, 1, 1)
    return (actions - anchor.action.unsqueeze(1)).mul_(weight)
