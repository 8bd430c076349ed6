"""What each curiosity pays for a transition that can be learned, and for one that is noise: the noisy-MNIST experiment
of the LPM paper (arXiv 2509.25438; first in Mavor-Parker et al. 2022), on the 8x8 digits that scikit-learn ships.

    python3 benchmarks/digits.py --seeds 10

After a picture of a 0 comes the same picture again, which can be learned; after a picture of a 1 comes a random
picture of a 2 to 9, which cannot. One small network learns to predict, and every bonus looks on, so that all of them
are paid for the same errors. There is no agent. Finished seeds of the CSV are not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from testbed import Row, interval, read_rows, told, write_rows, write_summary
from torch import Tensor, nn

from dreamer_lpm.curiosity import AMA, LPM, Dims, IntrinsicReward, LPMDual, LPMPaired, PredictionError, Transition, mse
from dreamer_lpm.nets import Kept

KINDS = ("learnable", "noisy")
BONUSES = {  # column: title, unit
    "error": ("raw error (`prediction_error`)", "MSE"),
    "ama": ("`ama`", "MSE"),
    "lpm_queue_gate": ("`lpm` with the paper's gate: queue full", "nats"),
    "lpm": ("`lpm`: queue full and predictor fitted", "nats"),
    "lpm_dual": ("`lpm_dual`", "nats"),
    "lpm_paired": ("`lpm_paired`", "nats"),
}
PAPER = {"ama": 400, "lpm_queue_gate": 150}  # updates after which the paper's curves are near zero
NEAR_ZERO = 0.1  # of the largest that any bonus of the same unit ever pays
WINDOWS = {"early": (0.1, 0.3), "late": (0.8, 1.0)}  # of all updates, for means
PIXELS = 64

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """One setting for all; the predictor has the sizes and the batch of the original experiment."""

    updates: int = 2000
    batch: int = 32  # half of each kind
    hidden: int = 128
    lr: float = 1e-3  # of predictor and bonuses alike
    queue: int = 1024  # LPM's, so its g speaks of the predictor as it was 32 updates ago
    every: int = 100  # updates between two copies of the predictor for lpm_paired
    sample: int = 256  # fresh transitions of each kind at a checkpoint


class Digits:
    """The two kinds of transitions, drawn with a generator of their own."""

    def __init__(self, seed: int):
        pictures, labels = load_digits(return_X_y=True)
        scaled, label = torch.from_numpy(pictures / 16).float(), torch.from_numpy(labels)
        self.zeros, self.ones, self.others = scaled[label == 0], scaled[label == 1], scaled[label >= 2]
        self.rng = torch.Generator().manual_seed(seed)

    def draw(self, kind: str, n: int) -> tuple[Tensor, Tensor]:
        """Pictures before and after, (n, 64) each, in [0, 1]."""
        if kind == "learnable":
            before = self._pick(self.zeros, n)
            return before, before
        return self._pick(self.ones, n), self._pick(self.others, n)

    def _pick(self, pictures: Tensor, n: int) -> Tensor:
        return pictures[torch.randint(len(pictures), (n,), generator=self.rng)]


class Watched:
    """A predictor that learns, and the bonuses that watch it."""

    def __init__(self, cfg: Setting):
        sizes = (PIXELS, cfg.hidden, cfg.hidden, cfg.hidden)
        hidden = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
        self.predictor = nn.Sequential(*hidden, nn.Linear(cfg.hidden, PIXELS))
        dims = Dims(PIXELS, 1)
        self.lpm = LPM(dims, cfg.hidden, cfg.queue)
        self.bonuses: dict[str, IntrinsicReward] = {
            "error": PredictionError(), "ama": AMA(dims, cfg.hidden),
            "lpm": self.lpm, "lpm_dual": LPMDual(dims, cfg.hidden),
            "lpm_paired": LPMPaired(dims, cfg.hidden),
        }  # fmt: skip
        self.earlier = Kept(self.predictor, 1 / cfg.every)
        self.model_opt = torch.optim.Adam(self.predictor.parameters(), cfg.lr)
        learned = [p for bonus in self.bonuses.values() for p in bonus.parameters() if p.requires_grad]
        self.bonus_opt = torch.optim.Adam(learned, cfg.lr)

    def transition(self, before: Tensor, after: Tensor) -> Transition:
        """The picture's pixels are its features, and there is nothing to do: the action is always 0."""
        return self._expecting(self.predictor, before, after)

    def _expecting(self, predictor: nn.Module, before: Tensor, after: Tensor) -> Transition:
        with torch.no_grad():
            predicted = predictor(before)
        n = len(before)
        frames = (x.reshape(n, 8, 8, 1) for x in (after, predicted))
        return Transition(before, torch.zeros(n, 1), after, torch.ones(n, dtype=torch.bool), *frames)

    def learn(self, before: Tensor, after: Tensor) -> None:
        """One update of every bonus, and then of the predictor, on the same batch."""
        self.earlier.follow(self.predictor)
        earlier = mse(self._expecting(self.earlier.network, before, after))
        t = replace(self.transition(before, after), error_before=earlier, lag=self.earlier.lag.expand(earlier.shape))
        step(self.bonus_opt, torch.stack([x for bonus in self.bonuses.values() for x in bonus.loss(t).values()]).sum())
        step(self.model_opt, (self.predictor(before) - after).square().mean())

    @torch.no_grad()
    def paid(self, t: Transition) -> dict[str, float]:
        """Mean bonus of these transitions, by column."""
        paid = {name: float(bonus.reward(t).mean()) for name, bonus in self.bonuses.items()}
        ungated = self.lpm.predictor(t.feat, t.action) - self.lpm.space.log_error(t)
        paid["lpm_queue_gate"] = float(ungated.mean() * (self.lpm.pushed >= self.lpm.queue))
        return {name: paid[name] for name in BONUSES}


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One gradient step."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def checkpoints(updates: int) -> list[int]:
    """Every 5 updates while much happens, then every 25."""
    return [u for u in range(updates + 1) if u % (5 if u <= 200 else 25) == 0]


