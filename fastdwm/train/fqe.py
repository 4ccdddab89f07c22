"""Fitted Q evaluation: the value of a frozen policy from the data alone.

[FQE] Le, Voloshin and Yue, arXiv 1903.08738. It trains critics for a policy that has none, and checks those of ReBRAC,
which were trained with a penalty, the minimum of two and a policy that still changed; here all three are absent.
Deviation: a check starts from the bundle's critics instead of anew, so that few updates show how far they were off.
"""

import torch
from torch import Tensor

from fastdwm.importers.imported import Imported, scaled_outputs
from fastdwm.models.config import ReBRACConfig
from fastdwm.models.nets import Params, adam, copy_params, cosine, minimise, move_towards, set_lr, trained
from fastdwm.models.policy import MLPFunction, mlp_policy
from fastdwm.models.rebrac import critic_loss, init_critics, q_values
from fastdwm.train.offline import CRITIC_COLUMNS, Metrics, Offline, kept


class FQE:
    """A `fit.Trainer` by which each critic separately learns the value of the frozen policy."""

    def __init__(
        self,
        policy: Params,
        critics: Params,
        config: ReBRACConfig,
        updates: int,
        generator: torch.Generator,
        function: MLPFunction = mlp_policy,
        activation: str = "relu",
    ):
        """policy, critics: initial parameters; they are copied.   config: discount, step size and target rate.
        generator: on their device.   function: of the policy, from its parameters to actions.   activation: of the
        critics' hidden layers."""
        self.config, self.updates, self.generator, self.n_updates = config, updates, generator, 0
        self.function, self.activation = function, activation
        self.policy = trained(copy_params(policy), compiled=function.activation == "relu")
        critics = trained(copy_params(critics), compiled=activation == "relu")
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
            next_action = self.function(self.policy, batch["next_obs"])
            value = q_values(target, batch["next_obs"], next_action, self.activation)
            y = batch["reward"] + self.config.discount * (1 - batch["terminated"]) * value
        loss, q_mean = critic_loss(critics, batch, y, self.activation)
        minimise(self.optimisers["critics"], critics, loss)
        move_towards(target, critics, self.config.target_rate)
        return {"critic_loss": loss.detach(), "q_mean": q_mean}


def keep_policy(run: Offline, imported: Imported) -> dict[str, Metrics]:
    """Take over the policy, and its critics or new ones by fitted Q evaluation; return their metrics by part."""
    run.networks["policy"] = imported.policy
    if imported.critics is not None:
        run.networks["critics"] = scaled_outputs(imported.critics, run.task.reward_scale)
        return {}
    config, (init, generator) = run.config.rebrac, run.generators("rebrac")
    critics = run.place(init_critics(*run.dims, config.hidden, init))
    trainer = FQE(
        run.place(imported.policy), critics, config, config.updates, generator, function=imported.policy_function
    )
    batches = run.batches(CRITIC_COLUMNS, run.transitions.critic_rows)
    metrics = run.loop.fit("critics", trainer, batches, config.batch_size, config.updates)
    run.networks["critics"] = kept(trainer.networks["critics"])
    return {"critics": metrics}


def check_critics(run: Offline) -> Metrics:
    """Value of the policy in the first states of the episodes: the minimum of the critics, which ITPO uses, and the
    mean of fitted Q evaluation.

    data: mean discounted return of the recorded episodes, which the policy should exceed.   {} without updates.
    """
    config, updates = run.config.rebrac, run.config.fqe_updates
    if updates == 0:
        return {}
    policy, critics = (run.place(run.networks[name]) for name in ("policy", "critics"))
    functions = run.policy_function, run.critic_activation
    trainer = FQE(policy, critics, config, updates, run.generators("fqe")[1], *functions)
    batches = run.batches(CRITIC_COLUMNS, run.transitions.critic_rows)
    run.loop.fit("fqe", trainer, batches, config.batch_size, updates)
    obs = torch.from_numpy(run.transitions.obs[run.transitions.episode_starts]).to(run.config.device)
    values = {
        "critics": first_values(run, critics, obs).amin(0).mean().item(),
        "fqe": first_values(run, trainer.networks["critics"], obs).mean().item(),
    }
    returns = run.transitions.discounted_returns(config.discount) * run.task.reward_scale
    return values | {"data": float(returns.mean())}


@torch.no_grad()
def first_values(run: Offline, critics: Params, obs: Tensor) -> Tensor:
    """Values (Q, N) by these critics of the policy's actions in observations (N, S)."""
    return run.critics(critics)(obs, run.actor()(obs))
