"""State of processes, for tests of killed commands."""

import time
from pathlib import Path


def descendants(pid):
    """Process ids of all descendants of a process."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:
        return []
    return children + [grandchild for child in children for grandchild in descendants(child)]


def gone(pid):
    """Whether the process has ended, zombies included."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(holds, most_s=600.0):
    """Wait until holds() is true; returns whether it is."""
    deadline = time.monotonic() + most_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()
