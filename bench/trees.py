"""Import the packages of a checkout that is not installed."""

import atexit
import os
import tempfile
from pathlib import Path


def environment(tree: Path) -> dict[str, str]:
    """Environment in which a process imports this checkout's packages; its temporary folder is removed at exit."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    Path(folder.name, "fastdwm_kernels").symlink_to(tree.resolve() / "kernels")
    paths = [str(tree.resolve()), folder.name, os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
