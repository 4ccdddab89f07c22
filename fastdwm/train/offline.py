"""The parts of one training run: data, settings, and the networks that are trained so far."""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastdwm.data.dataset import Transitions
from fastdwm.importers.imported import Imported
from fastdwm.models.nets import Params, map_params
from fastdwm.models.policy import MLPFunction, mlp_policy
from fastdwm.models.rebrac import Critics
from fastdwm.models.registry import WORLD_MODELS
from fastdwm.tasks import Task
from fastdwm.train.config import TrainConfig
from fastdwm.train.fit import Batches, Loop

MODEL_COLUMNS = ("obs", "action", "next_obs")
CRITIC_COLUMNS = ("obs", "action", "reward", "next_obs", "next_action", "terminated")

# Random stream of each part, so that adding or removing a part does not change the others.
STREAMS = {"diffusion": 0, "reward": 1, "rebrac": 2, "mlp": 3, "meanflow": 4, "baseline": 5, "fqe": 6}

Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Offline:
    """Everything that the parts of one training run share."""

    task: Task
    transitions: Transitions
    config: TrainConfig
    model_rows: np.ndarray
    """(N,) bool: rows of the episodes that are not held out"""
    statistics: dict[str, Tensor]
    """obs_mean, obs_std, delta_mean, delta_std (S,)"""
    loop: Loop
    imported: Imported | None = None
    """policy, and perhaps critics, of another library; none: both are ReBRAC's"""
    networks: dict[str, Params] = dataclasses.field(default_factory=dict)
    """the parts among policy, critics and reward that are trained so far, on the CPU"""

    @property
    def policy_function(self) -> MLPFunction:
        """The policy's function, from parameters and observations to actions."""
        return mlp_policy if self.imported is None else self.imported.policy_function

    @property
    def critic_activation(self) -> str:
        """Activation of the critics' hidden layers."""
        spec = None if self.imported is None else self.imported.critic_spec
        return "relu" if spec is None else spec.activation

    def actor(self) -> Callable[[Tensor], Tensor]:
        """The trained policy's actions (N, A) in observations (N, S)."""
        return partial(self.policy_function, self.place(self.networks["policy"]))

    def critics(self, params: Params | None = None) -> Critics:
        """The trained critics, or those with other parameters."""
        return Critics(self.place(self.networks["critics"]) if params is None else params, self.critic_activation)

    @property
    def dims(self) -> tuple[int, int]:
        """Sizes of observation and action."""
        return self.transitions.obs.shape[1], self.transitions.action.shape[1]

    def generators(self, part: str) -> tuple[torch.Generator, torch.Generator]:
        """Generators of a part for its initialisation (CPU) and its training (device); parts share none."""
        streams = STREAMS | {name: len(STREAMS) + i for i, name in enumerate(WORLD_MODELS) if name not in STREAMS}
        seed = 1_000 * self.config.seed + 10 * streams[part]
        return (
            torch.Generator().manual_seed(seed),
            torch.Generator(self.config.device).manual_seed(seed + 1),
        )

    @property
    def world_rows(self) -> np.ndarray:
        """(N,) bool: rows that a world model learns from."""
        return self.model_rows & self.transitions.model_rows

    def batches(
        self,
        names: tuple[str, ...],
        rows: np.ndarray,
        replaced: dict[str, np.ndarray] | None = None,
        **extra: Tensor,
    ) -> Batches:
        """Batches of the named columns, with scaled rewards and returns.

        replaced: columns that replace those of the data or are added to them.   extra: more columns, with values for
        `rows` only.
        """
        columns = {name: getattr(self.transitions, name) for name in names} | (replaced or {})
        for name in columns.keys() & {"reward", "return"}:
            columns[name] = columns[name] * np.float32(self.task.reward_scale)
        for name, values in extra.items():
            columns[name] = np.zeros(self.transitions.n, np.float32)
            columns[name][rows] = values.cpu().numpy()
        return Batches(columns, np.flatnonzero(rows), self.config.device)

    def place(self, params: Params) -> Params:
        return map_params(lambda value: value.to(self.config.device), params)


def kept(params: Params) -> Params:
    """The parameters as a bundle holds them: detached, on the CPU."""
    return map_params(lambda value: value.detach().cpu(), params)
