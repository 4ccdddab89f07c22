"""Device, versions and commit that a measured time belongs to."""

import subprocess
from functools import lru_cache
from pathlib import Path

import torch

from fastdwm.machine import cpu_model, package_versions

PACKAGES = ("torch", "triton", "numba", "numpy", "jax")


@lru_cache
def provenance(device: str) -> dict:
    """Everything besides the benchmark that the time depends on."""
    cuda = device == "cuda"
    commit, changes = (git(*command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu_model(),
        "threads": torch.get_num_threads(),
        "versions": dict.fromkeys(PACKAGES)
        | package_versions(PACKAGES)
        | ({"cuda": torch.version.cuda} if cuda else {}),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def git(*command: str) -> str | None:
    """Return the output of a git command; None without git or a repository."""
    try:
        done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
