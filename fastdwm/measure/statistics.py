"""Summaries of scores per episode, of one training or of several: means, differences, and their intervals."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 10_000
CONFIDENCE = 0.95
DIGITS = 6
NOISE = 10.0**-DIGITS
"""score: two policies that act alike differ by this at most, through rounding"""
MARGIN = 1.0
"""points of score that count as harm"""
# of numbers at once, which bounds the memory
_MOST_DRAWN = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap interval; low and high are None where one sample cannot tell."""

    value: float
    low: float | None
    high: float | None

    @property
    def outcome(self) -> str:
        """Of a difference: better or worse where the interval excludes 0 by more than rounding, otherwise tie."""
        if self.low is None or self.high is None or self.low <= NOISE and self.high >= -NOISE:
            return "tie"
        return "better" if self.low > NOISE else "worse"


def count_outcomes(differences: Sequence[Estimate]) -> dict[str, int]:
    """Differences of score that are harmless (at least -MARGIN), harmful (interval below -MARGIN), better and worse."""
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
    """Mean of what is left of N samples after dropping the N // 4 lowest and the N // 4 highest."""
    return stats.trim_mean(x, 0.25, axis=axis)


def bootstrap(x: ArrayLike, statistic: Callable[..., NDArray], seed: int = 0) -> Estimate:
    """The statistic of samples x (N,) with its 95 % percentile bootstrap interval.

    statistic: takes an array and `axis`.   The same samples and seed give the same interval.
    Percentile rather than BCa, because it stays defined when all samples agree.
    Raises ValueError if x is empty, not one-dimensional, or not finite.
    """
    x = _samples(x)
    if len(x) == 1:
        return Estimate(float(statistic(x, axis=-1)), None, None)
    return _bootstrap((x,), statistic, seed)


def ratio_of_means(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Mean of x over mean of y, both (N,) and paired by index, with the interval from resampling the pairs.

    Without an interval if the mean of y itself is not clearly above zero: the ratio has none then.
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
    """The statistic of all samples x (S, N), N of each of S trainings, with the interval that both levels give.

    A resample draws S trainings with replacement, then N samples of each of them: what another training and other
    episodes could have given. One training cannot tell the former, and gets the interval of `bootstrap`.
    Raises ValueError if x is empty, not two-dimensional, or not finite.
    """
    x = _samples(x, 2)
    if len(x) == 1:
        return bootstrap(x[0], statistic, seed)
    parts = (statistic(part.reshape(len(part), -1), axis=-1) for part in _resamples(x, seed))
    return _interval(float(statistic(x.reshape(-1), axis=-1)), np.concatenate(list(parts)))


def mean_of_means(tables: Sequence[ArrayLike], seed: int = 0) -> Estimate:
    """Mean over T tasks of the mean of x_t (S_t, N_t), each resampled by itself as `two_level` does.

    The tasks are fixed: the interval says what other trainings and episodes, not what other tasks, could have given.
    """
    checked = [_samples(x, 2) for x in tables]
    value = float(np.mean([x.mean() for x in checked]))
    if all(x.size == 1 for x in checked):
        return Estimate(value, None, None)
    # Seeds of their own, so that the tasks are drawn independently.
    means = [np.concatenate([part.mean((1, 2)) for part in _resamples(x, seed + i)]) for i, x in enumerate(checked)]
    return _interval(value, np.mean(means, axis=0))


def probability_of_improvement(pairs: Sequence[tuple[ArrayLike, ArrayLike]], seed: int = 0) -> Estimate:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2 for a run of each of two samples, x (N,) and y (M,) of every task.

    Interval: resampling the runs of every task, x and y independently; None where no task has two runs.
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
    """Share of trials that succeeded with Wilson's 95 % interval, which holds near 0 and 1 and for few trials too."""
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / trials, float(interval.low), float(interval.high))


def _bootstrap(samples: tuple[NDArray[np.float64], ...], statistic: Callable[..., NDArray], seed: int) -> Estimate:
    """The statistic of the samples, paired by index, with its percentile bootstrap interval."""
    how = {"paired": len(samples) > 1, "n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile"}
    interval = stats.bootstrap(samples, statistic, **how, rng=np.random.default_rng(seed)).confidence_interval
    return Estimate(float(statistic(*samples, axis=-1)), float(interval.low), float(interval.high))


def _wins(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of pairs in which x (..., N) exceeds y (..., M), ties by half; the U statistic of Mann and Whitney / NM."""
    difference = (x[..., :, None] - y[..., None, :]).round(DIGITS)
    return (np.sign(difference).mean((-2, -1)) + 1) / 2


def _resamples(x: NDArray[np.float64], seed: int) -> Iterator[NDArray[np.float64]]:
    """RESAMPLES resamples of both levels of x (S, N), in parts (R, S, N) of bounded size."""
    rng = np.random.default_rng(seed)
    n_seeds, n = x.shape
    step = max(1, _MOST_DRAWN // x.size)
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        rows = rng.integers(n_seeds, size=(count, n_seeds, 1))
        yield x[rows, rng.integers(n, size=(count, n_seeds, n))]


def _interval(value: float, drawn: NDArray[np.float64]) -> Estimate:
    """The value with the central CONFIDENCE of what resampling gave."""
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
