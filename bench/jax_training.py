"""Training updates in JAX, with jit and the same losses; used only as a benchmark peer.

One compiled function draws the batch and the noise, differentiates the losses and steps Adam and the moving averages,
as `train.fit` and `models.rebrac` do in torch. `check` compares losses and gradients with torch's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jax_twin import jax, jnp, mlp, start
from torch import Tensor

from fastdwm.models.diffusion import build_diffusion, vp_schedule
from fastdwm.models.meanflow import T_FLOOR, draw_times, frequencies
from fastdwm.models.nets import leaves
from fastdwm.models.rebrac import actor_loss, critic_loss, critic_target
from fastdwm.train.fit import Batches

BOUND = 2e-5
"""largest accepted relative difference of a loss or a gradient from torch's"""


def arrays(params: dict) -> dict:
    return {name: jnp.asarray(value.detach().numpy()) for name, value in params.items()}


def adam(params: dict, grads: dict, moments: tuple, count, lr, max_norm: float | None = None) -> tuple[dict, tuple]:
    """One step of Adam as torch takes it; `count` includes this step."""
    if max_norm is not None:
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1, max_norm / (norm + 1e-6)), grads)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], grads)
    root = jnp.sqrt(1 - 0.999**count)
    step = jax.tree.map(lambda m, v: lr / (1 - 0.9**count) * m / (jnp.sqrt(v) / root + 1e-8), first, second)
    return jax.tree.map(jnp.subtract, params, step), (first, second)


def follow(target: dict, source: dict, rate: float) -> dict:
    return jax.tree.map(lambda a, b: a + rate * (b - a), target, source)


def zeros(params: dict) -> tuple:
    return tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(2))


class Part:
    """A part's losses, and one update of its networks.

    begin(networks): the state of a training.   step(state, batch, key, count, lr_share, kind): the state after one
    update, and its loss.   kind(n_updates): of this update, which is compiled by itself.
    pairs(trainer, batch, generator): for each loss the name of its network, its value by torch, and JAX's loss as a
    function of the network.
    """

    def __init__(self, config: Any):
        self.config = config

    def batch(self, key, matrix, slices: dict) -> dict:
        index = jax.random.randint(key, (self.config.batch_size,), 0, len(matrix))
        rows = matrix[index]
        return {name: rows[:, columns] for name, columns in slices.items()}


class ReBRAC(Part):
    """As `models.rebrac`; an update is of one of two kinds, with the policy or without."""

    def policy(self, params, obs):
        return jnp.tanh(mlp(params, obs, jax.nn.relu))

    def values(self, params, obs, action):
        x = jnp.concatenate([obs, action], -1)
        return mlp(params, jnp.broadcast_to(x, (len(params["w0"]), *x.shape)), jax.nn.relu)[..., 0]

    def target(self, policy, critics, batch, noise):
        config = self.config
        smoothing = jnp.clip(config.target_noise * noise, -config.target_noise_clip, config.target_noise_clip)
        action = jnp.clip(self.policy(policy, batch["next_obs"]) + smoothing, -1, 1)
        penalty = jnp.square(action - batch["next_action"]).sum(-1)
        value = self.values(critics, batch["next_obs"], action).min(0) - config.critic_bc_coef * penalty
        return batch["reward"] + config.discount * (1 - batch["terminated"]) * value

    def critic_loss(self, params, batch, target):
        return jnp.square(self.values(params, batch["obs"], batch["action"]) - target).mean(-1).sum()

    def actor_loss(self, params, critics, batch):
        action = self.policy(params, batch["obs"])
        distance = jnp.square(action - batch["action"]).sum(-1)
        q = self.values(critics, batch["obs"], action).min(0)
        scale = 1 / jax.lax.stop_gradient(jnp.abs(q).mean())
        return (self.config.actor_bc_coef * distance - scale * q).mean()

    def begin(self, networks: dict) -> dict:
        return {"networks": networks, "policy": zeros(networks["policy"]), "critics": zeros(networks["critics"])}

    def kind(self, n_updates: int) -> bool:
        return n_updates % self.config.policy_period == 0

    def step(self, state, batch, key, count, lr_share, with_policy: bool):
        config, nets = self.config, dict(state["networks"])
        noise = jax.random.normal(key, batch["action"].shape)
        target = self.target(nets["target_policy"], nets["target_critics"], batch, noise)
        loss, grads = jax.value_and_grad(self.critic_loss)(nets["critics"], batch, target)
        nets["critics"], critics = adam(nets["critics"], grads, state["critics"], count, lr_share * config.critic_lr)
        policy = state["policy"]
        if with_policy:
            nets["target_policy"] = follow(nets["target_policy"], nets["policy"], config.target_rate)
            grads = jax.grad(self.actor_loss)(nets["policy"], nets["critics"], batch)
            lr, steps = lr_share * config.actor_lr, count // config.policy_period
            nets["policy"], policy = adam(nets["policy"], grads, policy, steps, lr)
            nets["target_critics"] = follow(nets["target_critics"], nets["critics"], config.target_rate)
        return {"networks": nets, "policy": policy, "critics": critics}, loss

    def lr_share(self, n_updates: int) -> float:
        return 1.0

    def pairs(self, trainer: Any, batch: dict[str, Tensor], generator: torch.Generator):
        nets, own = trainer.networks, {name: arrays(params) for name, params in trainer.networks.items()}
        noise, rows = torch.randn(batch["action"].shape, generator=generator), arrays(batch)
        with torch.no_grad():
            target = critic_target(nets["target_policy"], nets["target_critics"], batch, noise, self.config)
        own_target = self.target(own["target_policy"], own["target_critics"], rows, jnp.asarray(noise.numpy()))
        yield (
            "critics",
            critic_loss(nets["critics"], batch, target)[0],
            partial(self.critic_loss, batch=rows, target=own_target),
        )
        loss = actor_loss(nets["policy"], nets["critics"], batch, self.config)[0]
        yield "policy", loss, partial(self.actor_loss, critics=own["critics"], batch=rows)


