"""Settings of `python -m fastdwm.eval`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from fastdwm.checks import POSITIVE, within
from fastdwm.measure.config import EpisodesConfig


@dataclass(frozen=True)
class EvalConfig(EpisodesConfig):
    """Compare the base policy and ITPO on the same environment seeds."""

    checkpoint: Path | None = None
    """file with the policy and critics of an earlier state of the training, from `train --keep-checkpoints`; none: the
    bundle's"""
    episodes: Annotated[int, POSITIVE] = 10
    """episodes per policy, all at once; more episodes narrow the intervals. Sweeps use 50"""
    world: str | None = None
    """world model, one of those that the bundle holds: diffusion, meanflow or mlp (plain regression); none: the one
    that the bundle was tuned to, or else the bundle's first"""
    world_steps: Annotated[int | None, POSITIVE] = None
    """network calls per imagined transition: for diffusion at most its trained K, for meanflow 1, 2 or 4; fewer are
    faster and less exact. None: the bundle's"""
    temperature: Annotated[float | None, within("[0, 1]")] = None
    """scale of meanflow's noise (tau), from 0 (deterministic) to 1; none: the bundle's"""
    precision: Literal["auto", "fp16", "ieee"] = "auto"
    """number format of the operands of matrix products: fp16 (GPU only) or ieee (float32); auto: fp16 on a GPU, ieee on
    a CPU. Use ieee to check fp16"""
    deadline_ms: Annotated[float | None, POSITIVE] = None
    """time limit of a decision in ms, for all episodes that decide at once; inner steps that would exceed it are left
    out. None: no limit"""
    control: bool = False
    """run a control in place of ITPO: the base policy with its actions pushed by max_deviation in a slowly changing
    random direction. Only the part of ITPO's gain above the control's counts"""
    diagnose_every: Annotated[int, POSITIVE] = 10
    """decisions from one diagnosis to the next. A diagnosis (untimed) records the imagined return before and after the
    update, and the real return that follows"""
    out: Path = Path("results")
    """folder for the JSON, the picture and the video"""
    plot: bool = False
    """save a picture of the returns per episode and of the reward collected over time; of a maze also one of the
    trajectories, the falls and the critic's value by position"""
    video: bool = False
    """save a video of both policies' first episode, side by side (pip install 'fastdwm[video]'; without a display:
    MUJOCO_GL=egl)"""

    @property
    def drifts(self) -> bool:
        """Whether the control runs; with settings that never adapt, the base policy runs in its place too."""
        return self.control and self.itpo.adapts
