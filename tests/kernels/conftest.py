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
    """Fill every torch.empty with NaN, so that a read before the first write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request, monkeypatch) -> Iterator[None]:
    """CPU kernels on one and on two threads, even for little work."""
    monkeypatch.setattr("fastdwm_kernels.cpu.MIN_PRODUCTS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def nan_memory(monkeypatch) -> None:
    """Empty the pool of recycled memory, and fill new memory with NaN."""
    monkeypatch.setattr(memory, "fresh", lambda size: np.full(size, np.nan, dtype=np.float32))
    monkeypatch.setattr(memory.POOL, "free", [])
