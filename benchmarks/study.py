"""What the study's grids say of the claims: the tables and the figure of docs/study.md.

    dreamer-lpm compare --grid benchmarks/study.toml --out runs/study
    dreamer-lpm compare --grid benchmarks/bank.toml --out runs/bank
    dreamer-lpm compare --grid benchmarks/sight.toml --out runs/sight
    python3 benchmarks/study.py runs/study runs/bank --sight runs/sight

Reads the grids' folders alone, as `dreamer-lpm report` does; runs nothing. Those committed are in
benchmarks/results/study: study, bank (on a GPU), bank_cpu (the same grid on a CPU) and sight.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np

from dreamer_lpm.report.grid import COVERAGE, LATE_SHARE, RETURN, Grid, against_sham, read_grid
from dreamer_lpm.report.statistics import Estimate, band, estimate

mpl.use("Agg")
import matplotlib.pyplot as plt

BIN = 500  # env steps
DEAF = ("lpm", "lpm_dual")


def said(e: Estimate, *, percent: bool = False) -> str:
    """``.02 [.00, .04]``, or in percent."""
    scale, digits = (100, 0) if percent else (1, 2)
    digits = 0 if abs(e.value) > 20 else digits
    span = "" if e.low is None or e.high is None else f" [{e.low * scale:.{digits}f}, {e.high * scale:.{digits}f}]"
    return f"{e.value * scale:.{digits}f}{' %' if percent else ''}{span}"


def held(yes: bool) -> str:
    return "holds" if yes else "**does not hold**"


def claims(study: Grid, coverage: dict[str, Estimate], sight: Grid | None) -> list[str]:
    """The claims that the study was made for, each with what was found."""
    chance = study.chance("remote") or 0.0
    rows = ["| claim | reach | found | |", "|---|---|---|---|"]

    def row(claim: str, reach: str, found: str, yes: bool) -> None:
        rows.append(f"| {claim} | {reach} | {found} | {held(yes)} |")

    share = late_share(study, "free_prediction_error")
    times = Estimate(share.value / chance, (share.low or 0) / chance, (share.high or 0) / chance, share.n)
    reach = "lower bound at least 3 times chance"
    row("`prediction_error` is captured (reward-free)", reach, f"{said(times)} times", (times.low or 0) >= 3)
    for method in DEAF:
        share = late_share(study, f"free_{method}")
        found = said(share, percent=True)
        row(f"`{method}` turns away (reward-free)", "last quarter, upper bound at most chance (25 %)", found,
            share.high is not None and share.high <= chance)  # fmt: skip
    for method in (*DEAF, "none"):
        kept = kept_of(study, method)
        row(f"`{method}` with the task's reward keeps what it earns without the TV", "at least 0.95", said(kept),
            kept.value >= 0.95)  # fmt: skip
    for method in sight.methods if sight else ():
        kept = kept_of(sight, method)
        row(f"the same, `{method}`, with the price of going blind", "at least 0.95", said(kept), kept.value >= 0.95)
    for method in DEAF:
        curves = share_curves(study, f"free_{method}", "remote_k1")[:, 2:]  # since learning began
        most, last = estimate(curves.max(1)), estimate(curves[:, -3:].mean(1))
        found = f"highest {BIN} steps {said(most, percent=True)}, last quarter {said(last, percent=True)}"
        yes = (most.low or 0) > chance and last.high is not None and last.high <= chance
        row(f"K = 1: `{method}` watches what can be learned, then leaves (reward-free)",
            "above chance, then at most chance", found, yes)  # fmt: skip
    best = max((m for m in coverage if m not in ("random", "none")), key=lambda m: coverage[m].value)
    rest = {m: coverage[m] for m in ("none", "random")}
    others = ", ".join(f"`{m}` {said(e, percent=True)}" for m, e in rest.items())
    apart = all((coverage[best].low or 0) > (e.high or 1) for e in rest.values())
    row("the best method covers more than `none` and uniform random actions (reward-free)", "intervals apart",
        f"`{best}` {said(coverage[best], percent=True)}; {others}", apart)  # fmt: skip
    return rows


def share_curves(grid: Grid, method: str, arm: str) -> np.ndarray:
    """TV share of every seed, (n, T), a column for each BIN env steps."""
    curves = []
    for cell in grid.of(method, arm):
        episodes = [(r["step"], r["tv_share"]) for r in cell.rows if r["kind"] == "episode"]
        steps = int((cell.summary or {})["env_steps"])
        bins: list[list[float]] = [[] for _ in range(steps // BIN)]
        for step, share in episodes:
            bins[min(len(bins) - 1, (int(step) - 1) // BIN)].append(share)
        curves.append([float(np.mean(b)) for b in bins])
    return np.array(curves)


def free_methods(grids: Sequence[Grid]) -> dict[str, tuple[Grid, str]]:
    """Reward-free methods before the remote TV: the bonus's name -> its grid and its name there."""
    found: dict[str, tuple[Grid, str]] = {}
    for grid in grids:
        for method in grid.methods:
            cells = grid.of(method, "remote")
            if cells and cells[0].config["agent"]["extrinsic"] == 0:
                found[method.removeprefix("free_")] = (grid, method)
    return found


