"""The statistics against closed forms and against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dreamer_lpm.report.statistics import (
    LEAST_SEEDS,
    band,
    estimate,
    interval,
    iqm,
    of_strata,
    probability_of_improvement,
    share_kept,
    stratified_bootstrap,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", range(1, 14))
def test_iqm_is_the_trimmed_mean(n: int) -> None:
    values = RNG.normal(size=(3, n))
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=1))
    assert iqm(values.T, axis=0) == pytest.approx(iqm(values))


def test_iqm_ignores_the_ends_and_not_the_middle() -> None:
    assert iqm(np.array([-1e9, 1, 2, 3, 1e9])) == 2
    assert iqm(np.array([5.0, 1.0])) == 3
    with pytest.raises(ValueError, match="no values"):
        iqm(np.array([]))


def test_the_bootstrap_of_a_mean_has_the_normal_interval() -> None:
    values = RNG.normal(loc=3, scale=2, size=400)
    low, high = interval(stratified_bootstrap([values], lambda drawn: drawn[0].mean(axis=1)))
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_strata_keep_their_sizes_and_their_own_values() -> None:
    def check(drawn: list[np.ndarray]) -> np.ndarray:
        assert [x.shape for x in drawn] == [(50, 3), (50, 2)]
        assert set(np.unique(drawn[0])) <= {1.0, 2.0, 3.0}
        assert set(np.unique(drawn[1])) <= {10.0, 20.0}
        return np.concatenate(drawn, axis=1).mean(axis=1)

    stratified_bootstrap([np.array([1.0, 2, 3]), np.array([10.0, 20])], check, resamples=50)


def test_between_strata_nothing_varies() -> None:
    """Two tasks, each always with its own result: nothing is left to chance, though results differ wildly."""
    found = of_strata([np.full(4, 1.0), np.full(4, 9.0)])
    assert (found.low, found.value, found.high) == (5, 5, 5)
    pooled = estimate([1.0] * 4 + [9.0] * 4)
    assert pooled.low is not None
    assert pooled.low < 5 < (pooled.high or 0)


def test_paired_columns_are_drawn_together() -> None:
    pairs = np.stack([np.arange(5.0), np.arange(5.0) + 10], axis=1)
    gaps = stratified_bootstrap([pairs], lambda drawn: (drawn[0][..., 1] - drawn[0][..., 0]).ravel())
    assert set(gaps) == {10.0}


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        found = estimate(rng.normal(size=20))
        hits += found.low is not None and found.high is not None and found.low <= 0 <= found.high
    assert 170 <= hits <= 198  # the bootstrap of 20 values is a little too sure of itself


@pytest.mark.parametrize(("n", "held"), [(3, 0.75), (5, 0.90), (10, 0.94)])
def test_intervals_of_few_seeds_are_as_narrow_as_the_page_says(n: int, held: float) -> None:
    found = [estimate(x) for x in np.random.default_rng(0).normal(size=(500, n))]
    hits = [e.low is not None and e.high is not None and e.low <= 0 <= e.high for e in found]
    assert np.mean(hits) == pytest.approx(held, abs=0.035)


def test_few_seeds_have_no_interval() -> None:
    for n in range(1, LEAST_SEEDS):
        found = estimate([1.0] * n)
        assert (found.low, found.high, found.n) == (None, None, n)
    assert estimate([1.0, 2.0, 3.0]).low is not None


def test_the_same_figures_each_time() -> None:
    values = list(RNG.normal(size=5))
    assert of_strata([np.array(values)]) == of_strata([np.array(values)])


def test_probability_of_improvement_is_mann_whitneys_u() -> None:
    ours, theirs = RNG.normal(size=7).round(1), RNG.normal(size=6).round(1)  # with ties
    u = stats.mannwhitneyu(ours, theirs).statistic
    assert probability_of_improvement(ours, theirs).value == pytest.approx(u / 42)
    assert probability_of_improvement(theirs, ours).value == pytest.approx(1 - u / 42)


def test_the_interval_of_an_improvement_is_that_of_its_resamples() -> None:
    """Drawn one after the other by the definition, from the same generator."""
    ours, theirs = np.array([1.0, 2.0, 5.0, 5.0]), np.array([2.0, 5.0, 0.0])
    rng = np.random.default_rng(0)
    x, y = (v[rng.integers(len(v), size=(10_000, len(v)))] for v in (ours, theirs))
    drawn = [float(((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean()) for a, b in zip(x, y, strict=True)]
    found = probability_of_improvement(list(ours), list(theirs))
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_what_is_no_number_is_no_figure() -> None:
    with pytest.raises(ValueError, match="none among the seeds'"):
        estimate([1.0, 2.0, 3.0, 4.0, math.nan])


def test_probability_of_improvement_at_its_ends() -> None:
    sure = probability_of_improvement([2, 3, 4], [-1, 0, 1])
    assert (sure.value, sure.low, sure.high) == (1, 1, 1)
    assert probability_of_improvement([1, 1, 1], [1, 1, 1]).value == 0.5
    with pytest.raises(ValueError, match="no seeds"):
        probability_of_improvement([], [1.0])


def test_share_kept_is_of_the_gain_over_nothing() -> None:
    """-600 instead of -200, from -1200 for random play: 600 of 1000 is kept, though -600 / -200 is 3."""
    kept = share_kept([-600.0] * 5, [-200.0] * 5, nothing=-1200.0)
    assert kept is not None
    assert (kept.low, kept.value, kept.high) == pytest.approx((0.6, 0.6, 0.6))


def test_share_kept_is_paired() -> None:
    """Each seed keeps exactly a half; unpaired resamples would spread."""
    without = np.array([10.0, 20, 40, 80, 160])
    kept = share_kept(without / 2, without, nothing=0.0)
    assert kept is not None
    assert (kept.low, kept.high) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("without", [[-1300.0] * 5, [-1200.0, -1300, -1100, -1250, -1150], [-1300.0]])
def test_nothing_is_kept_of_nothing(without: list[float]) -> None:
    assert share_kept([-600.0] * len(without), without, nothing=-1200.0) is None


def test_band_is_the_estimate_at_every_point() -> None:
    curves = RNG.normal(size=(5, 4))
    middle, low, high = band(curves, resamples=4000)
    for t in range(4):
        found = estimate(curves[:, t])
        assert found.low is not None
        assert found.high is not None
        assert middle[t] == pytest.approx(found.value)
        assert (low[t], high[t]) == pytest.approx((found.low, found.high), abs=0.15)
    lone = band(curves[:1])
    assert all((part == curves[0]).all() for part in lone)


def test_a_gain_that_is_not_clear_has_nothing_to_keep() -> None:
    """The mean is above nothing, the interval is not."""
    assert share_kept([5.0] * 4, [-30.0, -5.0, 40.0, 60.0], nothing=0.0) is None


def test_a_resample_without_a_gain_is_left_out() -> None:
    assert interval(np.array([math.nan, 1.0, 1.0, 3.0])) == pytest.approx((1.0, 2.9))
