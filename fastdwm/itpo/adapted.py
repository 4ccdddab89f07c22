"""The adapted policies of all episodes, and one step of their optimiser."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.kernels.update import adam_ascent, copy_of, sgd_ascent


@dataclass(frozen=True)
class Adapted:
    """One flat row of parameters for each episode, and what the optimiser remembers.

    params: (B, P).   first, second: Adam's moments (B, P), or (B, 0) with SGD.   count: Adam's updates (B,).
    """

    params: Tensor
    first: Tensor
    second: Tensor
    count: Tensor

    @classmethod
    def start(cls, base: Tensor, config: ITPOConfig) -> "Adapted":
        """Unadapted policies with the parameters `base` (B, P)."""
        zeros = torch.zeros_like(base if config.optimiser == "adam" else base[:, :0])
        return cls(base, zeros, zeros, torch.zeros_like(base[:, 0]))

    def where(self, mask: Tensor, other: "Adapted") -> "Adapted":
        """This state for the episodes in mask (B,), `other` for the rest."""
        column = mask.unsqueeze(1)
        return Adapted(
            torch.where(column, self.params, other.params),
            torch.where(column, self.first, other.first),
            torch.where(column, self.second, other.second),
            torch.where(mask, self.count, other.count),
        )

    def keep(self, mask: Tensor) -> "Adapted":
        """Only the episodes in mask (B,)."""
        return Adapted(self.params[mask], self.first[mask], self.second[mask], self.count[mask])


def ascend(state: Adapted, grads: Tensor, factor: Tensor | None, config: ITPOConfig) -> Adapted:
    """The state after one step of the optimiser along factor (B,) times the gradient (B, P); `state` stays.

    The step may yet be undone, and the operators work in place: so in copies.
    """
    params = copy_of(state.params)
    if config.optimiser == "sgd":
        sgd_ascent(params, grads, config.inner_lr, factor=factor)
        return replace(state, params=params)
    moments = [copy_of(moment) for moment in (state.first, state.second, state.count)]
    adam_ascent(params, grads, *moments, config.inner_lr, factor=factor)
    return Adapted(params, *moments)
