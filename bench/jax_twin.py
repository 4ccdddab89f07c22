"""Rollout gradient in JAX, with jit and scan over steps and denoiser calls; used only as a benchmark peer."""

import os
from collections.abc import Callable

import numpy as np
import torch
from problems import Problem

# JAX reads these when it starts: allocate memory on demand, and use as many threads as the other peers.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
if torch.get_num_threads() == 1:
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

# On a GPU the default is TF32, where all other peers' float32 products are exact.
jax.config.update("jax_default_matmul_precision", "highest")


def start(threads: int, platform: str) -> jax.Device:
    """Device to run on; JAX starts as many CPU threads as the process may use at that moment."""
    if platform != "cpu":
        return jax.devices("gpu")[0]
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[-threads:]))
    try:
        return jax.devices("cpu")[0]
    finally:
        os.sched_setaffinity(0, allowed)


def gradient(problem: Problem, threads: int) -> Callable:
    """Function without arguments that returns J (B,) and its gradient (B, P), as `ReferenceObjective.gradient` does."""
    device = start(threads, problem.size.device)

    def place(tree):
        return jax.tree.map(lambda t: jax.device_put(np.asarray(t.cpu()), device), tree)

    world, layout = problem.world, problem.policy.layout
    params, obs, noise = problem.arguments
    models = place(
        {
            "dynamics": {k: getattr(world.dynamics, k) for k in STATISTICS} | {"params": world.dynamics.params},
            "reward": world.reward.params,
            "critics": world.critic.params,
        }
    )
    policies, obs, noise = place(layout.views(params)), *place((obs, noise))

    @jax.jit
    def run(policies, models, obs, noise):
        def total(policies):
            returns = imagined_return(policies, models, world.discount, obs, noise)
            return returns.sum(), returns

        grads, returns = jax.grad(total, has_aux=True)(policies)
        return returns, grads

    def call():
        returns, grads = jax.block_until_ready(run(policies, models, obs, noise))
        flat = [grads[name].reshape(len(returns), -1) for name in layout.shapes]
        padding = np.zeros((len(returns), layout.width - layout.n_params), np.float32)
        return np.array(returns), np.concatenate([*map(np.asarray, flat), padding], 1)

    return call


STATISTICS = ("coefficients", "embedding", "obs_mean", "obs_std", "delta_mean", "delta_std")


def mlp(params: dict, x, activation, start: int = 0):
    """Same as `fastdwm.models.nets.mlp`, from layer `start` on; parameters (..., d_in, d_out), x (..., N, d_in)."""
    last = sum(name.startswith("w") for name in params) - 1
    for i in range(start, last):
        x = activation(x @ params[f"w{i}"] + params[f"b{i}"][..., None, :])
        if f"scale{i}" in params:
            x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * params[f"scale{i}"][..., None, :] + params[f"shift{i}"][..., None, :]
    return x @ params[f"w{last}"] + params[f"b{last}"][..., None, :]


def next_obs(dynamics: dict, obs, action, noise):
    """Same as `Sampler.next_obs`; the first layer is split by hand, since XLA does not split it."""
    steps, obs_dim = len(noise), obs.shape[-1]
    params = dynamics["params"]
    w_y, w_condition, w_time = jnp.split(params["w0"], (obs_dim, 2 * obs_dim + action.shape[-1]))
    condition = jnp.concatenate([(obs - dynamics["obs_mean"]) / dynamics["obs_std"], action], -1) @ w_condition

    def step(y, inputs):
        (c_y, c_out, sigma), features, z = inputs
        hidden = jax.nn.silu(y @ w_y + condition + (features @ w_time + params["b0"]))
        return c_y * y + c_out * mlp(params, hidden, jax.nn.silu, start=1) + sigma * z, None

    # The last step adds no noise: its sigma is zero.
    z = jnp.concatenate([noise[1:], jnp.zeros_like(noise[:1])])
    inputs = dynamics["coefficients"][::-1], dynamics["embedding"][::-1], z
    y, _ = jax.lax.scan(step, noise[0], inputs, length=steps)
    return obs + dynamics["delta_mean"] + dynamics["delta_std"] * y


def imagined_return(policies: dict, models: dict, discount: float, obs, noise):
    """Same as `fastdwm.itpo.rollout.imagined_return` without termination."""
    dynamics = models["dynamics"]
    state = jnp.repeat(obs[:, None], noise.shape[3], 1)

    def policy(state):
        return jnp.tanh(mlp(policies, state, jax.nn.relu))

    def step(carry, z):
        state, weight, total = carry
        action = policy(state)
        x = jnp.concatenate([(state - dynamics["obs_mean"]) / dynamics["obs_std"], action], -1)
        total = total + weight * mlp(models["reward"], x, jax.nn.relu)[..., 0]
        return (next_obs(dynamics, state, action, z), weight * discount, total), None

    (state, weight, total), _ = jax.lax.scan(step, (state, 1.0, jnp.zeros(state.shape[:2])), noise)
    last = jnp.concatenate([state, policy(state)], -1)
    value = mlp(models["critics"], last.reshape(-1, last.shape[-1]), jax.nn.relu)[..., 0].min(0)
    return (total + weight * value.reshape(total.shape)).mean(1)
