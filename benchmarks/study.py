"""What the study's grids say of the claims: the tables and the figure of docs/study.md.

    dreamer-lpm compare --grid benchmarks/study.toml --out runs/study
    dreamer-lpm compare --grid benchmarks/bank.toml --out runs/bank
    dreamer-lpm compare --grid benchmarks/gate.toml --out runs/gate
    python3 benchmarks/study.py runs/study runs/bank runs/gate

Reads the grids' folders alone, as `dreamer-lpm report` does; runs nothing. Prints the tables, or with --page puts them
into that page, and the pictures beside it. The committed folders are in benchmarks/results/study, one for each time
that a machine was at hand; of two runs of one seed the first counts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np

from dreamer_lpm.report.grid import RETURN, Cell, Grid, against_sham, read_grid
from dreamer_lpm.report.metrics import Row
from dreamer_lpm.report.statistics import Estimate, band, estimate
from dreamer_lpm.types import UserError

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BIN = 500  # env steps
DEAF = ("lpm", "lpm_dual", "lpm_paired")
DRAWN = ("icm", "rnd", "disagreement", "gamma_progress")  # of the others those that come to one photo at all
NEEDED = (
    *((f"free_{name}", "remote") for name in ("random", "none", "prediction_error", *DEAF)),
    *((f"free_{name}", "remote_k1") for name in ("lpm", "lpm_dual")),
    *((name, arm) for name in ("none", *DEAF) for arm in ("sham", "remote")),
)  # method and arm


def said(e: Estimate, *, percent: bool = False) -> str:
    """``.02 [.00, .04]``, or in percent."""
    scale, digits = (100, 0) if percent else (1, 2)
    digits = 0 if abs(e.value) > 20 else digits
    span = "" if e.low is None or e.high is None else f" [{e.low * scale:.{digits}f}, {e.high * scale:.{digits}f}]"
    return f"{e.value * scale:.{digits}f}{' %' if percent else ''}{span}"


def held(yes: bool) -> str:
    return "holds" if yes else "**does not hold**"


SHORT = 200  # env steps that a run which was cut off may lack, and still say where its policy went, without a reward
PICKED = 5  # the first seed that those of the bank were not picked by for what they did
UNGATED = "_ungated"  # of methods whose world model has no gate (benchmarks/gate.toml)
BLIND = "_unpriced"  # of methods with a reward whose runs were made before going blind had a price


def pooled(grids: Sequence[Grid]) -> list[Grid]:
    """All runs, one grid for each number of env steps that they were made for, the shortest first.

    Reward-free methods are called free_NAME, those of before the price NAME_unpriced.
    """
    every = [c for grid in grids for c in grid.cells if c.rows and c.rows[-1]["step"] >= c.config["steps"] - SHORT]
    told = [arm for grid in grids for arm in grid.arms.values()]
    arms = {arm.name: arm for arm in sorted(told, key=lambda arm: arm.sham is not None)}  # not every piece has the sham
    lengths = sorted({c.config["steps"] for c in every})
    found = (_named([c for c in every if c.config["steps"] == steps]) for steps in lengths)
    return [
        replace(grids[0], methods=list(dict.fromkeys(c.method for c in cells)), arms=arms, cells=cells)
        for cells in found
    ]


def _named(every: Sequence[Cell]) -> list[Cell]:
    cells: dict[tuple[str, str, int], Cell] = {}
    for cell in sorted(every, key=lambda c: c.summary is None):  # a finished run counts before one that was cut off
        agent, name = cell.config["agent"], cell.method.removeprefix("free_")
        if agent["extrinsic"] == 0:
            names = [f"free_{name}"]
        elif cell.arm == "sham":  # where nothing is declined, the price is 0
            names = [name, name + BLIND]
        else:
            names = [name if agent.get("sight") else name + BLIND]
        for name in names:
            cells.setdefault((name, cell.arm, cell.seed), replace(cell, method=name))
    return list(cells.values())


def claims(study: Grid, longer: Sequence[Grid], coverage: dict[str, Estimate]) -> list[str]:
    """The claims that the study was made for, each with what was found."""
    chance = study.chance("remote") or 0.0
    rows = ["| claim | reach | found | seeds | |", "|---|---|---|---|---|"]

    def row(claim: str, reach: str, found: str, seeds: int, yes: bool) -> None:
        rows.append(f"| {claim} | {reach} | {found} | {seeds} | {held(yes)} |")

    share = late_share(study, "free_prediction_error")
    times = Estimate(share.value / chance, (share.low or 0) / chance, (share.high or 0) / chance, share.n)
    reach = "lower bound at least 3 times chance"
    row("`prediction_error` is captured (reward-free)", reach, f"{said(times)} times", times.n, (times.low or 0) >= 3)
    for method in DEAF:
        share = late_share(study, f"free_{method}")
        found = said(share, percent=True)
        row(f"`{method}` turns away (reward-free)", "last quarter, upper bound at most chance (25 %)", found, share.n,
            share.high is not None and share.high <= chance)  # fmt: skip
    for grid in (study, *longer):
        for method in (m for m in (*DEAF, "none") if runs(grid, m, "remote")):
            kept, steps = kept_of(grid, method), grid.cells[0].config["steps"]
            told = said(kept) if kept else "learned nothing to keep"
            seeds = kept.n if kept else len(runs(grid, method, "remote"))
            row(f"`{method}` with the task's reward keeps what it earns without the TV, {steps:,} steps",
                "IQM at least 0.95", told, seeds, kept is not None and kept.value >= 0.95)  # fmt: skip
    luck = highest(study, "free_random", "remote")  # the highest of some is above chance
    kinds = [(grid, free, gate) for grid in (study, *longer) for free in ("free_", "") for gate in ("", UNGATED)]
    asked = [*((method, 0) for method in (*DEAF, *DRAWN)), *((method, PICKED) for method in DRAWN)]
    for grid, free, gate, method, since in ((*kind, *of) for kind in kinds for of in asked):
        name = f"{free}{method}{gate}"
        if not runs(grid, name, "remote_k1", since):
            continue
        most = highest(grid, name, "remote_k1", since)
        last = estimate(late_shares(grid, name, "remote_k1", since))
        found = (
            f"highest {BIN} steps {said(most, percent=True)} (random {said(luck, percent=True)}), last quarter "
            f"{said(last, percent=True)}"
        )
        yes = (most.low or 0) > (luck.high or 1) and last.high is not None and last.high <= chance
        config = runs(grid, name, "remote_k1")[0].config
        words = f", {config['steps']:,} steps, no gate" if gate else ""
        words += f", in seeds from {since} on, made after this had been seen" if since else ""
        task = "reward-free" if free else f"with the task's reward, eta {config['agent']['lpm_eta']:g}"
        row(f"K = 1: `{method}` watches what can be learned, then leaves ({task}{words})",
            "above random, then at most chance", found, most.n, yes)  # fmt: skip
    best = max((m for m in coverage if m not in ("random", "none")), key=lambda m: coverage[m].value)
    for since, words in ((0, ""), (PICKED, f", in seeds from {PICKED} on, made after it had been picked")):
        found = {m: covered(study, f"free_{m}", since=since) for m in (best, "none", "random")}
        if not all(found.values()):
            continue
        most, *rest = (estimate(x) for x in found.values())
        others = ", ".join(
            f"`{m}` {said(e, percent=True)} ({e.n})" for m, e in zip(("none", "random"), rest, strict=True)
        )
        apart = all((most.low or 0) > (e.high or 1) for e in rest)
        row(f"the best method covers more than `none` and uniform random actions (reward-free{words})",
            "intervals apart", f"`{best}` {said(most, percent=True)}; {others}", most.n, apart)  # fmt: skip
    return rows


def runs(grid: Grid, method: str, arm: str, since: int = 0) -> list[Cell]:
    """A method's runs in an arm by seed, from ``since`` on, those too that were cut off shortly before their end."""
    found = (c for c in grid.cells if (c.method, c.arm) == (method, arm) and c.seed >= since)
    return sorted(found, key=lambda c: c.seed)


