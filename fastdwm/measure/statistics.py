"""Summaries of scores per episode: mean, interquartile mean, paired difference, bootstrap intervals."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap interval; low and high are None where one sample cannot tell."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (None for one sample) and interquartile mean of samples in their own unit."""

    mean: float
    std: float | None
    iqm: Estimate


def interquartile_mean(x: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Mean of what is left of N samples after dropping the N // 4 lowest and the N // 4 highest."""
    return stats.trim_mean(x, 0.25, axis=axis)


def bootstrap(x: ArrayLike, statistic: Callable[..., NDArray], seed: int = 0) -> Estimate:
    """The statistic of samples x (N,) with its 95 % percentile bootstrap interval.

    statistic: takes an array and `axis`.   The same samples and seed give the same interval.
    Percentile rather than BCa, because it stays defined when all samples agree.
    Raises ValueError if x is empty, not one-dimensional, or not finite.
    """
    x = _samples(x)
    value = float(statistic(x, axis=-1))
    if len(x) == 1:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    interval = stats.bootstrap(
        (x,), statistic, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=rng
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def summarise(x: ArrayLike) -> Summary:
    """Summary of samples x (N,); raises ValueError as `bootstrap` does."""
    x = _samples(x)
    std = float(x.std(ddof=1)) if len(x) > 1 else None
    return Summary(float(x.mean()), std, bootstrap(x, interquartile_mean))


def paired_difference(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Mean of x - y, both (N,) and paired by index, with the interval from resampling the pairs.

    Raises ValueError if the lengths differ, and as `bootstrap` does.
    """
    x, y = _samples(x), _samples(y)
    if len(x) != len(y):
        raise ValueError(f"pairs: expected two samples of one length, got {len(x)} and {len(y)}")
    return bootstrap(x - y, np.mean)


def _samples(x: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"samples: expected finite numbers (N,) with N > 0, got shape {x.shape}: {x}")
    return x
