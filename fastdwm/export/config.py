"""Settings of `python -m fastdwm.export`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fastdwm.checks import POSITIVE, require
from fastdwm.config import ITPOConfig
from fastdwm.env_config import EnvConfig


@dataclass(frozen=True)
class ExportConfig(EnvConfig):
    """The format, the part of the agent, and for a decision its settings."""

    to: Literal["onnx", "torchscript"] = "onnx"
    """format of the file"""
    decision: bool = False
    """export the whole decision in place of the base policy, as one ONNX graph of one episode"""
    itpo: ITPOConfig = field(default_factory=ITPOConfig)
    """with --decision: settings of the decision; the default is replaced by what the bundle was tuned to"""
    world: str | None = None
    """with --decision: world model; none: the one that the bundle was tuned to, or else its first"""
    world_steps: Annotated[int | None, POSITIVE] = None
    """with --decision: network calls per imagined transition; none: the bundle's"""
    out: Path | None = None
    """the file; none: results/TASK-policy or -decision, with the format's ending"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.decision or self.to == "onnx", "decision: expected --to onnx, since TorchScript has no gradients"
        )
        set_for_policy = not self.decision and (self.itpo, self.world, self.world_steps) != (ITPOConfig(), None, None)
        require(not set_for_policy, "itpo, world, world_steps: settings of a decision; add --decision")
