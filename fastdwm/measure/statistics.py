"""Summaries of the scores of episodes, from one training or several: means, differences, and their intervals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE = 0.95
DIGITS = 6
NOISE = 10.0**-DIGITS
"""largest difference in score between two policies that act alike, due to rounding"""
MARGIN = 1.0
"""loss of score that counts as harm"""
# Numbers that resampling draws at a time, to bound the memory.
_MOST_DRAWN = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap interval; low and high are None for a single sample."""

    value: float
    low: float | None
    high: float | None

    @property
    def outcome(self) -> str:
        """Verdict on a difference: better or worse if the interval excludes 0 by more than rounding, else tie."""
        if self.low is None or self.high is None or self.low <= NOISE and self.high >= -NOISE:
            return "tie"
        return "better" if self.low > NOISE else "worse"


def count_outcomes(differences: Sequence[Estimate]) -> dict[str, int]:
    """Count the differences that are harmless (at least -MARGIN), harmful (interval below -MARGIN), better, worse."""
    return {
        "harmless": sum(x.value >= -MARGIN for x in differences),
        "harmful": sum(x.high is not None and x.high < -MARGIN for x in differences),
        "better": sum(x.outcome == "better" for x in differences),
        "worse": sum(x.outcome == "worse" for x in differences),
    }


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (None for one sample) and interquartile mean of samples in their own unit."""

    mean: float
    std: float | None
    iqm: Estimate


def interquartile_mean(x: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Mean of N samples without the N // 4 lowest and the N // 4 highest."""
    return stats.trim_mean(x, 0.25, axis=axis)


def bootstrap(x: ArrayLike, statistic: Callable[..., NDArray], seed: int = 0) -> Estimate:
    """The statistic of samples x (N,) with its 95 % percentile bootstrap interval.

    statistic: takes an array and `axis`.   The same samples and seed give the same interval.
    The percentile interval, unlike BCa, is defined when all samples are equal.
    Raises ValueError if x is empty, not one-dimensional, or not finite.
    """
    x = _samples(x)
    if len(x) == 1:
        return Estimate(float(statistic(x, axis=-1)), None, None)
    return _bootstrap((x,), statistic, seed)


def ratio_of_means(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Mean of x over mean of y, both (N,) and paired by index, with the interval from resampling the pairs.

    There is no interval unless the interval of the mean of y lies above zero.
    """
    x, y = _pair(x, y)

    def ratio(x: NDArray, y: NDArray, axis: int = -1) -> NDArray:
        return x.mean(axis) / y.mean(axis)

    low = bootstrap(y, np.mean).low
    if low is None or low <= 0:
        return Estimate(float(ratio(x, y)), None, None)
    return _bootstrap((x, y), ratio, 0)


def summarise(x: ArrayLike) -> Summary:
    """Summary of samples x (N,); raises ValueError as `bootstrap` does."""
    x = _samples(x)
    std = float(x.std(ddof=1)) if len(x) > 1 else None
    return Summary(float(x.mean()), std, bootstrap(x, interquartile_mean))


def paired_difference(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Mean of x - y, both (N,) and paired by index, with the interval from resampling the pairs.

    Raises ValueError if the lengths differ, and as `bootstrap` does.
    """
    x, y = _pair(x, y)
    return bootstrap(x - y, np.mean)


def confidence_above(x: ArrayLike, y: ArrayLike, margin: float = 0.0, seed: int = 0) -> float:
    """Share of resamples of the pairs in which the interquartile mean of x exceeds that of y by more than the margin.

    x, y: (N,), paired by index.   Raises ValueError as `paired_difference` does.
    """
    pairs = np.stack(_pair(x, y))
    drawn = pairs[:, np.random.default_rng(seed).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))]
    above = interquartile_mean(drawn[0]) - interquartile_mean(drawn[1]) > margin
    return float(above.mean())


