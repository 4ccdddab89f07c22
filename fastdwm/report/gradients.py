"""Compare the gradients that ITPO uses, those of the world model, with the simulator's own.

Here the simulator is a differentiable world. The forward pass sets the physics to an observation and steps it; the
backward pass multiplies by finite differences of that step. `imagined_return`, the code that ITPO differentiates, thus
also gives the gradient of the real return, by the chain rule along the simulated trajectory ([ITPO] v1 Theorem 4.1).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdwm.command import StageProgress, unwatched
from fastdwm.config import ITPOConfig
from fastdwm.data.replay import CUT_VELOCITY
from fastdwm.itpo.objective import ReferenceObjective
from fastdwm.models.nets import Params
from fastdwm.models.policy import MLPFunction, Policy, mlp_policy
from fastdwm.models.world import World

# Central differences by +-STEP in every coordinate (m, rad, m/s, rad/s, units of action). On Hopper, the relative
# rounding error of a Jacobian is then 1e-8, and contacts hardly ever begin or end within the step. With 1e-4 they do in
# a tenth of the states, whose Jacobians are then off by more than 1 %; with 1e-2 in a quarter.
STEP = 1e-6

HORIZONS = (1, 3, 5)
CHUNK = 10
"""number of states whose gradients of the return are computed at once"""

Function = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""function(obs (S,), action (A,)) -> next observation and reward in one array (S + 1,), float64"""


