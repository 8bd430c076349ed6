"""What curiosity pays where its error is measured in pixels, in random features, in the encoder's view, or as KL.

    python3 benchmarks/error_spaces.py

Uniformly random actions play pixel Pendulum before the study's TV (a button shows a new photo at each step that
presses it), a world model learns from it, and each bonus looks on in each space, so that all are paid for the same
transitions; once with the world model's gate and once without. No policy learns. Finished seeds are not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from testbed import Row, read_rows, write_rows, write_summary
from torch import Tensor, nn

from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import (
    REGISTRY,
    CuriosityConfig,
    Dims,
    IntrinsicReward,
    Losses,
    Transition,
    build_curiosity,
)
from dreamer_lpm.curiosity.error_space import ErrorSpaceName
from dreamer_lpm.noisy_tv import TVSpec, load_images
from dreamer_lpm.presets import preset
from dreamer_lpm.state import State

SPACES: tuple[ErrorSpaceName, ...] = get_args(ErrorSpaceName)
BONUSES = {"prediction_error": "its standard deviations", "lpm": "nats", "lpm_dual": "nats"}
GATES = ("gate", "no gate")
EVERY = 200  # env steps between two rows
THIRDS = {"first": (0, 1 / 3), "last": (2 / 3, 1)}  # of the rows, for means


class Onlookers(IntrinsicReward):
    """Every bonus in every space: each learns from what is replayed, and none is paid."""

    def __init__(self, cfg: CuriosityConfig, dims: Dims):
        super().__init__()
        self.each = {
            f"{name}_{space}": build_curiosity(name, replace(cfg, error_space=space), dims)
            for name in BONUSES
            for space in SPACES
        }
        self.held = nn.ModuleDict(self.each)  # where an optimizer finds what they learn
        self.seen: Transition | None = None

    def reward(self, t: Transition) -> Tensor:
        """Nothing, (...)."""
        return torch.zeros_like(t.feat[..., 0])

    def loss(self, t: Transition) -> Losses:
        """Those of all."""
        self.seen = t
        return {f"{name}/{key}": x for name, bonus in self.each.items() for key, x in bonus.loss(t).items()}

    @torch.no_grad()
    def paid(self, tv_on: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of each one's bonus on the last batch's transitions into a TV frame, and into others; how many."""
        assert self.seen is not None
        dreamed = self.seen.unseen()
        paid = {name: bonus.reward(dreamed) for name, bonus in self.each.items()}
        places = {"on": tv_on & self.seen.mask, "off": ~tv_on & self.seen.mask}
        return {f"{name}_{kind}": (x[at].sum(), at.sum()) for kind, at in places.items() for name, x in paid.items()}


def config(seed: int, gate: str, steps: int) -> RunConfig:
    """A run of the study, with no dream worth its time."""
    cfg = preset("tiny")
    world = replace(cfg.agent.world, rssm=replace(cfg.agent.world.rssm, noise_gate=gate == "gate"))
    dreams = replace(cfg.agent.behavior, horizon=1, starts=1)
    agent = replace(cfg.agent, world=world, behavior=dreams, curiosity="onlookers")
    return replace(
        cfg, steps=steps, seed=seed, agent=agent, noisy_tv=True, tv=TVSpec(trigger="remote"), tv_images="photos",
        fast_render=True, device="cpu", precision="fp32",
    )  # fmt: skip


def run(cfg: RunConfig, gate: str) -> Iterator[Row]:
    """One seed's rows: the mean bonus since the row before, by bonus, space, and TV on or off."""
    state = State(cfg, load_images("photos")[0])
    watching = state.agent.curiosity
    assert isinstance(watching, Onlookers)
    sums: dict[str, list[float]] = {}
    owed, written = 0.0, cfg.prefill
    state.row = state.envs.reset_row()
    while state.step < cfg.steps:
        before = state.step
        state.observe("random")
        state.row = state.envs.step(state.action())
        owed += (state.step - before) / cfg.update_every if state.step > cfg.prefill else 0
        while owed >= 1:
            owed -= 1
            batch = state.replay.sample(state.rng, cfg.batch_size, cfg.seq_length)
            state.agent.update(batch)
            for name, pair in watching.paid(batch.tv_on[:, 1:]).items():
                sums[name] = [a + float(b) for a, b in zip(sums.get(name, (0, 0)), pair, strict=True)]
        if state.step - written >= EVERY:
            written += EVERY
            columns = {name: f"{total / count:.5f}" for name, (total, count) in sums.items()}
            yield {"gate": gate, "seed": cfg.seed, "step": state.step, **columns}
            sums = {}
    state.envs.close()


