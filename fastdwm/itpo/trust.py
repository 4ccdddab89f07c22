"""How far each episode's policy may go: as far as the models have proved right in what really happened.

Everything is measured in the problem's own units, so that no setting depends on the scale of returns or of networks.
With the slope P of the imagined return, per unit of action, and the error e of the models on real transitions,

    trust    tau = 1 / (1 + x^6), x = e / (P doubt)  a slope is climbed where it is more than the error; x is its mean
                                                     with twenty decisions of x = 2: an episode begins in doubt
    anchor   (H + 1) P / (2 radius tau)              weight of |a - a_0|^2: beyond radius tau the slope does not pay
    step     speed radius tau (H + 1) A P / G2       step size: to first order a step gains what all imagined actions,
                                                     moved by speed radius tau along the usual slope, would gain
    action   a_0 + min(1, 2 tau) (a - a_0)           what is executed, at most `leash` away from a_0: what is no longer
                                                     believed is no longer done

with a the adapted policy's action in the real state, a_0 the base policy's, A numbers each, |.| a root mean square, P
the geometric mean of |dJ/da| over the imagined actions of the whole episode, G2 the mean of the gradient's squared norm
over the last decisions. e is the larger of two more of those: of |r + g V(s') - V(s)| with V(s) = Q(s, pi_0(s)), which
a wrong critic raises, and of |r + g J' - J| between the imagined returns of successive decisions, which a wrong world
model raises as well. P forgets nothing, as slopes and errors grow together where an adapted policy leaves the data:
the errors there are to be compared with what was promised where the data are.
Sources: the penalty and the bound on the policy's change are those of trust-region (arXiv 1502.05477) and proximal
(1707.06347) policy optimisation, in actions, as the policies are deterministic; a step size from the gain that it
promises is Polyak's, and the running square of the gradient RMSProp's, by one number. To believe a model by its error
on real transitions: our own.
"""

import torch
from torch import Tensor

from fastdwm.config import ITPOConfig
from fastdwm.kernels.trust import COLUMNS, COUNT, REWARD, TrustSettings

DEFAULTS = {"radius": 1.0, "speed": 0.012, "leash": 0.4, "doubt": 0.7}


def settings_of(config: ITPOConfig) -> TrustSettings:
    """The settings given, and the defaults for the others."""
    given = {name: getattr(config, name) for name in DEFAULTS}
    filled = {name: float(DEFAULTS[name] if value is None else value) for name, value in given.items()}
    return TrustSettings(**filled, guarded=config.guard != "off")


def no_evidence(like: Tensor) -> Tensor:
    """(B, 8) of episodes that have not begun; like: (B, ...)."""
    evidence = like.new_full((len(like), len(COLUMNS)), torch.nan)
    evidence[:, COUNT] = 0
    return evidence


def interrupted(evidence: Tensor) -> Tensor:
    """The evidence without the last decision: what comes next is compared with nothing."""
    return torch.cat([evidence[:, :REWARD], torch.full_like(evidence[:, REWARD:], torch.nan)], 1)
