"""A checkout that is not installed, as it is imported."""

import atexit
import os
import tempfile
from pathlib import Path


def environment(tree: Path) -> dict[str, str]:
    """The variables with which a process imports this checkout's packages; a folder made for it goes at exit."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    Path(folder.name, "fastdwm_kernels").symlink_to(tree.resolve() / "kernels")
    paths = [str(tree.resolve()), folder.name, os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
