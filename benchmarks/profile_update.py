"""Where the time of one update goes: by part, and by kind of operation; as JSON and as a picture.

    python3 benchmarks/profile_update.py

Writes benchmarks/results/profile_update.json and docs/images/update.png, in about a minute. One thread, `tiny`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import torch
from outcome import leave
from torch.profiler import ProfilerActivity, profile

from dreamer_lpm.bench import Bench, Work, product_peak, timed
from dreamer_lpm.machine import pick_precision

mpl.use("Agg")
import matplotlib.pyplot as plt

# First fit. What is left is Python, autograd and the way into each operation.
KINDS = {
    "convolutions": ("convolution",),
    "products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "norms": ("layer_norm",),
    "casts and copies": ("copy_", "aten::cat", "aten::stack", "aten::clone", "aten::fill_", "aten::zero_"),
    "optimizer": ("adam", "Optimizer", "foreach", "linalg_vector_norm"),
    "elementwise": ("aten::",),
}


def kinds(bench: Bench, updates: int) -> dict[str, float]:
    """Milliseconds an update by kind of operation, as torch's profiler sees them."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(updates):
            bench.update()
    found = dict.fromkeys([*KINDS, "between operations"], 0.0)
    for event in recorded.key_averages():
        kind = next((k for k, words in KINDS.items() if any(w in event.key for w in words)), "between operations")
        found[kind] += event.self_cpu_time_total / 1000 / updates
    return found


def draw(parts: dict[str, float], by_kind: dict[str, float], path: Path) -> None:
    """Two bars, one for each way to cut the update."""
    figure, axes = plt.subplots(2, 1, figsize=(9, 4.4), gridspec_kw={"hspace": 1.6, "top": 0.93, "bottom": 0.22})
    for ax, title, cut in ((axes[0], "by part", parts), (axes[1], "by kind of operation", by_kind)):
        left, every = 0.0, sum(cut.values())
        for i, (name, ms) in enumerate(cut.items()):
            ax.barh(0, ms, left=left, color=f"C{i}", label=f"{name} {ms / every:.0%}")
            left += ms
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_yticks([])
        ax.set_xlim(0, every)
        ax.set_xlabel("ms")
        ax.legend(ncols=4, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.5), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/profile_update.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/update.png"))
    parser.add_argument("--redraw", action="store_true", help="only the picture, from the JSON that is there")
    options = parser.parse_args()
    if options.redraw:
        result = json.loads(options.json.read_text())
        draw(result["parts_ms"], result["kinds_ms_with_the_profiler_on"], options.picture)
        return
    cpu = torch.device("cpu")
    bench = Bench(Work("tiny", 16, 16, pick_precision("auto", cpu), 1))
    about = bench.about()
    timed(bench.update, 3)
    times = timed(bench.update, options.updates)
    parts = {name: 1000 * seconds for name, seconds in bench.parts(options.updates).items()}
    by_kind = kinds(bench, options.updates)
    result = {
        "work": {key: about[key] for key in ("preset", "batch", "length", "precision", "threads", "gflop")},
        "update_ms": {clock: 1000 * sorted(x)[len(x) // 2] for clock, x in times.items()},
        "parts_ms": parts,
        "kinds_ms_with_the_profiler_on": by_kind,
        "product_peak_gflop_s": {
            str(kind).removeprefix("torch."): product_peak(cpu, kind) for kind in (torch.float32, torch.bfloat16)
        },
    }
    leave(options.json, result)
    draw(parts, by_kind, options.picture)


if __name__ == "__main__":
    main()
