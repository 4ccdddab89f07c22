"""What tuning tries: the settings of a decision that the default leaves open. Pure data."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from fastdwm.itpo.trust import DEFAULTS
from fastdwm.settings import ITPOConfig, Settings

HORIZONS = (4, 16)
PARTICLES = (8,)
INNER_STEPS = (2,)
STRENGTHS = {"doubt": (1.5, 0.6, 3.0), "radius": (0.5, 2.0), "speed": (0.5, 2.0)}
"""factors on the rule's settings"""


def candidates(held: Mapping[str, int]) -> list[Settings]:
    """The default, then what departs from it in one respect, the most promising first.

    held: network calls per imagined transition of each world model in the bundle, in its order.
    """
    first, *others = held
    default = Settings(ITPOConfig(), first, held[first])
    found = [default, *(replace(default, world=name, world_steps=held[name]) for name in others if name != "mlp")]
    for world in list(found):
        found += [replace(world, itpo=itpo) for itpo in strengths(world.itpo)]
    found += [replace(default, itpo=itpo) for itpo in others_of(default.itpo)]
    fewer = held[first] // 2
    return found + ([replace(default, world_steps=fewer)] if first == "diffusion" and fewer else [])


def strengths(itpo: ITPOConfig) -> Iterator[ITPOConfig]:
    """The rule, weaker and stronger."""
    for name, factors in STRENGTHS.items():
        for factor in factors:
            yield replace(itpo, **{name: round(DEFAULTS[name] * factor, 6)})


def others_of(itpo: ITPOConfig) -> Iterator[ITPOConfig]:
    """Another horizon, more particles, more inner steps."""
    for name, values in {"horizon": HORIZONS, "inner_steps": INNER_STEPS, "particles": PARTICLES}.items():
        for value in values:
            yield replace(itpo, **{name: value})
