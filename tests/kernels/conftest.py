"""Fixtures of the kernel tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdwm_kernels import memory

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(autouse=True)
def nan_scratch() -> Iterator[None]:
    """Fill every torch.empty with NaN, so that a value read before it is written shows up."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def nan_memory(monkeypatch) -> None:
    """No recycled memory of earlier tests, and NaN in what is new."""
    monkeypatch.setattr(memory, "fresh", lambda size: np.full(size, np.nan, dtype=np.float32))
    monkeypatch.setattr(memory.POOL, "free", [])