def bank(methods: dict[str, tuple[Grid, str]]) -> list[str]:
    """Every reward-free method before the remote TV, the most captured first."""
    lines = ["| bonus | TV share, last quarter | its seeds | coverage | seeds | where |", "|---|---|---|---|---|---|"]
    rows = []
    for name, (grid, method) in methods.items():
        shares = list(grid.values(method, "remote", LATE_SHARE).values())
        share, covered = (estimate(list(grid.values(method, "remote", m).values())) for m in (LATE_SHARE, COVERAGE))
        where = (grid.of(method, "remote")[0].summary or {})["device"]
        each = ", ".join(f"{x * 100:.0f}" for x in shares)
        figures = (f"`{name}`", said(share, percent=True), each, said(covered, percent=True), str(share.n), where)
        rows.append((share.value, f"| {' | '.join(figures)} |"))
    return [*lines, *(line for _, line in sorted(rows, reverse=True))]


def rewarded(study: Grid, methods: Sequence[str], arms: Sequence[str]) -> list[str]:
    """Returns with the task's reward, by arm; the sham comes first."""
    head = [f"return under {arm.replace('_k1', ', K = 1')}" for arm in arms]
    lines = [f"| bonus | {' | '.join(head)} | seeds under remote | kept under remote | TV share there |"]
    lines.append("|---" * (len(arms) + 4) + "|")
    for method in methods:
        values = [said(e) for arm in arms if (e := study.estimate(method, arm, RETURN))]
        values.append(", ".join(f"{x:.0f}" for x in study.values(method, "remote", RETURN).values()))
        values += [said(kept_of(study, method)), said(late_share(study, method), percent=True)]
        lines.append(f"| `{method}` | {' | '.join(values)} |")
    return lines


def late_share(grid: Grid, method: str) -> Estimate:
    """TV share of the last quarter before the remote TV."""
    found = grid.estimate(method, "remote", LATE_SHARE)
    assert found is not None
    return found


def kept_of(grid: Grid, method: str) -> Estimate:
    """What a method keeps, before the remote TV, of its gain over random play under the sham."""
    found = against_sham(grid, method, "remote")
    assert found is not None
    assert found.kept is not None
    return found.kept


def beside_sham(study: Grid, sight: Grid) -> Grid:
    """Runs for which going blind has a price beside the study's sham, where it has none."""
    sham = [cell for cell in study.cells if cell.arm == "sham"]
    return replace(study, methods=sight.methods, cells=[*sham, *sight.cells])


def draw(study: Grid, path: Path) -> None:
    """TV share over time: every seed a thin line, the IQM a thick one."""
    arms = {"remote": "a new photo at each step", "remote_k1": "always the same photo (K = 1)"}
    methods = {"none": "#777777", "prediction_error": "#c0392b", "lpm": "#1f77b4", "lpm_dual": "#2a9d57"}
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, sharey=True, constrained_layout=True)
    for line, (prefix, kind) in enumerate({"free_": "reward-free", "": "with the task's reward"}.items()):
        for column, (arm, words) in enumerate(arms.items()):
            ax = axes[line, column]
            for name, colour in methods.items():
                curves = share_curves(study, f"{prefix}{name}", arm)
                steps = (np.arange(curves.shape[1]) + 1) * BIN
                ax.plot(steps, curves.T, color=colour, lw=0.6, alpha=0.5)
                ax.plot(steps, band(curves)[0], color=colour, lw=2.5, label=name)
            ax.axhline(study.chance(arm) or 0, color="black", lw=0.8, ls=":")
            ax.set_title(f"{kind}: {words}", fontsize=10)
            ax.set_ylim(-0.02, 1.02)
            ax.grid(alpha=0.2)
    axes[0, 0].legend(frameon=False, fontsize=9, loc=(0.66, 0.55))
    for ax in axes[:, 0]:
        ax.set_ylabel("TV share (dotted: chance)")
    for ax in axes[-1]:
        ax.set_xlabel("env steps")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("bank", nargs="*", type=Path, help="the rest of the bank, in one grid or several")
    parser.add_argument("--sight", type=Path, help="the grid of benchmarks/sight.toml")
    parser.add_argument("--page", type=Path, default=Path("docs/study.md"), help="whose tables are written anew")
    parser.add_argument("--picture", type=Path, default=Path("docs/images/study_tv_share.png"))
    options = parser.parse_args()
    study = read_grid(options.study)
    methods = free_methods([study, *map(read_grid, options.bank)])
    coverage = {
        name: estimate(list(grid.values(method, "remote", COVERAGE).values()))
        for name, (grid, method) in methods.items()
    }
    sight = beside_sham(study, read_grid(options.sight)) if options.sight else None
    names, arms = ("none", "prediction_error", *DEAF), ("sham", "remote", "remote_k1")
    parts = {
        "claims": claims(study, coverage, sight),
        "bank": bank(methods),
        "rewarded": rewarded(study, names, arms),
    }
    if sight:
        parts["priced"] = rewarded(sight, sight.methods, arms[:2])
    page = options.page.read_text(encoding="utf-8")
    for name, lines in parts.items():
        before, rest = page.split(f"<!-- {name}:begin -->\n")
        _, after = rest.split(f"<!-- {name}:end -->")
        page = before + f"<!-- {name}:begin -->\n" + "\n".join(lines) + f"\n<!-- {name}:end -->" + after
    options.page.write_text(page, encoding="utf-8")
    draw(study, options.picture)


if __name__ == "__main__":
    main()
