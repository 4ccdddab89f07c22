"""What a measured time belongs to: device, versions, commit."""

import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import torch


@lru_cache
def provenance(device: str) -> dict:
    """What else the time depends on."""
    cuda = device == "cuda"
    commit, changes = (git(*command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain")))
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "triton", "numba", "numpy", "jax")}
        | ({"cuda": torch.version.cuda} if cuda else {}),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def git(*command: str) -> str | None:
    done = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
