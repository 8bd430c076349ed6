"""The figures of the main path, one row a seed.

    python3 benchmarks/main_path.py --arms clean_none clean_lpm tv_lpm cartpole --seeds 5

Every run is one `dreamer-lpm train` on one thread, two side by side; finished runs are never run again and a stopped
one goes on, so the study may be made in pieces. The CSV is rewritten from the runs themselves each time: steps until
the mean of 5 training episodes passes each threshold (empty: never), and the last evaluation.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dreamer_lpm.report.metrics import read_metrics
from dreamer_lpm.solve import EPISODES, means

ARMS = {
    "clean_none": ["--steps", "10000", "--curiosity", "none"],
    "clean_lpm": ["--steps", "10000"],
    "clean_every_4": ["--steps", "10000", "--update-every", "4", "--fast-render"],
    "clean_quick": ["--steps", "10000", "--update-every", "3.33", "--behavior.starts", "64", "--fast-render"],
    "clean_quicker": ["--steps", "10000", "--update-every", "3.6", "--behavior.starts", "64", "--fast-render"],
    "tv_none": ["--steps", "10000", "--noisy-tv", "--tv-images", "photos", "--curiosity", "none"],
    "tv_lpm": ["--steps", "10000", "--noisy-tv", "--tv-images", "photos"],
    "tv_lpm_no_price": ["--steps", "10000", "--noisy-tv", "--tv-images", "photos", "--sight", "0"],
    "tv_lpm_no_gate": ["--steps", "10000", "--noisy-tv", "--tv-images", "photos", "--world.rssm.no-noise-gate"],
    "cartpole": ["--steps", "30000", "--env-name", "CartPole-v1", "--update-every", "5"],
}
THRESHOLDS = (-300, -250, -200)  # of Pendulum's return


def run(arm: str, seed: int, runs: Path) -> None:
    """One run, unless it is there already. Raises CalledProcessError when it fails; its log tells why."""
    folder = runs / f"{arm}-{seed}"
    if (folder / "summary.json").exists():
        return
    go_on = ["--resume"]
    if not (folder / "checkpoints").exists():
        shutil.rmtree(folder, ignore_errors=True)  # cut off before its first checkpoint
        go_on = [*ARMS[arm], "--seed", str(seed), "--threads", "1"]
    command = [sys.executable, "-m", "dreamer_lpm", "train", "--runs", str(runs), "--run-name", folder.name, *go_on]
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{folder.name}.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


def row(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    episodes = [(r["step"], r["return"]) for r in read_metrics(folder) if r["kind"] == "episode"]
    evals = [r for r in read_metrics(folder) if r["kind"] == "eval"]
    arm, seed = folder.name.rsplit("-", 1)
    off = [r["return_mean"] for r in evals if r["arm"] == "tv_off"]
    return {
        "arm": arm,
        "seed": int(seed),
        **{f"steps_to_{t}": "" if arm == "cartpole" else steps_to(episodes, t) for t in THRESHOLDS},
        "eval_return_mean": round(summary["eval_return_mean"], 1),
        "eval_return_tv_off": round(off[-1], 1) if off else "",
        "eval_episodes": len(summary["eval_returns"]),
        "tv_share": "" if summary["tv_share"] is None else round(summary["tv_share"], 3),
        "wall_minutes": round(summary["wall_seconds"] / 60, 1),
        "updates": summary["updates"],
        "peak_memory_gb": round(summary["peak_memory_bytes"] / 1e9, 2),
        "precision": summary["precision"],
        "torch": summary["versions"]["torch"],
        "git_revision": summary["git_revision"],
    }


def steps_to(episodes: Sequence[tuple[int, float]], threshold: float) -> int | str:
    """Env steps when the mean return of the last 5 episodes first passes ``threshold``; "" if it never does."""
    ends = [step for step, _ in episodes[EPISODES - 1 :]]
    passed = zip(ends, means([r for _, r in episodes]), strict=True)
    return next((step for step, mean in passed if mean > threshold), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["clean_none", "clean_lpm", "tv_lpm"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/main_path"))
    parser.add_argument("--csv", type=Path, default=Path("runs/main_path.csv"))
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        cells = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
        list(pool.map(lambda cell: run(*cell, options.runs), cells))
    rows = [row(p.parent) for p in sorted(options.runs.glob("*/summary.json"))]
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    with options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(options.csv.read_text())


if __name__ == "__main__":
    main()
