"""Statistics against numbers worked out by hand."""

import numpy as np
import pytest

from fastdwm.measure.statistics import bootstrap, interquartile_mean, paired_difference, summarise


def test_interquartile_mean_drops_a_quarter_at_each_end():
    # 1 2 | 3 4 5 6 | 7 8, in any order
    assert interquartile_mean(np.array([8.0, 1, 7, 2, 6, 3, 5, 4])) == 4.5


def test_interquartile_mean_ignores_outliers():
    assert interquartile_mean(np.array([-1000.0, 1, 2, 1000])) == 1.5


def test_interquartile_mean_of_ten_keeps_six():
    # 10 // 4 = 2 are dropped at each end
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
    # differences 1, 2, 3: any resampled mean lies in [1, 3], and 95 % of them do not reach either end
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


def test_interval_is_the_same_every_time():
    x = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert bootstrap(x, np.mean) == bootstrap(x, np.mean)


@pytest.mark.parametrize("x", [[], [[1.0, 2.0]], [1.0, np.nan], [np.inf]], ids=["empty", "table", "nan", "infinite"])
def test_unusable_samples_raise(x):
    with pytest.raises(ValueError, match="samples"):
        bootstrap(x, np.mean)


def test_unpaired_lengths_raise():
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_difference([1, 2, 3], [1, 2])
