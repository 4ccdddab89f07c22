"""Offline datasets as flat arrays."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdwm.data.dataset import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import `load` when it is first used, because it needs numpy."""
    if name == "load":
        from fastdwm.data.dataset import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