def two_level(x: ArrayLike, statistic: Callable[..., NDArray], seed: int = 0) -> Estimate:
    """The statistic of samples x (S, N), N for each of S trainings, with the interval of a two-level bootstrap.

    A resample draws S trainings with replacement, then N samples of each, so the interval covers the variation between
    trainings and between episodes. A single training gets the interval of `bootstrap`.
    Raises ValueError if x is empty, not two-dimensional, or not finite.
    """
    x = _samples(x, 2)
    if len(x) == 1:
        return bootstrap(x[0], statistic, seed)
    parts = (statistic(part.reshape(len(part), -1), axis=-1) for part in _resamples(x, seed))
    return _interval(float(statistic(x.reshape(-1), axis=-1)), np.concatenate(list(parts)))


def mean_of_means(tables: Sequence[ArrayLike], seed: int = 0) -> Estimate:
    """Mean over T tasks of the mean of x_t (S_t, N_t), each resampled separately as in `two_level`.

    The tasks are fixed, so the interval covers the variation between trainings and episodes, not between tasks.
    """
    checked = [_samples(x, 2) for x in tables]
    value = float(np.mean([x.mean() for x in checked]))
    if all(x.size == 1 for x in checked):
        return Estimate(value, None, None)
    # A seed per task, so that the tasks are resampled independently.
    means = [np.concatenate([part.mean((1, 2)) for part in _resamples(x, seed + i)]) for i, x in enumerate(checked)]
    return _interval(value, np.mean(means, axis=0))


def probability_of_improvement(pairs: Sequence[tuple[ArrayLike, ArrayLike]], seed: int = 0) -> Estimate:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2, for runs x (N,) and y (M,) of every task.

    The interval resamples the runs of every task, x and y independently; it is None if no task has two runs.
    Source: Agarwal et al. 2021, arXiv 2108.13264, section 4.3 (rliable).
    """
    checked = [(_samples(x), _samples(y)) for x, y in pairs]
    value = float(np.mean([_wins(x, y) for x, y in checked]))
    if max(len(sample) for pair in checked for sample in pair) == 1:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    drawn = [
        _wins(*(sample[rng.integers(len(sample), size=(RESAMPLES, len(sample)))] for sample in p)) for p in checked
    ]
    return _interval(value, np.mean(drawn, axis=0))


def success_rate(successes: int, trials: int) -> Estimate:
    """Share of successes with Wilson's 95 % interval, which is valid near 0 and 1 and for few trials."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def _bootstrap(samples: tuple[NDArray[np.float64], ...], statistic: Callable[..., NDArray], seed: int) -> Estimate:
    """The statistic of the samples, paired by index, with its percentile bootstrap interval."""
    how = {"paired": len(samples) > 1, "n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile"}
    interval = stats.bootstrap(samples, statistic, **how, rng=np.random.default_rng(seed)).confidence_interval
    return Estimate(float(statistic(*samples, axis=-1)), float(interval.low), float(interval.high))


def _wins(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of pairs in which x (..., N) exceeds y (..., M), ties count half: Mann-Whitney's U over N M."""
    difference = (x[..., :, None] - y[..., None, :]).round(DIGITS)
    return (np.sign(difference).mean((-2, -1)) + 1) / 2


def _resamples(x: NDArray[np.float64], seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield RESAMPLES two-level resamples of x (S, N) in parts (R, S, N) of bounded size."""
    rng = np.random.default_rng(seed)
    n_seeds, n = x.shape
    step = max(1, _MOST_DRAWN // x.size)
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        rows = rng.integers(n_seeds, size=(count, n_seeds, 1))
        yield x[rows, rng.integers(n, size=(count, n_seeds, n))]


def _interval(value: float, drawn: NDArray[np.float64]) -> Estimate:
    """The value with the central interval of its resamples."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = _samples(x), _samples(y)
    if len(x) != len(y):
        raise ValueError(f"pairs: expected two samples of one length, got {len(x)} and {len(y)}")
    return x, y


def _samples(x: ArrayLike, ndim: int = 1) -> NDArray[np.float64]:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != ndim or x.size == 0 or not np.isfinite(x).all():
        shape = "(N,)" if ndim == 1 else "(S, N)"
        raise ValueError(f"samples: expected finite numbers {shape}, at least one, got shape {x.shape}: {x}")
    return x