def episodes(cell: Cell) -> list[Row]:
    return [r for r in cell.rows if r["kind"] == "episode"]


def late_shares(grid: Grid, method: str, arm: str = "remote", since: int = 0) -> list[float]:
    """Share of the steps with the TV on in the episodes that ended in the last quarter, every seed's."""
    return [
        float(np.mean([r["tv_share"] for r in episodes(c) if r["step"] > c.config["steps"] * 3 / 4]))
        for c in runs(grid, method, arm, since)
    ]


def covered(grid: Grid, method: str, arm: str = "remote", since: int = 0) -> list[float]:
    """Share of the state grid that was visited, every seed's."""
    return [episodes(c)[-1]["coverage"] for c in runs(grid, method, arm, since)]


def share_curves(grid: Grid, method: str, arm: str, since: int = 0) -> np.ndarray:
    """TV share of every seed, (n, T), a column for each BIN env steps."""
    curves = []
    for cell in runs(grid, method, arm, since):
        bins: list[list[float]] = [[] for _ in range(cell.config["steps"] // BIN)]
        for r in episodes(cell):
            bins[min(len(bins) - 1, (int(r["step"]) - 1) // BIN)].append(r["tv_share"])
        curves.append([float(np.mean(b)) for b in bins])
    return np.array(curves)


def highest(grid: Grid, method: str, arm: str, since: int = 0) -> Estimate:
    """TV share of each run's BIN steps that had most of it, since learning began."""
    return estimate(share_curves(grid, method, arm, since)[:, 2:].max(1))


def gate(grid: Grid, methods: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Reward-free methods with the world model's gate and without, before a TV that changes and one that does not."""
    lines = ["| bonus | gate | TV | last quarter | its seeds | highest 500 steps | coverage |", "|---" * 7 + "|"]
    for method in methods:
        for arm, pictures in zip(arms, ("a new photo each step", "K = 1"), strict=True):
            for name, has in ((f"free_{method}", "yes"), (f"free_{method}{UNGATED}", "no")):
                if shares := late_shares(grid, name, arm):
                    each = ", ".join(f"{x * 100:.0f}" for x in shares)
                    figures = (estimate(shares), highest(grid, name, arm), estimate(covered(grid, name, arm)))
                    late, most, coverage = (said(e, percent=True) for e in figures)
                    lines.append(f"| `{method}` | {has} | {pictures} | {late} | {each} | {most} | {coverage} |")
    return lines


def learnable(grids: Sequence[Grid], methods: Sequence[str]) -> list[str]:
    """With the task's reward, before a TV that always shows the same photo, without the world model's gate."""
    lines = ["| bonus | eta | env steps | highest 500 steps | last quarter | its seeds | return |", "|---" * 7 + "|"]
    for grid in grids:
        for method in methods:
            name, arm = f"{method}{UNGATED}", "remote_k1"
            if shares := late_shares(grid, name, arm):
                most, late = (said(e, percent=True) for e in (highest(grid, name, arm), estimate(shares)))
                each = ", ".join(f"{x * 100:.0f}" for x in shares)
                config = runs(grid, name, arm)[0].config
                made = f"{'-' if method == 'none' else format(config['agent']['lpm_eta'], 'g')} | {config['steps']:,}"
                lines.append(f"| `{method}` | {made} | {most} | {late} | {each} | {returned(grid, name, arm)} |")
    return lines


def returned(grid: Grid, method: str, arm: str) -> str:
    """The return of the last evaluation."""
    found = grid.estimate(method, arm, RETURN)
    return said(found) if found else ""


def bank(grid: Grid, coverage: dict[str, Estimate], arms: Sequence[str]) -> list[str]:
    """Every reward-free method before the TV that a button switches, the most captured first; the sham comes first.

    Under the sham nothing is ever on, so there it is what is explored that counts.
    """
    sham, *shown = arms
    head = " | ".join(f"TV share, last quarter{', K = 1' * (arm != shown[0])}" for arm in shown)
    lines = [f"| bonus | {head} | its seeds | coverage | coverage under {sham} | where |"]
    lines.append("|---" * (len(arms) + 4) + "|")
    rows = []
    for name in coverage:
        method = f"free_{name}"
        shares = [late_shares(grid, method, arm) for arm in shown]
        found = [said(estimate(s), percent=True) if s else "" for s in shares]
        each = ", ".join(f"{x * 100:.0f}" for x in shares[0])
        alone = covered(grid, method, sham)
        explored = (said(coverage[name], percent=True), said(estimate(alone), percent=True) if alone else "")
        where = ", ".join(sorted({c.config["device"] for c in runs(grid, method, shown[0])}))
        figures = (f"`{name}`", *found, each, *explored, where)
        rows.append((estimate(shares[0]).value, f"| {' | '.join(figures)} |"))
    return [*lines, *(line for _, line in sorted(rows, reverse=True))]


def paid(grid: Grid, methods: Sequence[str]) -> list[str]:
    """What replayed steps were paid in the last third, with the TV on and with it off: reward-free, in its unit."""
    lines = ["| bonus | with the TV on | with it off | seeds that were paid more for the TV |", "|---" * 4 + "|"]
    for method in methods:
        each = []
        for cell in runs(grid, f"free_{method}", "remote"):
            late = [r for r in cell.rows if r["kind"] == "train" and r["step"] > cell.config["steps"] * 2 / 3]
            kinds = ("bonus/tv_on", "bonus/tv_off")
            each.append([np.mean([r[kind] for r in late if math.isfinite(r[kind])]) for kind in kinds])
        on, off = (estimate([float(x) for x in column]) for column in zip(*each, strict=True))
        more = sum(a > b for a, b in each)
        name = f"`{method.removesuffix(UNGATED)}`{', no gate' * method.endswith(UNGATED)}"
        lines.append(f"| {name} | {said(on)} | {said(off)} | {more} of {len(each)} |")
    return lines


def rewarded(study: Grid, methods: Sequence[str], arms: Sequence[str], at: str = "remote") -> list[str]:
    """Returns with the task's reward, by arm, the sham first; and of one arm the seeds, what is kept, and TV shares."""
    arms = [arm for arm in arms if any(study.values(method, arm, RETURN) for method in methods)]
    told = {arm: arm.replace("_k1", ", K = 1") for arm in (*arms, at)}
    head = [*(f"return under {told[arm]}" for arm in arms), f"seeds under {told[at]}", f"kept under {told[at]}"]
    lines = [f"| bonus | {' | '.join(head)} | TV share there |", "|---" * (len(head) + 2) + "|"]
    for method in methods:
        values = [returned(study, method, arm) for arm in arms]
        values.append(", ".join(f"{x:.0f}" for x in study.values(method, at, RETURN).values()))
        kept = kept_of(study, method, at)
        values += [said(kept) if kept else "-", said(late_share(study, method, at), percent=True)]
        lines.append(f"| `{method.removesuffix(BLIND)}` | {' | '.join(values)} |")
    return lines


def late_share(grid: Grid, method: str, arm: str = "remote") -> Estimate:
    """TV share of the last quarter."""
    return estimate(late_shares(grid, method, arm))


def kept_of(grid: Grid, method: str, arm: str = "remote") -> Estimate | None:
    """What a method keeps, before a TV, of its gain over random play under the sham; None if it had none."""
    found = against_sham(grid, method, arm)
    return found.kept if found else None


COLOURS = {"none": "#777777", "prediction_error": "#c0392b", "lpm": "#1f77b4", "lpm_dual": "#2a9d57",
           "lpm_paired": "#8e44ad", "icm": "#e08e0b"}  # fmt: skip
COLOURS |= {f"{name}{UNGATED}": COLOURS[name] for name in ("none", "lpm", "lpm_paired")}


def draw(study: Grid, path: Path) -> None:
    """TV share over time: every seed a thin line, the IQM a thick one."""
    kinds = {
        "reward-free: a new photo at each step": ("free_", "", "remote"),
        "reward-free: always the same photo (K = 1)": ("free_", "", "remote_k1"),
        "with the task's reward, going blind for nothing": ("", BLIND, "remote"),
        "with the task's reward, going blind at a price": ("", "", "remote"),
    }
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, sharey=True, constrained_layout=True)
    for ax, (words, (before, after, arm)) in zip(axes.flat, kinds.items(), strict=True):
        draw_shares(ax, study, {f"{before}{name}{after}": name for name in COLOURS}, arm)
        ax.set_title(words, fontsize=10)
    axes[1, 1].legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="center right")
    for ax in axes[:, 0]:
        ax.set_ylabel("TV share (dotted: chance)")
    for ax in axes[-1]:
        ax.set_xlabel("env steps")
    figure.savefig(path, dpi=110)


def draw_shares(ax: Axes, grid: Grid, names: dict[str, str], arm: str) -> None:
    """Those of the methods that ran in this arm: ``names`` is method -> what it is called."""
    for method, name in names.items():
        curves = share_curves(grid, method, arm)
        if len(curves):
            steps, colour = (np.arange(curves.shape[1]) + 1) * BIN, COLOURS[name]
            look = "--" if name.endswith(UNGATED) else "-"
            ax.plot(steps, curves.T, look, color=colour, lw=0.6, alpha=0.5)
            ax.plot(steps, band(curves)[0], look, color=colour, lw=2.5, label=name.replace(UNGATED, ", no gate"))
    ax.axhline(grid.chance(arm) or 0, color="black", lw=0.8, ls=":")
    ax.set_ylim(-0.02, 1.02)
    ax.grid(alpha=0.2)


def draw_learned(grid: Grid, path: Path) -> None:
    """TV share over time before the one photo, without the world model's gate: with a task, without, or both."""
    ungated = [name for name in COLOURS if name.endswith(UNGATED)]
    kinds = {"with the task's reward": "", "reward-free": "free_"}
    shown = [kind for kind in kinds.items() if any(runs(grid, f"{kind[1]}{name}", "remote_k1") for name in ungated)]
    figure, axes = plt.subplots(1, len(shown), figsize=(10, 3), sharey=True, squeeze=False, constrained_layout=True)
    for ax, (words, before) in zip(axes[0], shown, strict=True):
        draw_shares(ax, grid, {f"{before}{name}": name for name in ungated}, "remote_k1")
        ax.set_title(words, fontsize=10)
        ax.set_xlabel("env steps")
        ax.legend(frameon=False)
    axes[0, 0].set_ylabel("TV share (dotted: chance)")
    figure.savefig(path, dpi=110)


def read(folders: Sequence[Path]) -> list[Grid]:
    """As ``pooled``. Raises UserError where the claims' runs are not there."""
    grids = pooled([read_grid(folder) for folder in folders])
    missing = [f"{method} in {arm}" for method, arm in NEEDED if not (grids and runs(grids[0], method, arm))]
    if missing:
        raise UserError(f"the claims need all pieces of the study; these folders hold no runs of {', '.join(missing)}")
    return grids


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grids", nargs="+", type=Path, help="folders of the study's grids")
    parser.add_argument("--page", type=Path, help="docs/study.md, whose tables and pictures are made anew")
    options = parser.parse_args(arguments)
    try:
        study, *longer = read(options.grids)
    except UserError as error:
        parser.error(str(error))
    gated = (m for m in study.methods if m.startswith("free_") and not m.endswith(UNGATED))
    free = [m.removeprefix("free_") for m in gated if runs(study, m, "remote")]
    coverage = {name: estimate(covered(study, f"free_{name}")) for name in free}
    first, arms = ("none", "prediction_error", *DEAF), ("sham", "remote", "remote_k1")
    names = [*first, *(name for name in free if name not in first)]
    parts = {
        "claims": claims(study, longer, coverage),
        "bank": bank(study, coverage, arms),
    }
    asked = (*(name for name in free if name in (*DEAF, "lpm_optimistic", "lbs")), f"lbs{UNGATED}")
    parts["paid"] = paid(study, [name for name in asked if runs(study, f"free_{name}", "remote")])
    if any(m.endswith(UNGATED) for m in study.methods):
        parts["gate"] = gate(study, ("none", "lpm", "lpm_paired", "lbs", *DRAWN), arms[1:])
    if any(runs(grid, f"{m}{UNGATED}", "remote_k1") for grid in (study, *longer) for m in first):
        parts["learnable"] = learnable((study, *longer), ("none", "lpm", "lpm_paired"))
    tables = [
        ("priced", study, "", arms[:2], "remote"),
        ("priced_k1", study, "", arms, "remote_k1"),
        ("rewarded", study, BLIND, arms, "remote"),
        *(("longer", grid, "", arms[:2], "remote") for grid in longer),
    ]
    for part, grid, after, shown, at in tables:
        methods = [name + after for name in names if runs(grid, name + after, at)]
        if methods:  # who makes the study today has no runs without a price nor long ones: the page keeps what it says
            parts[part] = rewarded(grid, methods, shown, at)
    if options.page is None:
        print("\n\n".join("\n".join(lines) for lines in parts.values()))
        return
    page = options.page.read_text(encoding="utf-8")
    for name, lines in parts.items():
        before, rest = page.split(f"<!-- {name}:begin -->\n")
        _, after = rest.split(f"<!-- {name}:end -->")
        page = before + f"<!-- {name}:begin -->\n" + "\n".join(lines) + f"\n<!-- {name}:end -->" + after
    options.page.write_text(page, encoding="utf-8")
    pictures = options.page.parent / "images"
    draw(study, pictures / "study_tv_share.png")
    for grid in longer:
        if any(runs(grid, m, "remote_k1") for m in grid.methods if m.endswith(UNGATED)):
            draw_learned(grid, pictures / "study_k1.png")


if __name__ == "__main__":
    main()
