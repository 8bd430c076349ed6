"""``dreamer-lpm report``: draw the report of a run or a grid again, from its files alone. No torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from dreamer_lpm.report.grid import REPORT_FILE, is_grid, read_grid, write_results
from dreamer_lpm.report.html import grid_page, run_page
from dreamer_lpm.report.metrics import METRICS_FILE
from dreamer_lpm.report.strict_json import write_atomically
from dreamer_lpm.types import UserError


def main(args: list[str]) -> int:
    """The command. Returns 0. Raises UserError when the folder is neither a run nor a grid."""
    parser = argparse.ArgumentParser("dreamer-lpm report", description="Draw the report of a run or a grid again.")
    parser.add_argument("folder", type=Path, help="a run's folder, or the --out of dreamer-lpm compare")
    parser.add_argument("--out", type=Path, help=f"where the page goes (default: {REPORT_FILE} in the folder)")
    options = parser.parse_args(args)
    print(write_report(options.folder, options.out))
    return 0


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the page and return its path; for a grid without ``out`` also ``results.csv`` and ``summary.json``.

    Raises UserError when the folder is neither a run nor a grid, or nothing in it is finished.
    """
    page = out or folder / REPORT_FILE
    if is_grid(folder):
        grid = read_grid(folder)
        if not grid.finished:
            raise UserError(f"No cell of {folder} is finished yet; let dreamer-lpm compare go on.")
        if out is None:
            write_results(grid)
        text = grid_page(grid, page.parent)
    elif (folder / METRICS_FILE).is_file():
        text = run_page(folder, page.parent)
    else:
        raise UserError(f"{folder} is neither a run nor a grid; give a folder such as runs/my-run.")
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text)
    return page
