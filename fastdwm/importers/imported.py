"""A policy, and its critics if there are any, as read from a file: their parameters and architectures."""

from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from fastdwm.checks import require
from fastdwm.models.config import CriticSpec, PolicySpec
from fastdwm.models.nets import Params, n_layers
from fastdwm.models.policy import MLPFunction
from fastdwm.models.rebrac import Critics
from fastdwm.tasks import Task
from fastdwm.weights import MAX_WEIGHT, check_tensor, pack_tensors

ENTROPY = (
    "the file's critics count entropy as reward, so their values disagree with the rewards; --critic fqe trains new "
    "ones without entropy"
)
"""a note of critics of soft actor-critic methods"""


@dataclass(frozen=True)
class Imported:
    """A policy in raw observations and actions in [-1, 1], float32 on the CPU.

    policy, critics: parameters as in a bundle; critics none: the file has none.
    discount: of the critics, none if the file does not say it.
    standardise: a number e if policy and critics expect observations (s - mean) / (std + e) with the statistics of the
    data that they were trained on, which the file does not hold; none if they take raw observations.
    notes: sentences for the user.
    """

    policy: Params
    policy_spec: PolicySpec
    critics: Params | None = None
    critic_spec: CriticSpec | None = None
    discount: float | None = None
    standardise: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size = sum(self.sizes) if self.critics is None else self.critics["w0"].shape[1]
        expected = f"{self.sizes[0]} observations and {self.sizes[1]} actions"
        require(size == sum(self.sizes), f"the critics take {size} numbers, expected {expected}")

    @property
    def policy_function(self) -> MLPFunction:
        """The policy's function, from parameters and observations to actions."""
        return MLPFunction(self.policy_spec.activation, self.policy_spec.output)

    @property
    def sizes(self) -> tuple[int, int]:
        """Sizes of observation and action."""
        return self.policy["w0"].shape[0], self.policy[f"b{n_layers(self.policy) - 1}"].shape[0]

    def actions(self, obs: Tensor) -> Tensor:
        """The policy's actions (N, A) in observations (N, S)."""
        return self.policy_function(self.policy, obs)

    def values(self, obs: Tensor, action: Tensor) -> Tensor:
        """The critics' values (Q, N) of actions (N, A) in observations (N, S)."""
        return Critics(self.critics, self.critic_spec.activation)(obs, action)

    def check(self, where: str, task: Task) -> None:
        """Raise InputError, which names both, if the sizes are not those of the task.   where: KIND:FILE."""
        own, expected = self.sizes, (task.obs_dim, task.action_dim)
        theirs = f"{task.name} has {expected[0]} and {expected[1]}"
        require(own == expected, f"policy: {where} maps {own[0]} observations to {own[1]} actions, {theirs}")

    def check_values(self) -> None:
        """Raise InputError for numbers that a bundle cannot hold: not finite, or too large."""
        for group, params in (("policy", self.policy), ("critics", self.critics or {})):
            for name, value in params.items():
                check_tensor(f"{group}.{name}", value, tuple(value.shape), MAX_WEIGHT)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of policy and critics, with their architectures."""
        about = repr((self.policy_spec, self.critic_spec, self.standardise)).encode()
        return sha256(pack_tensors({"policy": self.policy, "critics": self.critics or {}}) + about).hexdigest()

    def noting(self, note: str) -> "Imported":
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))

    def with_critics(self, critics: Params, spec: CriticSpec, discount: float | None, soft: bool) -> "Imported":
        """The policy with critics.   soft: whether their values include entropy."""
        result = replace(self, critics=critics, critic_spec=spec, discount=discount)
        return result.noting(ENTROPY) if soft else result

    def normalised(self, shift: np.ndarray, scale: np.ndarray) -> "Imported":
        """Fold a normalisation of observations, (s - shift) / scale, into the first layers.

        shift, scale: (S,) float64.   Raises InputError for other sizes, and for scales that are not positive.
        """
        obs_dim = self.sizes[0]
        right = shift.shape == scale.shape == (obs_dim,) and bool((np.isfinite(scale) & (scale > 0)).all())
        require(right, f"expected positive scales of {obs_dim} observations, got shape {scale.shape}")
        policy = scaled_inputs(self.policy, shift, scale)
        if self.critics is None:
            return replace(self, policy=policy)
        action_dim = self.critics["w0"].shape[1] - obs_dim
        both = (np.append(x, [fill] * action_dim) for x, fill in ((shift, 0.0), (scale, 1.0)))
        return replace(self, policy=policy, critics=scaled_inputs(self.critics, *both))

    def for_data(self, obs: np.ndarray) -> "Imported":
        """The same for raw observations, by the statistics of the data (N, S) if `standardise` asks for them."""
        if self.standardise is None:
            return self
        obs = obs.astype(np.float64)
        return replace(self.normalised(obs.mean(0), obs.std(0) + self.standardise), standardise=None)


def scaled_inputs(params: Params, shift: np.ndarray, scale: np.ndarray) -> Params:
    """Parameters of the network whose input x the given one gets as (x - shift) / scale; both (d_in,)."""
    w, b = params["w0"].double(), params["b0"].double()
    w = w / torch.from_numpy(scale).unsqueeze(-1)
    b = b - (torch.from_numpy(shift).unsqueeze(-1) * w).sum(-2)
    return params | {"w0": w.float(), "b0": b.float()}


def scaled_outputs(params: Params, factor: np.ndarray | float, shift: np.ndarray | float = 0.0) -> Params:
    """Parameters of the network with the output factor y + shift; both scalars or (d_out,)."""
    last = n_layers(params) - 1
    factor, shift = torch.as_tensor(factor, dtype=torch.float64), torch.as_tensor(shift, dtype=torch.float64)
    w, b = (params[f"{name}{last}"].double() * factor for name in "wb")
    return params | {f"w{last}": w.float(), f"b{last}": (b + shift).float()}


def averaged_outputs(params: Params) -> Params:
    """Parameters of the network whose only output is the mean of the outputs, such as quantiles."""
    last = n_layers(params) - 1
    w, b = (params[f"{name}{last}"].double().mean(-1, keepdim=True).float() for name in "wb")
    return params | {f"w{last}": w, f"b{last}": b}
