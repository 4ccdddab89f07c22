"""The adapted policies of all episodes, and one step of their optimiser."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.itpo.trust import no_evidence
from fastdwm.kernels.update import adam_ascent, copy_of, sgd_ascent, stepped

DEFAULT_LR = 2e-5
"""of SGD and Adam, where none is given"""


@dataclass(frozen=True)
class Adapted:
    """One flat row of parameters for each episode, and what the optimiser remembers.

    params: (B, P).   first, second: Adam's moments (B, P), or (B, 0) without Adam.   count: Adam's updates (B,).
    evidence: (B, 8), what the trust rests on.
    """

    params: Tensor
    first: Tensor
    second: Tensor
    count: Tensor
    evidence: Tensor

    @classmethod
    def start(cls, base: Tensor, config: ITPOConfig) -> "Adapted":
        """Unadapted policies with the parameters `base` (B, P)."""
        zeros = torch.zeros_like(base if config.optimiser == "adam" else base[:, :0])
        return cls(base, zeros, zeros, torch.zeros_like(base[:, 0]), no_evidence(base))

    def again(self, base: Tensor, config: ITPOConfig) -> "Adapted":
        """Unadapted policies that know what these have learnt of the models."""
        return replace(self.start(base, config), evidence=self.evidence)

    def where(self, mask: Tensor, other: "Adapted") -> "Adapted":
        """This state for the episodes in mask (B,), `other` for the rest."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in TENSORS)
        return Adapted(*(torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs))

    def keep(self, mask: Tensor) -> "Adapted":
        """Only the episodes in mask (B,)."""
        return Adapted(*(getattr(self, name)[mask] for name in TENSORS))


TENSORS = tuple(field.name for field in fields(Adapted))


def lr_of(config: ITPOConfig) -> float:
    """The step size of SGD or Adam."""
    return DEFAULT_LR if config.inner_lr is None else config.inner_lr


def ascend(state: Adapted, grads: Tensor, factor: Tensor | None, config: ITPOConfig) -> Adapted:
    """The state after one step of the optimiser along factor (B,) times the gradient (B, P); `state` stays.

    With the trust the factor is the whole step size. The step may yet be undone: so in copies, where an operator works
    in place.
    """
    if config.optimiser == "trust":
        return replace(state, params=stepped(state.params, grads, factor))
    params, lr = copy_of(state.params), lr_of(config)
    if config.optimiser == "sgd":
        sgd_ascent(params, grads, lr, factor=factor)
        return replace(state, params=params)
    moments = [copy_of(moment) for moment in (state.first, state.second, state.count)]
    adam_ascent(params, grads, *moments, lr, factor=factor)
    return Adapted(params, *moments, state.evidence)