class WorldModel(Part):
    """Adam with a cosine learning rate, clipped gradients and a moving average of the weights."""

    def begin(self, networks: dict) -> dict:
        return {"networks": networks, "moments": zeros(networks["raw"])}

    def kind(self, n_updates: int) -> bool:
        return False

    def step(self, state, batch, key, count, lr_share, kind: bool):
        config, nets = self.config, state["networks"]
        loss, grads = jax.value_and_grad(self.loss)(nets["raw"], batch, *self.draw(key, batch))
        raw, moments = adam(nets["raw"], grads, state["moments"], count, lr_share * config.lr, config.grad_clip)
        nets = {"raw": raw, "averaged": follow(nets["averaged"], raw, config.ema_rate)}
        return {"networks": nets, "moments": moments}, loss

    def lr_share(self, n_updates: int) -> float:
        return 0.5 * (1 + np.cos(np.pi * n_updates / self.config.updates))

    def normalise(self, batch):
        scale = self.scale
        change = (batch["next_obs"] - batch["obs"] - scale["delta_mean"]) / scale["delta_std"]
        return (batch["obs"] - scale["obs_mean"]) / scale["obs_std"], change

    def pairs(self, trainer: Any, batch: dict[str, Tensor], generator: torch.Generator):
        state = generator.get_state()
        draws = [jnp.asarray(value.numpy()) for value in self.draw_torch(batch, generator)]
        loss = trainer.loss(trainer.networks["raw"], batch, generator.set_state(state))
        yield "raw", loss, lambda params: self.loss(params, arrays(batch), *draws)


