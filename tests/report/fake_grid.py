"""A grid's folder as if it had been run: every figure is chosen, so what a report must say of it is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHANCE = 0.25
PREFILL = 1000
RANDOM_RETURN = -1200.0
STEPS = 6000
ARMS: dict[str, dict[str, Any]] = {
    "sham": {"settings": {"noisy_tv": True}, "words": "No TV, but its button.", "sham": None},
    "remote": {"settings": {"noisy_tv": True}, "words": "A TV shows photos.", "sham": "sham"},
}


def write_run(
    folder: Path, *, seed: int, result: float, share: float | None, summary: bool = True, **more: Any
) -> None:
    """A run that went from random play to ``result``, and from chance to ``share`` (None: no TV)."""
    folder.mkdir(parents=True)
    rows = []
    for step in range(200, STEPS + 1, 200):
        learned = max(0.0, (step - PREFILL) / (STEPS - PREFILL))
        row = {"step": step, "kind": "episode", "length": 100, "coverage": 0.8 * step / STEPS}
        row["return"] = RANDOM_RETURN + learned * (result - RANDOM_RETURN)
        if share is not None:
            row |= {"tv_share": CHANCE + learned * (share - CHANCE), "tv_chance": CHANCE}
        rows.append(row)
    rows.append({"step": STEPS, "kind": "train", "loss/recon": 3.0, "bonus/tv_on": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tv = {"noisy_tv": True, "tv": {"control": "sham" if share is None else None}}
    config = {"prefill": PREFILL, "steps": STEPS, "seed": seed, "env_name": "Pendulum-v1", **tv}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    if not summary:
        return
    said: dict[str, Any] = {
        "env_steps": STEPS, "wall_seconds": 60.0, "eval_return_mean": result, "eval_returns": [result], "seed": seed,
        "tv_share": share or 0.0, "tv_chance": 0.0 if share is None else CHANCE, "coverage": 0.8,
        "tv_images": {"used": "photos"}, "versions": {"torch": "2.13"}, "git_revision": "abc",
    }  # fmt: skip
    if share is not None:
        said |= {"tv_share_last_quarter": share, "escape_step": None if share > CHANCE else 3000}
    (folder / "summary.json").write_text(json.dumps({**said, **more}))


def write_grid(
    folder: Path,
    shares: dict[str, list[float]],
    *,
    kept: float = 0.9,
    unfinished: int = 0,
    env_name: str = "Pendulum-v1",
) -> Path:
    """``shares``: method -> TV share of each seed before the TV. Returns without the TV are -200 and a little more for
    each seed; before it, ``kept`` of what was gained over random play."""
    folder.mkdir()
    cells = []
    for method, every in shares.items():
        for arm in ARMS:
            for seed, share in enumerate(every):
                number = len(cells)
                cells.append({"method": method, "arm": arm, "seed": seed, "folder": f"cells/{number}"})
                quiet = -200.0 + seed
                noisy = RANDOM_RETURN + kept * (quiet - RANDOM_RETURN)
                write_run(
                    folder / "cells" / str(number), seed=seed, result=noisy if arm == "remote" else quiet,
                    share=share if arm == "remote" else None,
                )  # fmt: skip
    for seed in range(90, 90 + unfinished):
        cells.append({"method": next(iter(shares)), "arm": "remote", "seed": seed, "folder": f"cells/{seed}"})
    about = {
        "format": 1, "env_name": env_name, "commands": ["dreamer-lpm compare --out grid"], "arms": ARMS,
        "methods": {name: {"curiosity": name} for name in shares}, "seeds": [*range(5)], "common": {}, "machine": {},
        "cells": cells,
    }  # fmt: skip
    (folder / "grid.json").write_text(json.dumps(about))
    return folder
