"""Refuse to decide in a forked process where torch would wait for ever for its parent's threads.

A forked process has none of its parent's threads, but torch waits for those that it has used. It does not say whether
it has used any, so agents record that they have decided with several.
"""

import os
from dataclasses import dataclass

import torch


@dataclass
class Threads:
    """Whether agents have used several of torch's threads."""

    used: bool = False
    """in this process"""
    lost: bool = False
    """in the process that this one was forked from"""

    def note_fork(self) -> None:
        self.lost = self.lost or self.used

    def check(self) -> None:
        """Raise RuntimeError where torch would wait for threads that a fork has lost."""
        if torch.get_num_threads() == 1:
            return
        if self.lost:
            raise RuntimeError(
                "the agent decided with several threads before this process was forked, and torch would wait for them "
                "for ever: start processes by 'spawn', or call torch.set_num_threads(1) in this one"
            )
        self.used = True


THREADS = Threads()
os.register_at_fork(after_in_child=THREADS.note_fork)
