"""Fixtures of several test files.

The real compiler (ahead-of-time and GPU tests) and the interpreter (no device) cannot live in one process: Triton
decides when a kernel is decorated. So this process has the compiler, and one worker process the interpreter.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
import torch


@pytest.fixture
def quick(monkeypatch):
    """Measure the latency of an episode that decides alone on a few decisions: no test is about it."""
    monkeypatch.setattr("fastdwm.measure.latency.BUDGET_S", 0.1)


@pytest.fixture
def private_folders(tmp_path, monkeypatch):
    """Keep datasets and their caches in the test's own folder."""
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


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
