"""What tests of killed commands ask about processes."""

import time
from pathlib import Path


def descendants(pid):
    """Process ids of the children of a process, and of theirs."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
        found = [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:
        return []
    return found + [grandchild for child in found for grandchild in descendants(child)]


def gone(pid):
    """Whether the process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(holds, most_s=600.0):
    """Wait until it holds; returns whether it does."""
    deadline = time.monotonic() + most_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()
