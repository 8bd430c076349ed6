"""Statistics of few, bimodal seeds: interquartile means, bootstrap intervals, probability of improvement.

As Agarwal et al. (2021), "Deep RL at the edge of the statistical precipice", recommend. Everything is drawn from a
generator of its own, so the same figures come out each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
LEAST_SEEDS = 3  # fewer say nothing about their spread
ENOUGH_SEEDS = 5  # for a verdict: of 3 normal seeds an interval holds the truth in 3 cases of 4, of 5 in 9 of 10

Statistic = Callable[[list[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval (None where fewer than 3 seeds allow none), and how many seeds it is made of."""

    value: float
    low: float | None
    high: float | None
    n: int


def iqm(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half along ``axis``: a quarter of the values is cut from each end, rounded down.

    >>> float(iqm(np.array([-90.0, 1.0, 2.0, 3.0, 90.0])))
    2.0
    """
    ordered = np.sort(np.moveaxis(np.asarray(values, float), axis, -1), axis=-1)
    n = ordered.shape[-1]
    if n == 0:
        raise ValueError("the mean of no values is not defined")
    cut = n // 4
    return np.asarray(ordered[..., cut : n - cut].mean(axis=-1))


def stratified_bootstrap(
    strata: Sequence[np.ndarray], statistic: Statistic, *, resamples: int = RESAMPLES
) -> np.ndarray:
    """``statistic`` of ``resamples`` resamples, (resamples, ...).

    strata     arrays (n_i, ...) whose rows are drawn with replacement, each stratum from its own rows alone. Figures
               that belong together (paired seeds) are columns of one stratum, so they are drawn together.
    statistic  takes the resampled strata, each (resamples, n_i, ...), and reduces all but the first axis at will.
    """
    rng = np.random.default_rng(0)
    return statistic([x[rng.integers(len(x), size=(resamples, len(x)))] for x in map(np.asarray, strata)])


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of ``samples`` along the first axis, those that are not defined (NaN) left out."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(samples, [tail, 1 - tail], axis=0)
    return low, high


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """IQM of one cell's seeds with its bootstrap interval. Raises ValueError for no values at all."""
    return _estimate(tuple(map(float, values)))


def proportion(seeds: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of one cell's seeds, of which each is 0 or 1, with its bootstrap interval. An IQM of those would round."""
    return figure([np.asarray(seeds, float)], lambda drawn: drawn[0].mean(axis=1))


@lru_cache(maxsize=4096)  # a report asks for the same figure in many places
def _estimate(values: tuple[float, ...]) -> Estimate:
    return of_strata([np.array(values)])


def of_strata(strata: Sequence[np.ndarray]) -> Estimate:
    """IQM over the seeds of several tasks, (n_i,) each, resampled within each task. Raises ValueError for no values."""
    return figure(strata, lambda drawn: iqm(np.concatenate(drawn, axis=1)))


def figure(strata: Sequence[np.ndarray], statistic: Statistic) -> Estimate:
    """``statistic`` of the strata as they are, with its bootstrap interval. See :func:`stratified_bootstrap`."""
    if any(np.isnan(x).any() for x in strata):
        raise ValueError("a figure that is none among the seeds'")  # sorted, it would pass for the largest
    value = float(statistic([np.asarray(x)[None] for x in strata])[0])
    n = min(map(len, strata))
    if n < LEAST_SEEDS:
        return Estimate(value, None, None, n)
    low, high = interval(stratified_bootstrap(strata, statistic))
    return Estimate(value, float(low), float(high), n)


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Chance that a seed of ``ours`` lies above a seed of ``theirs``; a tie counts half. Raises ValueError for none."""
    if not len(ours) or not len(theirs):
        raise ValueError("no seeds to compare")
    return _improvement(tuple(map(float, ours)), tuple(map(float, theirs)))


@lru_cache(maxsize=4096)
def _improvement(ours: tuple[float, ...], theirs: tuple[float, ...]) -> Estimate:
    x, y = np.array(ours)[:, None], np.array(theirs)
    above = (x > y) + 0.5 * (x == y)  # (n, m)

    def chance(drawn: list[np.ndarray]) -> np.ndarray:
        first, second = (_times(places, size) / size for places, size in zip(drawn, above.shape, strict=True))
        return np.asarray((first @ above * second).sum(-1))

    return figure([np.arange(len(ours)), np.arange(len(theirs))], chance)


def _times(places: np.ndarray, size: int) -> np.ndarray:
    """How often each of ``size`` was drawn: places (resamples, n) -> (resamples, size)."""
    rows = np.arange(len(places))[:, None] * size
    return np.bincount((rows + places).ravel(), minlength=len(places) * size).reshape(len(places), size)


def share_kept(with_tv: Sequence[float], without: Sequence[float], nothing: float) -> Estimate | None:
    """How much of what was gained over ``nothing`` without the TV is gained with it; IQM over IQM, paired by seed.

    ``nothing`` is what a random policy gets. Returns that are negative, or start from some other zero, so make a ratio
    that means something. None where the gain without the TV is not clearly above 0: there is nothing to keep.
    """
    gains = np.stack([np.asarray(with_tv, float), np.asarray(without, float)], axis=1) - nothing  # (n, 2)
    if len(gains) >= LEAST_SEEDS:
        low, _ = interval(stratified_bootstrap([gains[:, 1]], lambda drawn: iqm(drawn[0])))
    else:
        low = gains[:, 1].min()
    if low <= 0:
        return None

    def ratio(drawn: list[np.ndarray]) -> np.ndarray:
        bottom = iqm(drawn[0][..., 1])  # a resample in 40 lies below the interval, and perhaps below 0
        return np.asarray(iqm(drawn[0][..., 0]) / np.where(bottom > 0, bottom, np.nan))

    return figure([gains], ratio)


def band(curves: np.ndarray, *, resamples: int = 1000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IQM over seeds of ``curves`` (n, T), and the interval at each point: three arrays (T,)."""
    middle = iqm(curves, axis=0)
    if len(curves) < LEAST_SEEDS:
        return middle, middle, middle
    low, high = interval(stratified_bootstrap([curves], lambda drawn: iqm(drawn[0], axis=1), resamples=resamples))
    return middle, low, high
