"""The command of a sweep, and what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

ENV = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def argv(*arguments):
    return [sys.executable, "-m", "fastdwm.sweep", *map(str, arguments)]


def run(*arguments, **how):
    """The finished process."""
    return subprocess.run(argv(*arguments), capture_output=True, text=True, timeout=300, env=ENV, **how)


def cells(out, folder="cells"):
    """Records by name."""
    return {path.stem: json.loads(path.read_text()) for path in Path(out, folder).glob("*.json")}
