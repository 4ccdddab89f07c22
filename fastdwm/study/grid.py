"""The named grids of a study and their grid points. Pure data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from fastdwm.checks import require
from fastdwm.config import ITPOConfig

AXES = ("worlds", "horizons", "particles", "inner_steps", "max_deviations", "inner_lrs")
# Settings of the decision that a grid point sets; all grid points share the others.
POINT_SETTINGS = ("horizon", "particles", "inner_steps", "max_deviation", "inner_lr")


@dataclass(frozen=True)
class GridPoint:
    """One setting of the decision, run on all seeds of the study."""

    world: str
    """world model; `base`: the base policy; `critic`: no imagination (H = 0)"""
    world_steps: int
    """network calls per imagined transition (K)"""
    horizon: int
    """imagined transitions per rollout (H)"""
    particles: int
    """imagined rollouts per real state (M)"""
    inner_steps: int
    """policy updates per decision (E)"""
    max_deviation: float | None = None
    """limit of the optimiser bound; none: the bundle's"""
    inner_lr: float | None = None
    """step size of each inner step of the other optimisers; none with bound"""

    @property
    def name(self) -> str:
        """Stem of the grid point's file, made of all settings."""
        if self == BASE:
            return "base"
        axes = f"K{self.world_steps}-H{self.horizon}-M{self.particles}-E{self.inner_steps}"
        bound = "bound" if self.max_deviation is None else f"D{self.max_deviation:.8g}"
        return f"{self.world}-{axes}-{bound if self.inner_lr is None else f'lr{self.inner_lr:.8g}'}"

    @property
    def imagines(self) -> bool:
        """Whether it uses the world model."""
        return self.horizon > 0

    def itpo(self, common: ITPOConfig) -> ITPOConfig:
        """The settings for the agent.   common: the settings that all grid points share."""
        if self == BASE:
            return replace(common, inner_steps=0)
        values = {name: getattr(self, name) for name in POINT_SETTINGS}
        return replace(common, **{name: value for name, value in values.items() if value is not None})

    @property
    def work(self) -> float:
        """Rough CPU milliseconds for one decision and one step in each of ten episodes.

        Fitted to the default grid on hopper-medium, width 256. Only the order of the jobs and the displayed time left
        depend on it.
        """
        if self == BASE:
            return 2.0
        transition = 0.3 + 0.1 * self.particles + 0.035 * self.particles * self.world_steps
        return 3.5 + self.inner_steps * (2.7 + self.horizon * transition)


BASE = GridPoint("base", 0, 0, 0, 0)


@dataclass(frozen=True)
class Grid:
    """The axes of a grid and how they are combined. The first value of each axis is the centre of the grid."""

    worlds: tuple[str, ...]
    """NAME or NAME:CALLS, see `parse_world`"""
    horizons: tuple[int, ...]
    particles: tuple[int, ...]
    inner_steps: tuple[int, ...]
    max_deviations: tuple[float | None, ...]
    """limits of the optimiser bound, none: the bundle's; (None,) with another optimiser"""
    inner_lrs: tuple[float | None, ...]
    """step sizes of sgd and adam for E = 1; (None,) with bound"""
    split_step: bool
    """divide the step size by E, so that all E inner steps of a decision together move the policy as far as one"""
    design: Literal["star", "product"]
    episodes: int

    def combinations(self) -> Iterator[tuple]:
        """(H, M, E, maximum deviation, step size): the centre, then one axis at a time (star), or all combinations."""
        axes = (self.horizons, self.particles, self.inner_steps, self.max_deviations, self.inner_lrs)
        centre = tuple(axis[0] for axis in axes)
        if self.design == "product":
            yield from product(*axes)
            return
        yield centre
        for i, axis in enumerate(axes):
            for value in axis[1:]:
                yield (*centre[:i], value, *centre[i + 1 :])

    def points(self, held: Mapping[str, int]) -> list[GridPoint]:
        """The base policy, then every world model with every combination, without duplicates.

        held: default network calls of each world model in the bundle.
        Raises InputError for a world model that the bundle does not hold.
        """
        points = {BASE: None}
        for values, world in product(self.combinations(), self.worlds):
            points[self._point(values, world, held)] = None
        return list(points)

    def centre(self, held: Mapping[str, int]) -> list[GridPoint]:
        """The grid points at the centre, one for each world model in order."""
        values = next(self.combinations())
        return list(dict.fromkeys(self._point(values, world, held) for world in self.worlds))

    def _point(self, values: tuple, world: str, held: Mapping[str, int]) -> GridPoint:
        horizon, particles, inner_steps, max_deviation, inner_lr = values
        name, calls = _resolve(world, held)
        lr = inner_lr / inner_steps if self.split_step and inner_lr is not None else inner_lr
        if horizon == 0:
            # Nothing is imagined, so neither the world model nor the number of particles has an effect.
            return GridPoint("critic", 0, 0, 1, inner_steps, max_deviation, lr)
        return GridPoint(name, calls, horizon, particles, inner_steps, max_deviation, lr)


def parse_world(text: str) -> tuple[str, int | None]:
    """World model and network calls of NAME or NAME:CALLS, such as `meanflow:2`; calls are none for NAME alone."""
    name, colon, calls = text.partition(":")
    valid = name.isidentifier() and (calls.isdecimal() and int(calls) > 0 if colon else True)
    require(valid, f"worlds: expected NAME or NAME:CALLS, such as meanflow:2, got {text!r}")
    return name, int(calls) if colon else None


def _resolve(world: str, held: Mapping[str, int]) -> tuple[str, int]:
    name, calls = parse_world(world)
    require(name in held, f"worlds: the bundle holds {', '.join(held)}, got {world!r}")
    return name, held[name] if calls is None else calls


_DEFAULT = Grid(
    worlds=("diffusion", "diffusion:1", "meanflow", "meanflow:2", "mlp"),
    horizons=(8, 5, 3, 1, 0),
    particles=(2, 16),
    inner_steps=(1, 2),
    max_deviations=(None,),
    inner_lrs=(2e-5,),
    split_step=True,
    design="star",
    episodes=40,
)
_FEW = {"worlds": ("diffusion", "meanflow", "mlp"), "horizons": (8, 3), "particles": (2,), "inner_steps": (1,)}
# If the bundle's diffusion model was trained with ten denoising steps, these are K = 10 and K = 5.
_PAPERS = {"worlds": ("diffusion", "diffusion:5", "meanflow", "mlp"), "horizons": (5, 3, 1)}
_PAPERS |= {"particles": (4096, 1024, 64), "inner_steps": (1, 4), "inner_lrs": (5e-5,)}
GRIDS = {
    "default": _DEFAULT,
    "quick": replace(_DEFAULT, **_FEW, episodes=5),
    "paper": replace(_DEFAULT, **_PAPERS, split_step=False, design="product", episodes=100),
}
