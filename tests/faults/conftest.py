"""Options, time and summary of the fault campaign.

    pytest tests/faults --faults-seconds 3600 --faults-seed 1

Without the options, and in a run of all tests, it takes about a minute.
"""

import sys
from pathlib import Path

import pytest

# A run of this folder alone needs the helpers of tests/ too.
sys.path[:0] = [str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[1])]
COUNTS = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--faults-seconds", type=float, default=60.0, help="time for the whole campaign")
    parser.addoption("--faults-seed", type=int, default=0, help="seed of the mutations")


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(COUNTS, []):
        terminalreporter.write_line(line)


@pytest.fixture
def seconds(request):
    """Time for the whole campaign."""
    return request.config.getoption("--faults-seconds", 60.0)


@pytest.fixture
def seed(request):
    return request.config.getoption("--faults-seed", 0)


@pytest.fixture
def tell(request):
    """Function that adds a line to the summary at the end."""
    return request.config.stash.setdefault(COUNTS, []).append
