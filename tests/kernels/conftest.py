"""Fixtures of the kernel tests.

Triton chooses between compiler and interpreter when a kernel is decorated, so one process cannot have both. This
process has the compiler, for ahead-of-time and GPU tests; a worker process has the interpreter.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
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


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable]:
    """`interpreted(launcher, *args)` runs a module-level function of CPU tensors under TRITON_INTERPRET=1.

    Pass results as return values: changes to an argument stay in the worker.
    """
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    fill = partial(torch.use_deterministic_algorithms, True, warn_only=True)
    worker = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=fill)
    try:
        worker.submit(os.getpid).result()
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    with worker:
        yield lambda function, *args, **kwargs: worker.submit(function, *args, **kwargs).result(timeout=300)
