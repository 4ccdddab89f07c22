"""Inference-time policy optimisation through differentiable world models.

from fastdwm import Agent, Bundle, ITPOConfig, shipped_bundle

agent = Agent.of(Bundle.load(shipped_bundle("hopper-medium")), ITPOConfig())
action = agent.act(obs)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdwm.agent import Agent
    from fastdwm.bundle import Bundle, shipped_bundle
    from fastdwm.config import ITPOConfig
    from fastdwm.errors import InputError
    from fastdwm.measure.simulate import run_episodes

__version__ = "0.1.0"

_HOMES = {
    "Agent": "fastdwm.agent",
    "Bundle": "fastdwm.bundle",
    "ITPOConfig": "fastdwm.config",
    "InputError": "fastdwm.errors",
    "run_episodes": "fastdwm.measure.simulate",
    "shipped_bundle": "fastdwm.bundle",
}
__all__ = ["Agent", "Bundle", "ITPOConfig", "InputError", "run_episodes", "shipped_bundle"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are used: the commands answer --help before torch is imported."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
