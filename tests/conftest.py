"""Fixtures that several test files use."""

import pytest


@pytest.fixture
def quick(monkeypatch):
    """Measure latencies on a few decisions, for tests that do not look at them."""
    monkeypatch.setattr("fastdwm.measure.latency.BUDGET_S", 0.1)


@pytest.fixture
def private_folders(tmp_path, monkeypatch):
    """Keep datasets and their caches in the test's own folder."""
    monkeypatch.setenv("FASTDWM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
