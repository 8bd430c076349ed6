"""Does a step cost more as the memory fills? Adding a row and drawing a batch, from a replay nearly empty to full.

    python3 benchmarks/replay_growth.py --rows 500000

Writes benchmarks/results/replay_growth.json. The rows are real memory, 13.3 kB each: a million of them take 13.3 GB,
and are measured where that is there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from outcome import leave

from dreamer_lpm.config import RunConfig, settled
from dreamer_lpm.state import State


def cost(state: State, count: int) -> dict[str, float]:
    """Median microseconds of adding a row and of drawing a batch; and milliseconds of a whole update."""
    replay, rng, cfg = state.replay, np.random.default_rng(0), state.cfg
    row = {key: x[0].clone() for key, x in replay.data.items()}
    seconds: dict[str, list[float]] = {"add_us": [], "draw_us": [], "update_ms": []}
    for _ in range(count):
        start = time.perf_counter()
        replay.add(row)
        added = time.perf_counter()
        replay.sample(rng, cfg.batch_size, cfg.seq_length)
        drawn = time.perf_counter()
        seconds["add_us"].append(1e6 * (added - start))
        seconds["draw_us"].append(1e6 * (drawn - added))
    for _ in range(count // 10):
        start = time.perf_counter()
        state.learn()
        seconds["update_ms"].append(1e3 * (time.perf_counter() - start))
    return {key: statistics.median(x) for key, x in seconds.items()}


def main() -> None:
    """Fill by and by, measure at each stage, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/replay_growth.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = State(settled(RunConfig(steps=options.rows, replay_capacity=options.rows, threads=1)), None)
    held = state.replay.data
    rows = len(held["obs"])
    for x in held.values():
        x.zero_()  # every page is there from now on
    held["is_first"][::100] = True
    stages = [rows // 100, rows // 4, rows // 2, rows]
    for filled in stages:  # once in vain, for what is made at a first call
        state.replay.added = filled
        cost(state, 20)
    found: dict[int, list[dict[str, float]]] = {filled: [] for filled in stages}
    for _ in range(5):  # in turns, so that what else the machine does meets all stages alike
        for filled in stages:
            state.replay.added = filled
            found[filled].append(cost(state, 60))
    result = {
        "rows": rows,
        "bytes": sum(x.numel() * x.element_size() for x in held.values()),
        "stages": [
            {"filled": filled, **{key: statistics.median(x[key] for x in each) for key in each[0]}}
            for filled, each in found.items()
        ],
    }
    leave(options.json, result)


if __name__ == "__main__":
    main()
