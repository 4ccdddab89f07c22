"""Settings of episodes, which evaluations and studies share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE, Checked
from fastdwm.config import ITPOConfig


@dataclass(frozen=True)
class EpisodesConfig(Checked):
    """What evaluations and studies share: how episodes of a bundle's agent are run."""

    bundle: Path | None = None
    """folder of trained weights; none: the one shipped for the task"""
    seed: Annotated[int, NOT_NEGATIVE] = 10_000
    """environment seed of the first episode; episode i uses seed + i"""
    max_steps: Annotated[int | None, POSITIVE] = None
    """cut episodes after this many steps; none: the environment's own limit"""
    itpo: ITPOConfig = field(default_factory=ITPOConfig)
    """settings of the decision"""
    workers: Annotated[int, POSITIVE] = 1
    """processes that share the episodes; results do not depend on it but for rounding"""
    threads: Annotated[int, POSITIVE] = 1
    """CPU threads of torch in each process; more pay off from some thousand imagined rows on, and cost dearly on a busy
    machine"""
    device: str = "cpu"
    """where the imagination runs: cpu, cuda or cuda:N"""
    backend: Literal["auto", "reference", "fused"] = "auto"
    """how: plain torch and autograd, or the fused operators with their hand-derived gradients; auto is fused"""
    trust_env: bool = False
    """build whatever simulator the bundle names, with any settings: this may run code that came with it"""