def run(seed: int, cfg: Setting) -> Iterator[Row]:
    """One seed's rows: the mean bonus of fresh transitions of each kind, before the update of that number."""
    torch.manual_seed(seed)
    watched, shown, fresh = Watched(cfg), Digits(2 * seed), Digits(2 * seed + 1)
    at = set(checkpoints(cfg.updates))
    for update in range(cfg.updates + 1):
        if update in at:
            paid = {kind: watched.paid(watched.transition(*fresh.draw(kind, cfg.sample))) for kind in KINDS}
            columns = {f"{name}_{kind}": f"{paid[kind][name]:.5f}" for name in BONUSES for kind in KINDS}
            yield {"seed": seed, "update": update, **columns}
        both = [shown.draw(kind, cfg.batch // 2) for kind in KINDS]
        watched.learn(*(torch.cat(parts) for parts in zip(*both, strict=True)))


def curves(rows: Sequence[Row], column: str) -> np.ndarray:
    """(seeds, checkpoints)"""
    seeds = sorted({int(row["seed"]) for row in rows})
    return np.array([[float(row[column]) for row in rows if int(row["seed"]) == seed] for seed in seeds])


def near_zero_from(curve: np.ndarray, scale: float, at: Sequence[int]) -> int | None:
    """The update from which the bonus stays within a tenth of ``scale``, 0 if it was never outside; None: never."""
    large = np.flatnonzero(np.abs(curve) > NEAR_ZERO * scale)
    if not len(large):
        return 0
    return at[large[-1] + 1] if large[-1] + 1 < len(at) else None


def figures(rows: Sequence[Row], at: Sequence[int]) -> Figures:
    """By bonus: the update from which it is near zero (of the mean over seeds), and what it pays early and at last."""
    found: Figures = {}
    share = np.array(at) / at[-1]
    # One scale a unit: the largest that any bonus of that unit ever pays.
    mean = {name: {kind: curves(rows, f"{name}_{kind}").mean(0) for kind in KINDS} for name in BONUSES}
    peak = {name: max(float(np.abs(x).max()) for x in by_kind.values()) for name, by_kind in mean.items()}
    for name, (_, unit) in BONUSES.items():
        scale = max(peak[other] for other in BONUSES if BONUSES[other][1] == unit)
        found[name] = {"unit": unit, "peak": round(peak[name], 4), "paper_near_zero_from": PAPER.get(name)}
        for kind in KINDS:
            each = curves(rows, f"{name}_{kind}")
            found[name][f"near_zero_from_{kind}"] = near_zero_from(mean[name][kind], scale, at)
            for word, (start, end) in WINDOWS.items():
                middle, half = interval(each[:, (share >= start) & (share <= end)].mean(1))
                found[name][f"{word}_{kind}"], found[name][f"{word}_{kind}_interval"] = round(middle, 5), round(half, 5)
    return found


def table(found: Figures, updates: int) -> str:
    """The figures as Markdown."""
    early, late = (f"updates {start * updates:.0f} to {end * updates:.0f}" for start, end in WINDOWS.values())
    lines = [
        "| bonus | largest | near zero from update: learnable | noise | the paper's "
        f"| {early}: learnable | noise | {late}: learnable | noise |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, f in found.items():
        zero = [f[f"near_zero_from_{kind}"] for kind in KINDS]
        paid = [told(f[f"{word}_{kind}"], f[f"{word}_{kind}_interval"], ".3f") for word in WINDOWS for kind in KINDS]
        paper = f"about {f['paper_near_zero_from']}" if f["paper_near_zero_from"] else "-"
        since = ["never" if update is None else str(update) for update in zero]
        largest = f"{f['peak']:.2f} {f['unit']}"
        lines.append(f"| {' | '.join([BONUSES[name][0], largest, *since, paper, *paid])} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], at: Sequence[int], path: Path) -> None:
    """What is shown, and what each bonus pays for it: mean over seeds and the 95 % interval of the mean."""
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4).ravel()
    axes[-1].set_visible(False)
    draw_examples(axes[0])
    for ax, (name, (title, unit)) in zip(axes[1:-1], BONUSES.items(), strict=True):
        for kind, colour in zip(KINDS, ("#2563eb", "#ea580c"), strict=True):
            each = curves(rows, f"{name}_{kind}")
            mean, half = np.array([interval(x) for x in each.T]).T
            ax.plot(at, mean, color=colour, linewidth=1.5, label="learnable" if kind == KINDS[0] else "noise")
            ax.fill_between(at, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        ax.axhline(0, color="black", linewidth=0.8)
        if name == "error":
            ax.set_ylim(bottom=0)
        if name in PAPER:
            ax.axvline(PAPER[name], color="#6b7280", linestyle="--", linewidth=1)
            side, shift = ("right", -4) if PAPER[name] > 200 else ("left", 4)
            ax.annotate(
                f"paper, on MNIST:\nnear zero by {PAPER[name]}", (PAPER[name], 0.97), color="#6b7280", fontsize=8,
                xycoords=("data", "axes fraction"), xytext=(shift, 0), textcoords="offset points", ha=side, va="top",
            )  # fmt: skip
        ax.set_xscale("symlog", linthresh=10)
        ax.set_xticks(ticks := [u for u in (0, 10, 30, 100, 300, 1000) if u <= at[-1]], map(str, ticks))
        ax.minorticks_off()
        ax.set_xlim(0, at[-1])
        ax.set_title(title.replace("`", ""), fontsize=10, loc="left")
        ax.set_ylabel(unit, fontsize=9)
        ax.set_xlabel("updates", fontsize=9)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=9)
    seeds = len({row["seed"] for row in rows})
    figure.suptitle(f"What each bonus pays, {seeds} seeds: mean and 95 % interval", fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=110)


def draw_examples(ax: Axes) -> None:
    """Two transitions of each kind, before above after."""
    digits = Digits(seed=5)
    columns = []
    for kind in KINDS:
        pairs = [x.reshape(-1, 8, 8).numpy() for x in digits.draw(kind, 2)]
        columns += [np.concatenate([pairs[0][i], np.full((3, 8), np.nan), pairs[1][i]]) for i in range(2)]
    gap = np.full((19, 2), np.nan)
    picture = np.concatenate([part for column in columns for part in (column, gap)], 1)
    ax.imshow(picture, cmap="gray_r", interpolation="nearest")
    ax.set_xticks([8.5, 28.5], ["learnable: the same 0", "noise: any 2 to 9"], fontsize=9)
    ax.set_yticks([3.5, 14.5], ["before", "after"], fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("the transitions", fontsize=10, loc="left")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--updates", type=int, default=Setting.updates)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/digits"))
    options = parser.parse_args(arguments)
    if options.updates < 1 or options.seeds < 1:
        parser.error("--updates and --seeds must be 1 or more.")
    cfg = Setting(updates=options.updates)
    at, results = checkpoints(cfg.updates), options.out / "results.csv"
    rows = read_rows(results)
    if rows and [int(row["update"]) for row in rows if row["seed"] == rows[0]["seed"]] != at:
        parser.error(f"{results} has runs of another length: give its --updates, or another --out.")
    torch.set_num_threads(1)
    started, done = time.process_time(), {int(row["seed"]) for row in rows}
    for seed in range(options.seeds):
        if seed not in done:
            rows += run(seed, cfg)
            write_rows(results, rows)
            print(f"seed {seed}: {time.process_time() - started:.0f} CPU seconds so far", flush=True)
    found = figures(rows, at)
    draw(rows, at, options.out / "digits.png")
    (options.out / "table.md").write_text(table(found, cfg.updates) + "\n", encoding="utf-8")
    command = f"python3 benchmarks/digits.py --seeds {max(int(row['seed']) for row in rows) + 1}"
    write_summary(options.out, command, {"setting": asdict(cfg), "near_zero": NEAR_ZERO, "bonuses": found})
    print(table(found, cfg.updates))


if __name__ == "__main__":
    main()
