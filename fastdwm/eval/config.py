"""Settings of `python -m fastdwm.eval`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fastdwm.checks import POSITIVE, within
from fastdwm.measure.config import EpisodesConfig


@dataclass(frozen=True)
class EvalConfig(EpisodesConfig):
    """Base policy and ITPO side by side on the same environment seeds."""

    checkpoint: Path | None = None
    """policy and critics of another moment of the training, kept by `train --keep-checkpoints`; none: the bundle's"""
    episodes: Annotated[int, POSITIVE] = 10
    """episodes per policy, all adapted in parallel"""
    world: str | None = None
    """world model of the imagination, of those that the bundle holds: diffusion, meanflow, or mlp, plain regression;
    none: as the bundle was tuned, or the first of these"""
    world_steps: Annotated[int | None, POSITIVE] = None
    """network calls per imagined transition, of diffusion at most its K, of meanflow 1, 2 or 4; none: the bundle's"""
    temperature: Annotated[float | None, within("[0, 1]")] = None
    """scale of meanflow's noise (tau), 0: deterministic; none: the bundle's"""
    precision: Literal["auto", "fp16", "ieee"] = "auto"
    """operands of the products: fp16, on a GPU alone, or float32; auto: fp16 on a GPU, ieee on a CPU"""
    deadline_ms: Annotated[float | None, POSITIVE] = None
    """time limit of a decision, for all episodes that decide at once: inner steps that would not fit are left out"""
    control: bool = False
    """run the control in the place of ITPO: the base policy, pushed by max_deviation in a direction that wanders at
    random. What ITPO gains counts as far as it is more than what this gains"""
    diagnose_every: Annotated[int, POSITIVE] = 10
    """diagnose (untimed) every this many decisions: imagined return before and after, prediction against outcome"""
    out: Path = Path("results")
    """folder of the JSON, the picture and the video"""
    plot: bool = False
    """save a picture: returns per episode, and the reward collected over time"""
    video: bool = False
    """save the first episode of both policies side by side (needs a headless renderer: MUJOCO_GL=egl)"""

    @property
    def drifts(self) -> bool:
        """Whether the control runs: where ITPO cannot leave the base policy, neither does its control."""
        return self.control and self.itpo.adapts
