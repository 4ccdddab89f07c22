"""Fixtures of several test files."""

import pytest


@pytest.fixture
def quick(monkeypatch):
    """Measure the latency of an episode that decides alone on a few decisions: no test is about it."""
    monkeypatch.setattr("fastdwm.measure.latency.BUDGET_S", 0.1)