class MeanFlow(WorldModel):
    """As `models.meanflow`, with the default settings alone."""

    def __init__(self, config: Any, statistics: dict[str, Tensor]):
        super().__init__(config)
        self.scale = arrays(statistics)
        self.frequencies = jnp.asarray(frequencies(config.time_features // 4, torch.float32, torch.device("cpu")))
        if (config.target, config.objective, config.time_law) != ("x", "imf", "uniform"):
            raise ValueError("meanflow: expected the default target, objective and time law")

    def draw(self, key, batch):
        times, noise = jax.random.split(key)
        times = jax.random.uniform(times, (2, len(batch["obs"])))
        r, t, n = times.min(0), times.max(0), self.config.equal_rows(len(batch["obs"]))
        return jnp.concatenate([t[:n], r[n:]]), t, jax.random.normal(noise, batch["obs"].shape)

    def draw_torch(self, batch, generator):
        r, t = draw_times(self.config, len(batch["obs"]), generator)
        return r, t, torch.randn(batch["obs"].shape, generator=generator)

    def velocity(self, params, condition, action, r, z, t):
        angle = (jnp.stack([t, t - r], -1)[..., None] * self.frequencies).reshape(len(t), -1)
        x = jnp.concatenate([z, condition, action, jnp.sin(angle), jnp.cos(angle)], -1)
        return (z - mlp(params, x, jax.nn.silu)) / jnp.maximum(t, T_FLOOR)[:, None]

    def loss(self, params, batch, r, t, noise):
        (condition, clean), action = self.normalise(batch), batch["action"]
        velocity, n = noise - clean, self.config.equal_rows(len(t))
        z = clean + t[:, None] * velocity
        first, last = (partial(self.velocity, params, condition[k], action[k]) for k in (slice(n), slice(n, None)))
        direction = jax.lax.stop_gradient(last(t[n:], z[n:], t[n:]))
        u, slope = jax.jvp(partial(last, r[n:]), (z[n:], t[n:]), (direction, jnp.ones_like(t[n:])))
        u += (t - r)[n:, None] * jax.lax.stop_gradient(slope)
        error = (jnp.concatenate([first(r[:n], z[:n], t[:n]), u]) - velocity) * jnp.maximum(t, T_FLOOR)[:, None]
        return (jnp.square(error).mean(-1) * batch["weight"]).mean()


class Diffusion(WorldModel):
    """As `models.diffusion`."""

    def __init__(self, config: Any, statistics: dict[str, Tensor]):
        super().__init__(config)
        self.scale = arrays(statistics)
        self.abar = jnp.asarray(vp_schedule(config.denoise_steps).abar.float().numpy())
        self.embedding = jnp.asarray(build_diffusion({}, statistics, config).embedding.numpy())

    def draw(self, key, batch):
        index, noise = jax.random.split(key)
        shape = batch["obs"].shape
        return jax.random.randint(index, shape[:1], 0, len(self.abar)), jax.random.normal(noise, shape)

    def draw_torch(self, batch, generator):
        index = torch.randint(self.config.denoise_steps, (len(batch["obs"]),), generator=generator)
        return index, torch.randn(batch["obs"].shape, generator=generator)

    def loss(self, params, batch, index, noise):
        condition, clean = self.normalise(batch)
        abar = self.abar[index][:, None]
        noisy = jnp.sqrt(abar) * clean + jnp.sqrt(1 - abar) * noise
        x = jnp.concatenate([noisy, condition, batch["action"], self.embedding[index]], -1)
        target = noise if self.config.target == "eps" else clean
        return jnp.square(mlp(params, x, jax.nn.silu) - target).mean()


PARTS = ("rebrac", "meanflow", "diffusion")


def part_of(name: str, trainer: Any, statistics: dict[str, Tensor]) -> Part:
    if name == "rebrac":
        return ReBRAC(trainer.config)
    return {"meanflow": MeanFlow, "diffusion": Diffusion}[name](trainer.config, statistics)


def check(part: Part, trainer: Any, batches: Batches) -> None:
    """Raise AssertionError unless losses and gradients on one batch are torch's within BOUND."""
    generator = torch.Generator().manual_seed(3)
    batch = batches.sample(part.config.batch_size, generator)
    for name, loss, own in part.pairs(trainer, batch, generator):
        params = trainer.networks[name]
        value, grads = jax.jit(jax.value_and_grad(own))(arrays(params))
        expected = torch.autograd.grad(loss, leaves(params))
        packed = len(expected) < len(params)
        expected = params.views(expected[0]) if packed else dict(zip(params, expected, strict=True))
        differences = [float(value) - loss.item(), *(np.asarray(grads[k]) - expected[k].numpy() for k in grads)]
        sizes = [loss.item(), *(value.numpy() for value in expected.values())]
        errors = [norm(differences[:1]) / norm(sizes[:1]), norm(differences[1:]) / norm(sizes[1:])]
        assert max(errors) < BOUND, f"{name}: loss and gradient differ from torch's by {errors}"


def norm(values: list) -> float:
    return float(np.sqrt(sum(np.square(np.asarray(value, np.float64)).sum() for value in values)))


def updates(name: str, trainer: Any, batches: Batches, statistics: dict[str, Tensor]) -> Callable[[int], None]:
    """A function that does n updates and waits for them; compares losses and gradients with torch's first."""
    start(torch.get_num_threads(), "cpu")
    part = part_of(name, trainer, statistics)
    check(part, trainer, batches)
    matrix, n_updates = jnp.asarray(batches.matrix.numpy()), 0
    networks = {network: arrays(params) for network, params in trainer.networks.items()}
    state = part.begin(networks) | {"key": jax.random.key(0)}

    @partial(jax.jit, static_argnames="kind", donate_argnums=0)
    def run(state, matrix, count, lr_share, kind):
        key, rows, noise = jax.random.split(state["key"], 3)
        after, loss = part.step(state, part.batch(rows, matrix, batches.slices), noise, count, lr_share, kind)
        return after | {"key": key}, loss

    def advance(n: int) -> None:
        nonlocal state, n_updates
        for _ in range(n):
            share = part.lr_share(n_updates)
            n_updates += 1
            state, loss = run(state, matrix, n_updates, share, kind=part.kind(n_updates))
        assert np.isfinite(jax.block_until_ready(loss))
        jax.block_until_ready(state)

    return advance
