"""Settings of real episodes, which `eval` and `study` share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fastdwm.checks import NOT_NEGATIVE, POSITIVE
from fastdwm.config import ITPOConfig
from fastdwm.env_config import EnvConfig


@dataclass(frozen=True)
class EpisodesConfig(EnvConfig):
    """How episodes of a bundle's agent are run."""

    bundle: Path | None = None
    """folder of the bundle (trained weights); none: the bundle shipped for the task"""
    seed: Annotated[int, NOT_NEGATIVE] = 10_000
    """environment seed of the first episode; episode i uses seed + i"""
    max_steps: Annotated[int | None, POSITIVE] = None
    """limit on the environment steps of an episode; none: the simulator's own limit. Reduce it for quick trials; the
    scores are then too low"""
    itpo: ITPOConfig = field(default_factory=ITPOConfig)
    """settings of the decision"""
    workers: Annotated[int, POSITIVE] = 1
    """processes that share the episodes; several use more CPUs. Results change by rounding only"""
    threads: Annotated[int, POSITIVE] = 1
    """CPU threads of torch in each process. More than one helps from some thousand imagined rows (episodes x particles)
    on, and slows decisions down on a busy machine"""
    device: str = "cpu"
    """device of the imagination: cpu, cuda or cuda:N"""
    backend: Literal["auto", "reference", "fused"] = "auto"
    """fused: the fast operators with hand-derived gradients; reference: plain torch and autograd, to check results;
    auto: fused"""
