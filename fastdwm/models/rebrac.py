"""ReBRAC [ReBRAC] 2305.09836: the offline actor and twin critics that ITPO starts from.

Losses, order of the updates, target noise, initialisation and layer norm follow the authors' reference implementation
(corl-team/CORL, algorithms/offline/rebrac.py). Deviations are marked where they are made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdwm.models.config import ReBRACConfig
from fastdwm.models.nets import (
    ACTIVATIONS,
    Params,
    adam,
    copy_params,
    cosine,
    init_mlp,
    map_params,
    mean_squared_error,
    minimise,
    mlp,
    mlp_shapes,
    move_towards,
    set_lr,
    trained,
)
from fastdwm.models.policy import mlp_policy
from fastdwm_kernels import training

MAX_CLONING_WEIGHT = 3.0


def q_values(params: Params, obs: Tensor, action: Tensor, activation: str = "relu") -> Tensor:
    """Values (Q, ...) of obs (..., S) and action (..., A) by each of the Q critics."""
    x = torch.cat([obs, action], -1)
    rows = x.reshape(-1, x.shape[-1])
    n_critics = params["w0"].shape[0]
    q = mlp(params, rows.expand(n_critics, *rows.shape), ACTIVATIONS[activation])
    return q.reshape(n_critics, *x.shape[:-1])


def least_value(params: Params, obs: Tensor, action: Tensor) -> Tensor:
    """min_i Q_i(s, a), (N,), of obs (N, S) and action (N, A); its gradient goes to the action, not to the critics."""
    if isinstance(params, training.PackedParams):
        return training.least_value(params, torch.cat([obs, action], -1))
    return q_values(map_params(Tensor.detach, params), obs, action).amin(0)


@dataclass(frozen=True)
class Critics:
    """The trained critics as a function, for imagination; parameters (Q, ...).

    activation: of the hidden layers, "relu" or "tanh"; a layer norm follows it if there are scale0, shift0, ...
    """

    params: Params
    activation: str = "relu"

    def __call__(self, obs: Tensor, action: Tensor) -> Tensor:
        """Values (Q, ...) of obs (..., S) in raw units and action (..., A) in [-1, 1]."""
        return q_values(self.params, obs, action, self.activation)


def policy_shapes(obs_dim: int, action_dim: int, hidden: tuple[int, ...]) -> dict[str, tuple]:
    """Parameter shapes of one policy."""
    return mlp_shapes((obs_dim, *hidden, action_dim))


def critic_shapes(obs_dim: int, action_dim: int, hidden: tuple[int, ...]) -> dict[str, tuple]:
    """Parameter shapes of the twin critics (2, ...), with layer norm."""
    return mlp_shapes((obs_dim + action_dim, *hidden, 1), copies=2, layer_norm=True)


def init_policy(obs_dim: int, action_dim: int, hidden: tuple[int, ...], generator: torch.Generator) -> Params:
    """Fresh policy: hidden bias 0.1, last layer U(+-1e-3)."""
    return init_mlp(policy_shapes(obs_dim, action_dim, hidden), generator, hidden_bias=0.1, out_bound=1e-3)


def init_critics(obs_dim: int, action_dim: int, hidden: tuple[int, ...], generator: torch.Generator) -> Params:
    """Fresh twin critics: hidden bias 0.1, last layer U(+-3e-3)."""
    return init_mlp(critic_shapes(obs_dim, action_dim, hidden), generator, hidden_bias=0.1, out_bound=3e-3)


def critic_target(
    target_policy: Params, target_critics: Params, batch: dict[str, Tensor], noise: Tensor, config: ReBRACConfig
) -> Tensor:
    """Regression target y of the critics, (N,).

    noise: (N, A) standard normal.   batch: reward, terminated (N,); next_obs (N, S); next_action (N, A), the action
    that the data took next; optional (N,): discount, in place of the settings', and return, a lower bound of y.
    y = r + discount (1 - terminated) (min_i Q_i(s', a') - b2 ||a' - a'_data||^2).
    """
    smoothing = (config.target_noise * noise).clamp(-config.target_noise_clip, config.target_noise_clip)
    next_action = (mlp_policy(target_policy, batch["next_obs"]) + smoothing).clamp(-1, 1)
    penalty = (next_action - batch["next_action"]).square().sum(-1)
    value = least_value(target_critics, batch["next_obs"], next_action) - config.critic_bc_coef * penalty
    target = batch["reward"] + batch.get("discount", config.discount) * (1 - batch["terminated"]) * value
    return torch.maximum(target, batch["return"]) if "return" in batch else target


def critic_loss(
    params: Params, batch: dict[str, Tensor], target: Tensor, activation: str = "relu"
) -> tuple[Tensor, Tensor]:
    """Squared error summed over the critics and averaged over the batch; and the mean value.

    target: (N,), or (Q, N), one for each critic.   activation: of the hidden layers.
    """
    x = torch.cat([batch["obs"], batch["action"]], -1)
    rows = x.expand(len(params["w0"]), *x.shape)
    loss, q = mean_squared_error(params, rows, target.unsqueeze(-1), ACTIVATIONS[activation])
    return loss, q.mean()


def actor_loss(
    params: Params, critic_params: Params, batch: dict[str, Tensor], config: ReBRACConfig, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """mean(b1 w ||pi(s) - a||^2 - lambda min_i Q_i(s, pi(s))), lambda = 1 / mean |min Q|; and the mean BC distance.

    target: (N,) of the critics, for the weights w of `advantage_power`; without it they are 1, as in [ReBRAC].
    """
    action = mlp_policy(params, batch["obs"])
    distance = (action - batch["action"]).square().sum(-1)
    q = least_value(critic_params, batch["obs"], action)
    scale = 1 / q.detach().abs().mean()
    weighted = distance
    if config.advantage_power and target is not None:
        weighted = cloning_weights(target, q.detach(), config.advantage_power) * distance
    return (config.actor_bc_coef * weighted - scale * q).mean(), distance.detach().mean()


def cloning_weights(target: Tensor, value: Tensor, power: float) -> Tensor:
    """Weights (N,) of behaviour cloning: (target / value)^power, both (N,), at most MAX_CLONING_WEIGHT.

    A hundredth of the largest target is added to both, so that states from which the data never reach a reward get
    weight 1. Deviation from [ReBRAC]; the idea is that of advantage-weighted regression, arXiv 1910.00177, with the
    relative advantage, for values that decay exponentially with the distance to a goal.
    """
    floor = target.max().clamp(min=torch.finfo(target.dtype).tiny) / 100
    return ((target.clamp(min=0) + floor) / (value.clamp(min=0) + floor)).pow(power).clamp(max=MAX_CLONING_WEIGHT)


class ReBRAC:
    """A `train.fit.Trainer` of policy and critics with their target networks; each step updates the critics once."""

    def __init__(self, policy: Params, critics: Params, config: ReBRACConfig, generator: torch.Generator):
        """policy, critics: initial parameters (`init_policy`, `init_critics`); `networks` holds the trained ones.
        generator: draws the target noise, on the parameters' device."""
        self.config, self.generator, self.n_updates = config, generator, 0
        policy, critics = trained(policy), trained(critics)
        self.networks = {
            "policy": policy,
            "critics": critics,
            "target_policy": copy_params(policy),
            "target_critics": copy_params(critics),
        }
        self.optimisers = {
            "policy": adam(policy, config.actor_lr),
            "critics": adam(critics, config.critic_lr),
        }

    def advance(self) -> bool:
        """Count an update and set the learning rates; return whether this one updates the policy."""
        self.n_updates += 1
        config = self.config
        share = cosine(self.n_updates - 1, config.updates) if config.lr_decay else 1.0
        set_lr(self.optimisers["policy"], share * config.actor_lr)
        set_lr(self.optimisers["critics"], share * config.critic_lr)
        return self.n_updates % config.policy_period == 0

    def step(self, batch: dict[str, Tensor], with_policy: bool) -> dict[str, Tensor]:
        """Update the critics and, if `with_policy`, the policy and the target networks.

        batch: obs, next_obs (N, S); action, next_action (N, A); reward, terminated (N,); float32.
        Returns for the log: losses, mean value, and mean squared distance of the policy's actions from the data's.
        """
        config, nets = self.config, self.networks
        action = batch["action"]
        noise = torch.randn(action.shape, generator=self.generator, device=action.device)
        with torch.no_grad():
            target = critic_target(nets["target_policy"], nets["target_critics"], batch, noise, config)
        loss, q_mean = critic_loss(nets["critics"], batch, target)
        minimise(self.optimisers["critics"], nets["critics"], loss)
        info = {"critic_loss": loss.detach(), "q_mean": q_mean}
        if with_policy:
            # The target policy follows the policy from before its step, as in the reference implementation.
            move_towards(nets["target_policy"], nets["policy"], config.target_rate)
            loss, distance = actor_loss(nets["policy"], nets["critics"], batch, config, target)
            minimise(self.optimisers["policy"], nets["policy"], loss)
            move_towards(nets["target_critics"], nets["critics"], config.target_rate)
            info |= {"actor_loss": loss.detach(), "bc_distance": distance}
        return info
