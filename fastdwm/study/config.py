"""The settings of the command `study`."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, require
from fastdwm.config import ITPOConfig
from fastdwm.engines.config import EngineConfig
from fastdwm.measure.config import EpisodesConfig
from fastdwm.study.grid import AXES, GRIDS, POINT_SETTINGS, Grid, parse_world


@dataclass(frozen=True)
class StudyConfig(EngineConfig, EpisodesConfig):
    """Run every grid point on the same tuning seeds, and the best one again on other seeds."""

    grid: Literal["default", "quick", "paper"] = "default"
    """named grid, from which the next settings depart. default: one axis at a time, half an hour on two CPU cores;
    quick: a few minutes; paper: all combinations, for a GPU, with the optimiser sgd unless max_deviations is set"""
    worlds: tuple[str, ...] | None = None
    """world models, NAME or NAME:CALLS (network calls per imagined transition), such as `meanflow meanflow:2`; none:
    the grid's, as far as the bundle holds them. The first value of this and of the next five settings is the centre of
    the grid"""
    horizons: tuple[int, ...] | None = None
    """imagined transitions per rollout (H); 0: the critic alone, without imagination; none: the grid's"""
    particles: tuple[int, ...] | None = None
    """imagined rollouts per real state (M); none: the grid's"""
    inner_steps: tuple[int, ...] | None = None
    """policy updates per decision (E); none: the grid's"""
    max_deviations: tuple[float, ...] | None = None
    """for the optimiser bound: root mean square distance that an action may have from the base policy's, in units of
    the action (-1 to 1); none: the bundle's"""
    inner_lrs: tuple[float, ...] | None = None
    """for the optimisers sgd and adam: step sizes (alpha) of one inner step, divided by E for several, except in the
    grid paper; none: the grid's"""
    itpo: ITPOConfig = field(default_factory=ITPOConfig)
    """settings of the decision that all grid points share; those that are axes of the grid have flags of their own"""
    design: Literal["star", "product"] | None = None
    """star: each world model at the centre of the grid, and with one axis changed at a time; product: all combinations;
    none: the grid's"""
    episodes: Annotated[int | None, POSITIVE] = None
    """episodes per grid point; more episodes narrow the intervals. None: the grid's, 40 for default"""
    seed: Annotated[int, NOT_NEGATIVE] = 20_000
    """environment seed of the first episode; episode i of every grid point uses seed + i. The default starts the tuning
    seeds, which evaluations do not use"""
    confirm: bool = True
    """also run the base policy and the grid point with the best interquartile mean on the seeds of evaluations"""
    confirm_seed: Annotated[int, NOT_NEGATIVE] = 10_000
    """environment seed of the first episode of the confirmation; its seeds must not overlap with the tuning seeds"""
    latency_decisions: Annotated[int, POSITIVE] = 2_000
    """decisions to time for each grid point, of one episode alone, in at most 20 s; fewer than 2000 give no 99th
    percentile"""
    out: Path | None = None
    """folder of the study, from which a stopped study resumes; none: results/study-TASK"""
    workers: Annotated[int, POSITIVE] = 2
    """grid points that run at once, each in a process of its own. Latencies are measured afterwards, one at a time"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in AXES:
            require(getattr(self, name) != (), f"{name}: expected at least one value")
        for name, least in (("horizons", 0), ("particles", 1), ("inner_steps", 1)):
            values = getattr(self, name) or ()
            require(all(v >= least for v in values), f"{name}: expected numbers >= {least}, got {list(values)}")
        for name in ("max_deviations", "inner_lrs"):
            values = list(getattr(self, name) or ())
            require(all(value > 0 for value in values), f"{name}: expected positive numbers, got {values}")
        for name, axis in zip(POINT_SETTINGS, AXES[1:], strict=True):
            value, default = getattr(self.itpo, name), getattr(ITPOConfig(), name)
            require(value == default, f"itpo.{name}: an axis of the study, expected as {axis}, got {value}")
        other, rule = self._other_axis, self.common.optimiser
        values = getattr(self, other)
        require(values is None, f"{other}: expected none with the optimiser {rule}, got {list(values or ())}")
        for world in self.worlds or ():
            parse_world(world)

    @property
    def common(self) -> ITPOConfig:
        """The settings of the decision that all grid points share; raises InputError as `ITPOConfig`."""
        use_sgd = self.grid == "paper" and self.itpo.optimiser == "bound" and self.max_deviations is None
        return replace(self.itpo, optimiser="sgd") if use_sgd else self.itpo

    @property
    def _other_axis(self) -> str:
        """The axis that the optimiser does not use."""
        return "inner_lrs" if self.common.optimiser == "bound" else "max_deviations"

    def resolved(self) -> Grid:
        """The named grid with the values that replace its own."""
        values = {name: getattr(self, name) for name in (*AXES, "design", "episodes")}
        values = {name: value for name, value in values.items() if value is not None}
        grid = replace(GRIDS[self.grid], **values, **{self._other_axis: (None,)})
        apart = abs(self.seed - self.confirm_seed) >= grid.episodes
        last = self.seed + grid.episodes - 1
        both = f"got {self.confirm_seed} beside {self.seed} to {last}"
        require(apart or not self.confirm, f"confirm_seed: expected other seeds than the tuning seeds, {both}")
        return grid

    def flags(self) -> dict[str, Any]:
        """The settings of the decision that all grid points share, by flag."""
        names = [item.name for item in fields(ITPOConfig) if item.name not in POINT_SETTINGS]
        return {f"itpo.{name}": getattr(self.common, name) for name in names}