def curves(rows: Sequence[Row], gate: str, column: str) -> np.ndarray:
    """(seeds, steps)."""
    seeds = sorted({int(row["seed"]) for row in rows if row["gate"] == gate})
    return np.array(
        [[float(r[column]) for r in rows if r["gate"] == gate and int(r["seed"]) == seed] for seed in seeds]
    )


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """By gate, bonus and space: mean, lowest and highest seed of each third; how many were paid more for the TV."""
    found = []
    for gate, name, space in ((gate, name, space) for gate in GATES for name in BONUSES for space in SPACES):
        about: dict[str, Any] = {"gate": gate, "bonus": name, "space": space}
        late = {}
        for kind in ("on", "off"):
            each = curves(rows, gate, f"{name}_{space}_{kind}")
            for third, (start, end) in THIRDS.items():
                window = each[:, round(start * each.shape[1]) : round(end * each.shape[1])].mean(1)
                about[f"{third}_{kind}"] = [round(float(x), 4) for x in (window.mean(), window.min(), window.max())]
                late[kind] = window
        found.append({**about, "seeds": len(late["on"]), "more_for_the_tv": int((late["on"] > late["off"]).sum())})
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| bonus | error in | gate | first third, TV on | off | last third, TV on | off | seeds paid more for the "
        "TV in the end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        parts = (f[k] for k in ("first_on", "first_off", "last_on", "last_off"))
        paid = [f"{middle:.2f} [{low:.2f}, {high:.2f}]" for middle, low, high in parts]
        gate = "yes" if f["gate"] == "gate" else "no"
        where = " | ".join((f"`{f['bonus']}`", f"`{f['space']}`", gate, *paid))
        lines.append(f"| {where} | {f['more_for_the_tv']} of {f['seeds']} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], gate: str, path: Path) -> None:
    """A panel for each bonus in each space: the mean over seeds, every seed as a thin line."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(BONUSES), len(SPACES), sharex=True)
    steps = sorted({int(row["step"]) for row in rows})
    for line, (name, unit) in zip(axes, BONUSES.items(), strict=True):
        for ax, space in zip(line, SPACES, strict=True):
            for kind, colour in (("on", "#ea580c"), ("off", "#2563eb")):
                each = curves(rows, gate, f"{name}_{space}_{kind}")
                ax.plot(steps, each.T, color=colour, linewidth=0.6, alpha=0.5)
                ax.plot(steps, each.mean(0), color=colour, linewidth=2, label=f"TV {kind}")
            ax.axhline(0, color="black", linewidth=0.8)
            ax.set_title(f"{name}, {space}", fontsize=10, loc="left")
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(unit, fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("env steps", fontsize=9)
    axes[0][0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"What each bonus pays, by where its error is measured ({gate})", fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/error_spaces"))
    options = parser.parse_args(arguments)
    least = preset("tiny").prefill + 3 * EVERY  # a row for each third
    if options.seeds < 1 or options.steps < least:
        parser.error(f"--seeds must be 1 or more, and --steps {least} or more.")
    results = options.out / "results.csv"
    rows = read_rows(results)
    if rows and not options.steps - EVERY < max(int(row["step"]) for row in rows) <= options.steps:
        parser.error(f"{results} has runs of another length: give its --steps, or another --out.")
    torch.set_num_threads(1)
    REGISTRY["onlookers"] = Onlookers
    done = {(row["gate"], int(row["seed"])) for row in rows}
    for seed in range(options.seeds):
        for gate in GATES:
            if (gate, seed) not in done:
                started = time.process_time()
                rows += run(config(seed, gate, options.steps), gate)
                write_rows(results, rows)
                print(f"seed {seed}, {gate}: {time.process_time() - started:.0f} CPU seconds", flush=True)
    found = figures(rows)
    for gate in GATES:
        draw(rows, gate, options.out / f"error_spaces_{gate.replace(' ', '_')}.png")
    (options.out / "table.md").write_text(table(found) + "\n", encoding="utf-8")
    seeds = max(int(row["seed"]) for row in rows) + 1
    command = f"python3 benchmarks/error_spaces.py --seeds {seeds} --steps {options.steps}"
    write_summary(options.out, command, {"steps": options.steps, "figures": found})
    print(table(found))


if __name__ == "__main__":
    main()
