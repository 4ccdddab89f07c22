"""Options and fixtures of the benchmarks: `pytest bench --benchmark-only`.

Every benchmark compares its result with the reference before it is timed. The peers of one problem run one after the
other on the same inputs, so that a slow machine slows all of them.
"""

from collections.abc import Callable
from functools import lru_cache
from time import perf_counter

import numpy as np
import pytest
import torch
from problems import Problem, Size, sizes
from provenance import provenance

BUDGET_S, MIN_ROUNDS, MAX_ROUNDS = {"cpu": 0.6, "cuda": 0.2}, 7, 300
"""time to measure one peer on each device, and least and most calls"""

BOUND = {"ieee": 1e-3, "fp16": 3e-2}
"""accepted error of a whole rollout, relative to the norm of the reference; errors of wrong code are far larger"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastdwm")
    group.addoption("--full", action="store_true", help="every combination of problem sizes; takes hours")
    group.addoption("--compile", action="store_true", help="torch.compile too, at the target sizes; minutes for each")
    group.addoption("--threads", type=int, default=1, help="CPU threads of every peer (default: 1)")
    group.addoption("--device", choices=("cpu", "cuda"), help="only this device (default: all there are)")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.getoption("threads"))


def pytest_report_header(config: pytest.Config) -> str:
    return f"threads: {torch.get_num_threads()}, devices: {', '.join(devices(config))}"


def devices(config: pytest.Config) -> list[str]:
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    wanted = config.getoption("device")
    # The cases can be listed without the device.
    if wanted and wanted not in there and not config.option.collectonly:
        raise pytest.UsageError(f"--device {wanted}: this machine has none")
    return [wanted] if wanted else there


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise each test in its module's RACES by the sizes and peers named there."""
    race = getattr(metafunc.module, "RACES", {}).get(metafunc.function.__name__)
    if race is None:
        return
    restrict, peers = race
    every = [s for device in devices(metafunc.config) for s in sizes(device, metafunc.config.getoption("full"))]
    cases = [(s, peer) for s in dict.fromkeys(map(restrict, every)) for peer in peers[s.device]]
    metafunc.parametrize(("size", "peer"), cases, ids=[f"{s}-{peer.replace(' ', '_')}" for s, peer in cases])


@lru_cache(maxsize=1)
def problem_of(size: Size) -> Problem:
    return Problem(size)


@pytest.fixture
def problem(size: Size) -> Problem:
    return problem_of(size)


@pytest.fixture
def race(benchmark, request: pytest.FixtureRequest) -> Callable:
    """Function `race(operation, size, peer, call, expected)` that checks the result of call() and then times it.

    expected: () -> tensors that call() must return, or None for no comparison.
    check: () -> tensors to compare instead of those of call().
    """

    def run(operation: str, size: Size, peer: str, call, expected, precision="ieee", check=None, **extra):
        benchmark.group = f"{operation} {size}"
        error = None if expected is None else relative_error((check or call)(), expected())
        # NaN fails too.
        assert error is None or error <= BOUND[precision], f"{peer} is off by {error:.3g} of the reference"
        call = finished(call, size.device)
        rounds = calibrate(call, BUDGET_S[size.device])
        benchmark.pedantic(call, rounds=rounds, iterations=1)
        if benchmark.stats is None:
            return
        low, high = np.quantile(benchmark.stats.stats.data, [0.2, 0.8])
        benchmark.extra_info |= provenance(size.device) | extra
        benchmark.extra_info |= {
            "operation": operation,
            "peer": peer,
            "shape": size.shape,
            "dtype": "float32" if precision == "ieee" else f"float32, products {precision}",
            "unit": "s",
            "quantile_20": float(low),
            "quantile_80": float(high),
            "error": error,
        }

    return run


def relative_error(actual, expected) -> float:
    """Largest |actual - expected| / |expected| over a tensor or a tuple of tensors, in Frobenius norms."""
    if isinstance(expected, tuple):
        return max(relative_error(*pair) for pair in zip(actual, expected, strict=True))
    actual, expected = (torch.as_tensor(x).detach().double().cpu() for x in (actual, expected))
    assert actual.shape == expected.shape and expected.norm() > 0
    return float((actual - expected).norm() / expected.norm())


def finished(call: Callable, device: str) -> Callable:
    """`call` that waits for the device."""
    if device == "cpu":
        return call

    def synchronised():
        result = call()
        torch.cuda.synchronize()
        return result

    return synchronised


def calibrate(call: Callable, budget_s: float) -> int:
    """Warm up; returns the number of calls that the budget allows."""
    start, times = perf_counter(), []
    while len(times) < 3 or (perf_counter() - start < 0.1 and len(times) < 50):
        before = perf_counter()
        call()
        times.append(perf_counter() - before)
    return int(np.clip(budget_s / np.median(times), MIN_ROUNDS, MAX_ROUNDS))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Keep the host's name out of the results."""
    machine_info["node"] = ""
