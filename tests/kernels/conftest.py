"""Fixtures of the kernel tests.

The real compiler (ahead-of-time and GPU tests) and the interpreter (no device) cannot live in one process: Triton
decides when a kernel is decorated. So this process has the compiler, and one worker process the interpreter.
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
