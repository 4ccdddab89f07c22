"""Save pictures of matplotlib, which is imported where it draws."""

import io
from pathlib import Path
from typing import Any

from fastdwm.files import write_atomically

DPI = 150


def save_png(figure: Any, path: Path) -> Path:
    """Save a matplotlib Figure as a PNG, atomically; returns the path."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    write_atomically(path, content.getvalue())
    return path