class Differences:
    """A function with its Jacobian by central differences; results are cached."""

    def __init__(self, function: Function):
        self.function = function
        self.values: dict[bytes, np.ndarray] = {}
        self.jacobians: dict[bytes, np.ndarray] = {}

    def value(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        """The function's value (S + 1,) at one obs (S,), action (A,)."""
        key = np.append(obs, action).tobytes()
        if key not in self.values:
            self.values[key] = self.function(obs, action)
        return self.values[key]

    def jacobian(self, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
        """Jacobian (S + 1, S + A) of next observation and reward with respect to obs (S,) and action (A,)."""
        key = np.append(obs, action).tobytes()
        if key not in self.jacobians:
            # Actuators saturate at +-1; a difference across this bound would halve the derivative on its inner side.
            centre = np.append(obs, action.clip(-1 + STEP, 1 - STEP))
            sides = [
                [self.function(*np.split(centre + sign * shift, [len(obs)])) for sign in (1, -1)]
                for shift in STEP * np.eye(len(centre))
            ]
            self.jacobians[key] = np.array([(above - below) / (2 * STEP) for above, below in sides]).T
        return self.jacobians[key]


class SimulatedStep(torch.autograd.Function):
    """Next observation and reward (..., S + 1) for obs (..., S) and action (..., A), by a `Differences`."""

    @staticmethod
    def forward(ctx: Any, obs: Tensor, action: Tensor, source: Differences) -> Tensor:
        ctx.save_for_backward(obs, action)
        ctx.source = source
        return _each(source.value, obs, action)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        obs, action = ctx.saved_tensors
        both = (grad.unsqueeze(-2) @ _each(ctx.source.jacobian, obs, action)).squeeze(-2)
        return *both.split([obs.shape[-1], action.shape[-1]], -1), None


def _each(function: Function, obs: Tensor, action: Tensor) -> Tensor:
    """Apply the function to every row; returns (..., *shape of its result) in obs's dtype."""
    rows = (x.detach().reshape(-1, x.shape[-1]).double().numpy() for x in (obs, action))
    result = np.stack([function(o, a) for o, a in zip(*rows, strict=True)])
    return torch.from_numpy(result).to(obs.dtype).reshape(*obs.shape[:-1], *result.shape[1:])


@dataclass(frozen=True)
class SimulatedDynamics:
    """The simulator in place of a `Dynamics`, for `imagined_return`; the noise is ignored."""

    source: Differences
    noise_steps: int = 1

    def next_obs(self, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        return SimulatedStep.apply(obs, action, self.source)[..., :-1]


@dataclass(frozen=True)
class SimulatedReward:
    """The simulator's reward in place of a `RewardModel`."""

    source: Differences

    def __call__(self, obs: Tensor, action: Tensor) -> Tensor:
        return SimulatedStep.apply(obs, action, self.source)[..., -1]


def simulated_world(world: World, source: Differences) -> World:
    """Replace the world's dynamics and reward by the simulator's; critics and discount stay."""
    return replace(world, dynamics=SimulatedDynamics(source), reward=SimulatedReward(source))


def model_jacobians(world: World, obs: Tensor, action: Tensor, noise: Tensor) -> Tensor:
    """Jacobians (M, N, S + 1, S + A) of next observation and reward for M draws of the noise, by autograd.

    obs: (N, S) raw units.   action: (N, A).   noise: (K, M, N, S).
    """
    leaves = [x.expand(noise.shape[1], -1, -1).clone().requires_grad_(True) for x in (obs, action)]
    outputs = torch.cat([world.dynamics.next_obs(*leaves, noise), world.reward(*leaves).unsqueeze(-1)], -1)
    # Rows are independent, so the gradient of the sum over rows holds each row's gradient.
    grads = [
        torch.autograd.grad(output.sum(), leaves, retain_graph=True, materialize_grads=True)
        for output in outputs.unbind(-1)
    ]
    return torch.stack([torch.cat(pair, -1) for pair in grads], -2)


def blocks(jacobians: Tensor, obs_std: Tensor, delta_std: Tensor) -> dict[str, Tensor]:
    """Split Jacobians (N, S + 1, S + A) into blocks: next_obs and reward, by action and by state.

    The units are the models': changes of the observation over delta_std (S,), states over obs_std (S,).
    next_obs_by_state is for the change next_obs - obs, because all models add the observation itself.
    """
    obs_dim = len(obs_std)
    next_obs, reward = jacobians[:, :-1] / delta_std.unsqueeze(-1), jacobians[:, -1:]
    change = next_obs[..., :obs_dim] - torch.diag(1 / delta_std)
    return {
        "next_obs_by_action": next_obs[..., obs_dim:],
        "next_obs_by_state": change * obs_std,
        "reward_by_action": reward[..., obs_dim:],
        "reward_by_state": reward[..., :obs_dim] * obs_std,
    }


def compare(model: Tensor, truth: Tensor) -> Tensor:
    """Cosine and relative error |model - truth| / |truth| of each state's gradient, (2, N); arguments are (N, ...).

    The cosine is 0 if a gradient is 0; the relative error is infinite if the true gradient is 0.
    """
    model, truth = model.flatten(1), truth.flatten(1)
    sizes, true_sizes = model.norm(dim=1), truth.norm(dim=1)
    cosine = torch.where(sizes * true_sizes == 0, 0, (model * truth).sum(1) / sizes / true_sizes)
    return torch.stack([cosine, (model - truth).norm(dim=1) / true_sizes])


def summary(compared: Tensor) -> dict[str, Any]:
    """Number of states and, for cosine and relative error (2, N), median, quartiles (low, high) and mean."""
    result: dict[str, Any] = {"states": compared.shape[1]}
    for name, x in zip(("cosine", "relative_error"), compared, strict=True):
        low, median, high = x.quantile(x.new_tensor([0.25, 0.5, 0.75])).tolist()
        result[name] = {"median": median, "low": low, "high": high, "mean": float(x.mean())}
    return result


def compare_jacobians(
    worlds: dict[str, World],
    source: Differences,
    obs: Tensor,
    action: Tensor,
    statistics: dict[str, Tensor],
    particles: int,
    generator: torch.Generator,
    on_progress: StageProgress = unwatched,
) -> dict[str, dict]:
    """For each world and each of `blocks`, the `summary` of the particles' mean Jacobian against the simulator's.

    obs: (N, S).   action: (N, A).   statistics: obs_std, delta_std (S,), the units of the blocks.
    The key one_draw holds the same for next_obs and a single draw of the noise.
    """
    rows = []
    for i, pair in enumerate(zip(obs.numpy(), action.numpy(), strict=True)):
        rows.append(source.jacobian(*pair))
        on_progress(i + 1, len(obs))
    truth = torch.from_numpy(np.stack(rows)).to(obs)
    result = {}
    for name, world in worlds.items():
        shape = (world.dynamics.noise_steps, particles, *obs.shape)
        jacobians = model_jacobians(world, obs, action, torch.randn(shape, generator=generator, dtype=obs.dtype))
        true, mean, one = (
            blocks(x, statistics["obs_std"], statistics["delta_std"]) for x in (truth, jacobians.mean(0), jacobians[0])
        )
        result[name] = {part: summary(compare(mean[part], true[part])) for part in true}
        drawn = ("next_obs_by_action", "next_obs_by_state")
        result[name]["one_draw"] = {part: summary(compare(one[part], true[part])) for part in drawn}
    return result


def compare_returns(
    worlds: dict[str, World],
    simulated: World,
    params: Params,
    obs: Tensor,
    particles: int,
    generator: torch.Generator,
    on_progress: StageProgress = unwatched,
    function: MLPFunction = mlp_policy,
) -> dict[str, list[dict]]:
    """For each world and each H in HORIZONS, the `summary` of its dJ/dpsi against that of the `simulated` world.

    params: of one policy.   obs: (N, S).   function: of the policy, from its parameters to actions.
    """

    def gradients(world: World, states: Tensor, horizon: int, draws: int) -> Tensor:
        shape = (horizon, world.dynamics.noise_steps, len(states), draws, states.shape[1])
        noise = torch.randn(shape, generator=generator, dtype=obs.dtype)
        return return_gradients(world, params, states, noise, function)

    results: dict[tuple[str, int], list[Tensor]] = {(name, horizon): [] for name in worlds for horizon in HORIZONS}
    # In chunks, because one gradient is as large as the policy's weights.
    chunks = obs.split(CHUNK)
    for i, states in enumerate(chunks):
        for horizon in HORIZONS:
            truth = gradients(simulated, states, horizon, 1)
            for name, world in worlds.items():
                results[name, horizon].append(compare(gradients(world, states, horizon, particles), truth))
        on_progress(i + 1, len(chunks))
    return {name: [{"H": h, **summary(torch.cat(results[name, h], 1))} for h in HORIZONS] for name in worlds}


def return_gradients(
    world: World, params: Params, obs: Tensor, noise: Tensor, function: MLPFunction = mlp_policy
) -> Tensor:
    """Gradients dJ/dpsi (B, P) of one policy's imagined return from each of B states.

    params: without a leading axis.   obs: (B, S).   noise: (H, K, B, M, S).   All of one dtype.
    """
    policy = Policy.mlp(params, function.activation, function.output)
    base = policy.base.expand(len(obs), -1)
    return ReferenceObjective(policy, world, ITPOConfig()).gradient(base, obs, noise).grads


def uncut(obs: Tensor) -> Tensor:
    """Whether obs (N, S) shows all velocities unclipped, (N,) bool."""
    return (obs.abs() != CUT_VELOCITY).all(1)


@torch.no_grad()
def uncut_trajectory(source: Differences, params: Params, obs: Tensor, function: MLPFunction = mlp_policy) -> Tensor:
    """Whether all states of the policy's simulated trajectory from obs (N, S) over max(HORIZONS) steps are `uncut`,
    (N,) bool."""
    good = uncut(obs)
    for _ in range(max(HORIZONS)):
        obs = SimulatedStep.apply(obs, function(params, obs), source)[:, :-1]
        good &= uncut(obs)
    return good
