"""What checkpoints cost, as a share of the time that a run learns between two of them. Target: 1 % at most.

    python3 benchmarks/checkpoint_cost.py

The guide's scene with every setting at its default, on one thread, its TV showing noise: what packs worst. Counted in
CPU seconds, against the updates alone, without the acting and the env's pictures. The wall time of a save, with what
the disk takes, stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from outcome import leave

from dreamer_lpm.config import settled
from dreamer_lpm.noisy_tv import load_images
from dreamer_lpm.presets import preset
from dreamer_lpm.state import State


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--updates", type=int, default=20, help="timed between two saves")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "checkpoint_cost.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = settled(replace(preset("tiny"), noisy_tv=True, tv_images="static", device="cpu", threads=1))
    state = State(cfg, load_images("static")[0])
    state.row = state.envs.reset_row()
    saves, walls, updates, sizes = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.saves):
            due = state.step + cfg.checkpoint_every
            while state.step < due:
                state.observe("random")
                state.row = state.envs.step(state.action())
            for _ in range(args.updates):
                begin = time.process_time()
                state.learn()
                updates.append(time.process_time() - begin)
            before = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            begin, wall = time.process_time(), time.perf_counter()
            state.save(Path(folder), "run", 0)
            saves.append(time.process_time() - begin)
            walls.append(time.perf_counter() - wall)
            sizes.append(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) - before)
    update, between = statistics.median(updates), cfg.checkpoint_every / cfg.update_every
    result = {
        "save_seconds": saves,
        "save_wall_seconds": walls,
        "save_bytes": sizes,
        "update_seconds": update,
        "updates_between_saves": between,
        "share": max(saves) / (between * update),
        "share_wall": max(walls) / (between * update),
        "precision": cfg.precision,
    }
    leave(args.out, result)


if __name__ == "__main__":
    main()
