"""Figures of a whole run from its counts and its metrics: when the TV was left for good, and how the run ended.

Counts of TV steps come in ``bins``: for each 100 env steps of the run, ``[agent steps with the TV on, agent steps]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dreamer_lpm.report.metrics import Row

BIN = 100  # env steps
WINDOW = 500  # env steps over which a TV share is judged; whole bins


def escape_step(bins: Sequence[Sequence[int]], chance: float) -> int | None:
    """The env step after which every ``WINDOW`` has a TV share at or below ``chance``; windows slide by one bin.

    0 if no window was ever above; None if the last one is (never escaped), or there is not a single whole window.
    ``bins`` are whole ones; leave out the one under way.

    >>> escape_step([(10, 50)] * 5 + [(40, 50)] * 2 + [(0, 50)] * 8, chance=0.25)
    600
    """
    if len(bins) * BIN < WINDOW:
        return None
    counts = np.array(bins, dtype=float)
    watched, steps = np.lib.stride_tricks.sliding_window_view(counts, WINDOW // BIN, axis=0).sum(-1).T
    judged = np.flatnonzero(steps)  # with very many envs there are windows between two rows, that say nothing
    above = judged[watched[judged] > steps[judged] * (chance + 1e-9)]  # exactly chance is not above, however rounded
    if not len(above):
        return 0
    last = int(above[-1])
    return None if last == judged[-1] else (last + 1) * BIN


def late_tv_share(bins: Sequence[Sequence[int]], end: int) -> float | None:
    """Share of TV steps, in [0, 1], in the last quarter of ``end`` env steps, to the bin; None if there is no step."""
    late = bins[3 * end // 4 // BIN :]
    steps = sum(total for _, total in late)
    return sum(watched for watched, _ in late) / steps if steps else None


def late_mean(rows: Sequence[Row], key: str, end: int) -> float | None:
    """Mean of a training metric over the last quarter of ``end`` env steps; None where it was never a number there."""
    late = (row.get(key, math.nan) for row in rows if row["kind"] == "train" and row["step"] > 0.75 * end)
    found = [float(value) for value in late if math.isfinite(value)]
    return float(np.mean(found)) if found else None
