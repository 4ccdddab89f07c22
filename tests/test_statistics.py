"""Statistics against numbers worked out by hand."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from fastdwm.measure.statistics import (
    bootstrap,
    interquartile_mean,
    mean_of_means,
    paired_difference,
    probability_of_improvement,
    success_rate,
    summarise,
    two_level,
)


def test_interquartile_mean_drops_a_quarter_at_each_end():
    # 1 2 | 3 4 5 6 | 7 8, in any order; of ten, 10 // 4 = 2 are dropped at each end
    assert interquartile_mean(np.array([8.0, 1, 7, 2, 6, 3, 5, 4])) == 4.5
    assert interquartile_mean(np.array([0.0, 0, 1, 2, 3, 4, 5, 6, 90, 90])) == 3.5


def test_summary_uses_the_sample_standard_deviation():
    summary = summarise([1, 2, 3, 4])
    assert summary.mean == 2.5
    assert summary.std == pytest.approx(np.sqrt(5 / 3))


def test_one_sample_has_neither_spread_nor_interval():
    summary = summarise([7.0])
    assert (summary.mean, summary.std) == (7.0, None)
    assert (summary.iqm.value, summary.iqm.low, summary.iqm.high) == (7.0, None, None)


def test_paired_difference_is_the_mean_of_the_differences():
    # Differences 1, 2, 3: resampled means lie in [1, 3], and 95 % of them reach neither end.
    difference = paired_difference([11, 22, 33], [10, 20, 30])
    assert difference.value == 2.0
    assert 1.0 <= difference.low < 2.0 < difference.high <= 3.0


def test_pairing_removes_what_both_samples_share():
    base = np.array([0.0, 1000, -500, 30])
    difference = paired_difference(base + 5, base)
    assert (difference.value, difference.low, difference.high) == (5.0, 5.0, 5.0)


def test_interval_has_the_width_of_a_normal_mean():
    x = np.random.default_rng(1).normal(size=400)
    estimate = bootstrap(x, np.mean)
    # standard error of the mean: std / sqrt(400); 95 % of a normal lie within 1.96 of them
    half = 1.96 * x.std() / 20
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.1 * half)


@pytest.mark.parametrize("x", [[], [[1.0, 2.0]], [1.0, np.nan], [np.inf]], ids=["empty", "table", "nan", "infinite"])
def test_unusable_samples_raise(x):
    with pytest.raises(ValueError, match="samples"):
        bootstrap(x, np.mean)


@pytest.mark.parametrize(
    ("by", "outcome"), [(1e-7, "tie"), (-1e-7, "tie"), (1e-3, "better"), (-1e-3, "worse"), (0.0, "tie")]
)
def test_a_difference_of_rounding_is_a_tie(by, outcome):
    x = np.array([50.0, 60.0, 70.0, 80.0])
    assert paired_difference(x + by, x).outcome == outcome
    won = {"better": 1.0, "worse": 0.0, "tie": 0.5}[outcome]
    assert probability_of_improvement([([50.0 + by], [50.0])]).value == won


def test_one_training_has_the_interval_of_its_episodes():
    x = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert two_level([x], np.mean) == bootstrap(x, np.mean)


def test_two_levels_have_the_standard_error_of_both():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (40, 1)) + rng.normal(0, 6, (40, 25))
    estimate = two_level(x, np.mean)
    # Var = v_between / S + mean of v_within / (S N), v with the divisor that resampling has.
    error = np.sqrt(x.mean(1).var() / 40 + x.var(1).mean() / (40 * 25))
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.low == pytest.approx(x.mean() - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(x.mean() + 1.96 * error, abs=0.1 * error)


def test_two_levels_draw_trainings_as_a_whole():
    # A resample of two trainings without spread is all 0 (1 in 4), all 1 (1 in 4) or half of each.
    estimate = two_level([[0.0] * 50, [1.0] * 50], np.mean)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.0, 1.0)


def test_two_levels_take_any_statistic():
    # All twelve together: 0 0 0 | 1 1 1 1 1 1 | 2 2 50
    assert two_level([[0, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, 50]], interquartile_mean).value == 1.0


def test_mean_of_means_weighs_tasks_alike():
    assert mean_of_means([[[1.0] * 10], [[4.0, 4.0]]]).value == 2.5


def test_mean_of_means_has_the_standard_error_of_independent_tasks():
    rng = np.random.default_rng(2)
    tables = [rng.normal(size=(1, 50)) * scale for scale in (1, 5, 9)]
    error = np.sqrt(sum(x.var() / 50 for x in tables)) / 3
    estimate = mean_of_means(tables)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_probability_of_improvement_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(3)
    pairs = [(rng.integers(0, 5, n), rng.integers(1, 6, m)) for n, m in ((4, 7), (9, 3))]
    expected = np.mean([stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in pairs])
    assert probability_of_improvement(pairs).value == pytest.approx(expected)


def test_probability_of_improvement_has_the_interval_of_all_resamples():
    x, y = [1.0, 4.0, 6.0], [2.0, 3.0, 5.0]
    drawn = [
        np.mean([(a > b) + 0.5 * (a == b) for a in u for b in v])
        for u, v in product(product(x, repeat=3), product(y, repeat=3))
    ]
    estimate = probability_of_improvement([(x, y)])
    assert estimate.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.06)
    assert estimate.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.06)


def test_success_rate_has_the_interval_of_wilson():
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    n, z = 20, stats.norm.ppf(0.975)
    for successes in (0, 13, 20):
        p, estimate = successes / n, success_rate(successes, n)
        half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        centre = p + z**2 / (2 * n)
        actual = (estimate.value, estimate.low, estimate.high)
        assert actual == pytest.approx((p, (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)))


def test_samples_of_different_lengths_raise():
    with pytest.raises(ValueError):
        two_level([[1.0, 2.0], [1.0]], np.mean)
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_difference([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"\(S, N\)"):
        two_level([1.0, 2.0], np.mean)
