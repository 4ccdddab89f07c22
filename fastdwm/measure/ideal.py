"""The spread that a perfect network's samples would have: the sampler itself loses part of the true spread."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdwm.bundle import Bundle
from fastdwm.models.diffusion import Schedule, reverse_coefficients, vp_schedule


def sampler_std(schedule: Schedule, std: Tensor) -> Tensor:
    """Std (...) of the diffusion sampler's samples if the data are normal with this std and the denoiser is exact.

    std: (...) float64, normalised.   E[x0 | y_k] of a normal x0 is affine in y_k, so the variance of every step follows
    in closed form from Var[y_K] = 1. The last step adds no noise, and removes any spread far below the noise of the
    first level, sqrt(1 - abar_1): 0.44 for K = 5, 0.13 for K = 20.
    """
    variance = torch.ones_like(std)
    for k in reversed(range(schedule.steps)):
        c_y, c_out, sigma = reverse_coefficients(schedule, "x0")[k]
        abar = schedule.abar[k]
        denoiser = abar.sqrt() * std**2 / (abar * std**2 + 1 - abar)
        variance = (c_y + c_out * denoiser) ** 2 * variance + sigma**2
    return variance.sqrt()


def spread_to_error(bundle: Bundle, world: str, error: Sequence[float]) -> float | None:
    """`spread_to_error` of `model_errors.calibration` if the network were perfect and its whole error were noise.

    error: (S,) RMSE of the samples' mean for each coordinate, normalised, taken as the true std.
    Returns None without any error, and for other world models.
    A perfect MeanFlow has the true spread times its temperature, a perfect regression none.
    """
    true_std = torch.tensor(error, dtype=torch.float64)
    if not true_std.any():
        return None
    config = bundle.worlds[world].config
    if world == "diffusion":
        sampled = sampler_std(vp_schedule(config.denoise_steps), true_std)
        return float(sampled.norm() / true_std.norm())
    return {"meanflow": lambda: config.temperature, "mlp": lambda: 0.0}.get(world, lambda: None)()
