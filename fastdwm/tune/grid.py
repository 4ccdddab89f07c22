"""The candidates of tuning: settings of the decision that differ from the default. Pure data."""

from collections.abc import Mapping
from dataclasses import replace

from fastdwm.config import ITPOConfig, Settings

FACTORS = (0.5, 2.0, 0.7, 1.5)
"""factors on the bundle's maximum deviation"""
HORIZONS = (4, 16)
PARTICLES = (8,)


def candidates(held: Mapping[str, int], max_deviation: float) -> list[Settings]:
    """The default, then settings that differ from it in one or two respects, the most promising first.

    held: default network calls per imagined transition of each world model, in the bundle's order.
    max_deviation: the bundle's.
    """
    first, *others = held
    default = Settings(ITPOConfig(), first, held[first])
    worlds = [default, *(replace(default, world=name, world_steps=held[name]) for name in others if name != "mlp")]
    bounds = [float(f"{max_deviation * factor:.6g}") for factor in FACTORS]
    result = worlds + [
        replace(world, itpo=replace(world.itpo, max_deviation=bound)) for bound in bounds for world in worlds
    ]
    axes = {"horizon": HORIZONS, "particles": PARTICLES}
    result += [replace(default, itpo=ITPOConfig(**{name: x})) for name, values in axes.items() for x in values]
    fewer = held[first] // 2
    return result + ([replace(default, world_steps=fewer)] if first == "diffusion" and fewer else [])
