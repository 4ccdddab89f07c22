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
    """Every point of a grid on the same tuning seeds, and the best one once more on seeds that it was not chosen on."""

    grid: Literal["default", "quick", "paper"] = "default"
    """default: one axis at a time, half an hour on two CPU cores; quick: minutes; paper: all combinations, for a GPU,
    with the optimiser sgd unless max_deviations are given"""
    worlds: tuple[str, ...] | None = None
    """world models, NAME or NAME:CALLS (network calls per imagined transition), as in `meanflow meanflow:2`; none:
    those of the grid that the bundle holds. Of this and the next five the first value is the centre of the grid"""
    horizons: tuple[int, ...] | None = None
    """imagined transitions per rollout (H), 0: the critic alone; none: the grid's"""
    particles: tuple[int, ...] | None = None
    """imagined rollouts per real state (M); none: the grid's"""
    inner_steps: tuple[int, ...] | None = None
    """policy updates per decision (E); none: the grid's"""
    max_deviations: tuple[float, ...] | None = None
    """with the optimiser bound: how far an action may go from the base policy's; none: the bundle's"""
    inner_lrs: tuple[float, ...] | None = None
    """with sgd and adam: step sizes at E = 1 (alpha), divided by E but in the grid `paper`; none: the grid's"""
    itpo: ITPOConfig = field(default_factory=ITPOConfig)
    """settings of the decision that are no axis, the same in every point; the axes have flags of their own"""
    design: Literal["star", "product"] | None = None
    """star: every world model at the centre and with one other axis changed; product: all combinations; none: the
    grid's"""
    episodes: Annotated[int | None, POSITIVE] = None
    """episodes per point; none: the grid's"""
    seed: Annotated[int, NOT_NEGATIVE] = 20_000
    """environment seed of the first episode; episode i uses seed + i, in every point: tuning seeds, apart from those of
    evaluations"""
    confirm: bool = True
    """run the base policy and the point with the best interquartile mean also on the seeds of evaluations"""
    confirm_seed: Annotated[int, NOT_NEGATIVE] = 10_000
    """environment seed of the first episode of that confirmation"""
    latency_decisions: Annotated[int, POSITIVE] = 2_000
    """decisions of one episode alone to be timed in each point, in at most 20 s; fewer than 2000 give no p99"""
    out: Path | None = None
    """folder of the study, where a study that was stopped goes on; none: results/study-TASK"""
    workers: Annotated[int, POSITIVE] = 2
    """points at once, in processes of their own; latencies are measured afterwards, with nothing else running"""

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
        came = getattr(self, other)
        require(came is None, f"{other}: expected none with the optimiser {rule}, got {list(came or ())}")
        for world in self.worlds or ():
            parse_world(world)

    @property
    def common(self) -> ITPOConfig:
        """The settings of the decision, but for the axes; raises InputError for those of another optimiser."""
        papers = self.grid == "paper" and self.itpo.optimiser == "bound" and self.max_deviations is None
        return replace(self.itpo, optimiser="sgd") if papers else self.itpo

    @property
    def _other_axis(self) -> str:
        """The axis that the optimiser does not have."""
        return "inner_lrs" if self.common.optimiser == "bound" else "max_deviations"

    def resolved(self) -> Grid:
        """The named grid with whatever was given in its place."""
        given = {name: getattr(self, name) for name in (*AXES, "design", "episodes")}
        given = {name: value for name, value in given.items() if value is not None}
        grid = replace(GRIDS[self.grid], **given, **{self._other_axis: (None,)})
        apart = abs(self.seed - self.confirm_seed) >= grid.episodes
        last = self.seed + grid.episodes - 1
        came = f"got {self.confirm_seed} beside {self.seed} to {last}"
        require(apart or not self.confirm, f"confirm_seed: expected seeds that no point was chosen on, {came}")
        return grid

    def flags(self) -> dict[str, Any]:
        """The settings of the decision that all points share, by the name of their flag."""
        names = [item.name for item in fields(ITPOConfig) if item.name not in POINT_SETTINGS]
        return {f"itpo.{name}": getattr(self.common, name) for name in names}
