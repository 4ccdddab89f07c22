"""Fitted Q evaluation of the trained policy from the data alone, to check the values of its critics.

[FQE] Le, Voloshin and Yue, arXiv 1903.08738. The critics that ITPO uses were trained with ReBRAC's penalty, the minimum
of two and a policy that still changed; here all three are absent. Deviation: it starts from those critics instead of
anew, so that few updates show how far they were off.
"""

import torch
from torch import Tensor

from fastdwm.models.config import ReBRACConfig
from fastdwm.models.nets import Params, adam, copy_params, cosine, minimise, move_towards, set_lr, trained
from fastdwm.models.policy import mlp_policy
from fastdwm.models.rebrac import critic_loss, q_values


class FQE:
    """A `fit.Trainer` by which each critic separately learns the value of the frozen policy."""

    def __init__(self, policy: Params, critics: Params, config: ReBRACConfig, updates: int, generator: torch.Generator):
        """policy, critics: trained; they are copied.   config: of their training.   generator: on their device."""
        self.config, self.updates, self.generator, self.n_updates = config, updates, generator, 0
        self.policy, critics = trained(copy_params(policy)), trained(copy_params(critics))
        self.networks = {"critics": critics, "target": copy_params(critics)}
        self.optimisers = {"critics": adam(critics, config.critic_lr)}

    def advance(self) -> None:
        """Count an update and set its learning rate; all steps are of one kind."""
        set_lr(self.optimisers["critics"], self.config.critic_lr * cosine(self.n_updates, self.updates))
        self.n_updates += 1

    def step(self, batch: dict[str, Tensor], kind: None = None) -> dict[str, Tensor]:
        """Take one regression step on a batch of ReBRAC.   y_i = r + discount (1 - terminated) Q_i(s', pi(s'))."""
        critics, target = self.networks["critics"], self.networks["target"]
        with torch.no_grad():
            value = q_values(target, batch["next_obs"], mlp_policy(self.policy, batch["next_obs"]))
            y = batch["reward"] + self.config.discount * (1 - batch["terminated"]) * value
        loss, q_mean = critic_loss(critics, batch, y)
        minimise(self.optimisers["critics"], critics, loss)
        move_towards(target, critics, self.config.target_rate)
        return {"critic_loss": loss.detach(), "q_mean": q_mean}


def action_values(policy: Params, critics: Params, obs: Tensor) -> Tensor:
    """Values (Q, N) of the policy's actions in observations (N, S)."""
    with torch.no_grad():
        return q_values(critics, obs, mlp_policy(policy, obs))
