"""Learning curves of several seeds on one time axis: smoothed, then their interquartile mean and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dreamer_lpm.report.metrics import Row
from dreamer_lpm.report.statistics import band

POINTS = 80
_MOST = 1e100  # of a figure that sums and squares can be taken of
SMOOTHING = 5  # episodes in the running mean: the one that "solved" is judged by


@dataclass(frozen=True)
class Curve:
    """``steps``, ``value`` (IQM over seeds), ``low`` and ``high`` are (T,); ``seeds`` are each seed's own (T,)."""

    steps: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: dict[int, np.ndarray]


def series(rows: Sequence[Row], kind: str, key: str, arm: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Env steps and finite values of ``key`` in rows of that kind (and, for evaluations, arm); maybe none."""
    found = [
        (row["step"], row[key])
        for row in rows
        if row["kind"] == kind and (arm is None or row.get("arm") == arm) and _is_finite(row.get(key))
    ]
    steps, values = np.array(found, dtype=float).reshape(-1, 2).T
    return steps, values


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < _MOST  # NaN is not, either


def trailing_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each value and up to ``SMOOTHING - 1`` before it.

    >>> trailing_mean(np.array([2.0, 4.0, 6.0, 8.0, 10.0, 12.0])).tolist()
    [2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - SMOOTHING)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def curve(seeds: Mapping[int, tuple[np.ndarray, np.ndarray]], *, smooth: bool = True) -> Curve | None:
    """One curve from each seed's (steps, values), over the steps that all of them have; None if those are none."""
    known = {seed: (x, trailing_mean(y) if smooth else y) for seed, (x, y) in seeds.items() if len(x) > 1}
    if not known:
        return None
    first, last = max(x[0] for x, _ in known.values()), min(x[-1] for x, _ in known.values())
    if first >= last:
        return None
    steps = np.linspace(first, last, POINTS)
    each = {seed: np.interp(steps, x, y) for seed, (x, y) in known.items()}
    return Curve(steps, *band(np.stack(list(each.values()))), each)
