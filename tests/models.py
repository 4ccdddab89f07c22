"""Small random models in float64."""

import torch
from torch import Tensor

from fastdwm.models.config import DiffusionConfig
from fastdwm.models.diffusion import build_diffusion, denoiser_shapes
from fastdwm.models.nets import Params, init_mlp, map_params
from fastdwm.models.policy import Policy
from fastdwm.models.rebrac import Critics, critic_shapes, policy_shapes
from fastdwm.models.reward import RewardModel
from fastdwm.models.sampler import Sampler
from fastdwm.models.world import World
from fastdwm.tasks import Limit

OBS_DIM, ACTION_DIM, HIDDEN = 4, 2, (16, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(params: Params) -> Params:
    return map_params(Tensor.double, params)


def make_dynamics(target: str = "eps", denoise_steps: int = 4, seed: int = 0) -> Sampler:
    """Random denoiser with statistics that are neither zero nor one."""
    config = DiffusionConfig(denoise_steps=denoise_steps, target=target, hidden=HIDDEN, time_features=4)
    params = double(init_mlp(denoiser_shapes(OBS_DIM, ACTION_DIM, config), generator(seed)))
    statistics = {
        "obs_mean": torch.linspace(-0.5, 0.5, OBS_DIM),
        "obs_std": torch.linspace(0.5, 2.0, OBS_DIM),
        "delta_mean": torch.linspace(0.1, -0.1, OBS_DIM),
        "delta_std": torch.linspace(0.1, 0.4, OBS_DIM),
    }
    return build_diffusion(params, statistics, config, torch.float64)


def make_world(target: str = "eps", denoise_steps: int = 4, limits: tuple[Limit, ...] = (), seed: int = 0) -> World:
    """Random frozen models; the critics' layer norms are not identities."""
    dynamics = make_dynamics(target, denoise_steps, seed)
    shapes = {f"w{i}": s for i, s in enumerate([(OBS_DIM + ACTION_DIM, 16), (16, 1)])} | {"b0": (16,), "b1": (1,)}
    reward = RewardModel(double(init_mlp(shapes, generator(seed + 1))), dynamics.obs_mean, dynamics.obs_std)
    critics = double(init_mlp(critic_shapes(OBS_DIM, ACTION_DIM, HIDDEN), generator(seed + 2)))
    for name, value in critics.items():
        if name.startswith(("scale", "shift")):
            value += 0.3 * torch.randn(value.shape, generator=generator(seed + 3), dtype=torch.float64)
    return World(dynamics, reward, Critics(critics), 0.9, limits)


def make_policies(n_episodes: int, seed: int = 5, hidden: tuple[int, ...] = HIDDEN) -> Params:
    """Different random policies (B, ...)."""
    shapes = policy_shapes(OBS_DIM, ACTION_DIM, hidden)
    return double(init_mlp({name: (n_episodes, *shape) for name, shape in shapes.items()}, generator(seed)))


def make_policy(seed: int = 5) -> Policy:
    """First policy of `make_policies`, to be adapted."""
    return Policy.mlp(map_params(lambda value: value[0], make_policies(1, seed)))


def make_noise(horizon: int, denoise_steps: int, n_episodes: int, particles: int, seed: int = 7) -> Tensor:
    """Noise (H, K, B, M, S)."""
    shape = (horizon, denoise_steps, n_episodes, particles, OBS_DIM)
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def make_obs(n_episodes: int, seed: int = 9) -> Tensor:
    return torch.randn(n_episodes, OBS_DIM, generator=generator(seed), dtype=torch.float64)
