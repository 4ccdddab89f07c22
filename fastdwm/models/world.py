"""The frozen models of imagination: a transition model, a reward and a critic, the project's own or the user's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastdwm.checks import require
from fastdwm.errors import InputError
from fastdwm.models.nets import Params
from fastdwm.tasks import Limit

Scalar = Callable[[Tensor, Tensor], Tensor]
"""f(obs (..., S), action (..., A)): values (...)"""
Terminates = Callable[[Tensor], Tensor]
"""f(obs (..., S)): (...) bool, whether the episode terminates in this state"""


class Dynamics(Protocol):
    """The interface of a transition model.

    noise_steps: Gaussian vectors (S,) per transition; 0 for a model without noise.
    """

    noise_steps: int

    def next_obs(self, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Next observation (..., S) of obs (..., S), raw units, action (..., A) in [-1, 1] and standard normal noise
        (noise_steps, ..., S). It is differentiable in obs and action, and depends on its arguments alone."""


class SamplerDynamics(Dynamics, Protocol):
    """A transition model that is a sampler in normalised units, as the fused operators run it.

    next_obs = obs + delta_mean + delta_std y, where y is the sample given (obs - obs_mean) / obs_std and the action.
    """

    obs_mean: Tensor
    obs_std: Tensor
    delta_mean: Tensor
    delta_std: Tensor

    def sampler(self) -> tuple[Params, Tensor, Tensor]:
        """Parameters, embedding and coefficients for `kernels.sampler.pack_sampler`."""

    def sampler_noise(self, noise: Tensor) -> Tensor:
        """Noise (H, noise_steps, B, M, S) in the form that the fused sampler reads, (H, K, B, M, S)."""


def sizes_of(dynamics: Dynamics) -> tuple[int, int] | None:
    """Sizes (S, A) of observation and action of a sampler; none for another model, which does not state them."""
    if not hasattr(dynamics, "sampler"):
        return None
    params, embedding, _ = dynamics.sampler()
    obs_dim = len(dynamics.obs_mean)
    return obs_dim, params["w0"].shape[-2] - 2 * obs_dim - embedding.shape[-1]


@dataclass(frozen=True)
class World:
    """The frozen models of imagination; tensors of one dtype and device, float32 for an agent.

    reward(obs, action): (...) of obs (..., S) in raw units and action (..., A).
    critic(obs, action): value (...) of the action when the policy acts afterwards; (Q, ...) for an ensemble.
    discount: gamma, in (0, 1].   limits: the healthy region, for the settings of `termination`.
    terminates: your own condition; an imagined state that it holds in ends the rollout, whatever `termination` is. It
    runs on the reference path, and has no gradient.
    All three models are called with up to three leading axes, (H, B, M), and must be differentiable.
    Raises InputError for another discount.
    """

    dynamics: Dynamics
    reward: Scalar
    critic: Scalar
    discount: float
    limits: tuple[Limit, ...] = ()
    terminates: Terminates | None = None

    def __post_init__(self) -> None:
        require(0 < self.discount <= 1, f"discount: expected a number in (0, 1], got {self.discount}")


def terminal_value(world: World, obs: Tensor, action: Tensor, kind: str = "min") -> Tensor:
    """Value (...) of obs (..., S) and action (..., A); the minimum, mean or first of an ensemble.

    Raises InputError for a critic that returns another shape than (...) or (Q, ...).
    """
    q, rows = world.critic(obs, action), obs.shape[:-1]
    if q.shape == rows:
        return q
    if q.shape[1:] != rows:
        raise InputError(f"critic: expected shape {tuple(rows)} or one more axis before it, got {tuple(q.shape)}")
    return {"min": lambda: q.amin(0), "mean": lambda: q.mean(0), "first": lambda: q[0]}[kind]()
