"""What processes for the envs bring: 8 Pendulums with Gymnasium's own picture, in this process and in others.

    python3 benchmarks/env_workers.py

Wall time, for that is what other processes save; the ways take turns in one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
from outcome import leave

from dreamer_lpm.envs import EnvConfig, Envs, make_env

ENVS = 8


def frames_per_second(envs: Envs, rows: int) -> float:
    actions = np.random.default_rng(0).uniform(-1, 1, (rows, ENVS, envs.action_spec.size))
    begin = time.perf_counter()
    for action in actions:
        envs.step(action)
    return ENVS * rows / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60, help="of 8 frames each, in one round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "env_workers.json")
    args = parser.parse_args()
    make = partial(make_env, EnvConfig("Pendulum-v1", action_repeat=1))
    speeds: dict[int, list[float]] = {0: [], 1: [], 2: []}
    with ExitStack() as stack:
        all_envs = {n: stack.enter_context(closing(Envs(make, ENVS, 0, workers=n))) for n in speeds}
        for envs in all_envs.values():
            envs.reset_row()
            frames_per_second(envs, 5)  # what is slow the first time
        load = os.getloadavg()[0]
        for _ in range(args.rounds):
            for n, envs in all_envs.items():
                speeds[n].append(frames_per_second(envs, args.rows))
    result = {
        "unit": "frames per second of wall time, median over rounds",
        "frames_per_second": {f"workers_{n}": statistics.median(values) for n, values in speeds.items()},
        "rounds": {f"workers_{n}": values for n, values in speeds.items()},
        "cpus": os.cpu_count(),
        "load_before": load,
    }
    leave(args.out, result)


if __name__ == "__main__":
    main()
