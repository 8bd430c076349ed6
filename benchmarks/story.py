"""Two reward-free agents before one TV that shows a new picture each time: who ends up staring, and who walks away?

    python3 benchmarks/story.py            about five minutes on two cores

One `dreamer-lpm compare`, which runs both side by side, one thread and the same seed each; a stopped run goes on, and a
finished one is only drawn again. Options of `compare` may follow. The film shows the very steps that the agents learned
from, read from their replay. Until `--prefill` both do the same random things.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dreamer_lpm.checkpoint import load_newest, load_rows
from dreamer_lpm.cli import main as dreamer_lpm
from dreamer_lpm.report.grid import Cell, Grid, read_grid
from dreamer_lpm.report.story import CARD_SECONDS, FPS, Film, Life, Pair, percent, plot_story, windows, write_gif
from dreamer_lpm.report.strict_json import write_json
from dreamer_lpm.report.video import write_video

TITLE = "Two curious agents, one TV"
MOTTOS = {
    "prediction_error": "paid for what it cannot predict",
    "lpm_dual": "paid for what it learns to predict",
}
ARM = "remote"
GRID = [
    *("--methods", *MOTTOS, "--arms", ARM, "--seeds", "1", "--tv-images", "photos", "--extrinsic", "0"),
    *("--steps", "5000", "--update-every", "4", "--eval-every", "0", "--eval-episodes", "1", "--action-repeat", "2"),
]


def life(cell: Cell, summary: dict[str, Any]) -> Life:
    """What the agent of a finished run saw while it trained."""
    saved, _ = load_newest(cell.folder)
    if saved is None:
        sys.exit(f"{cell.folder} no longer has its checkpoint; delete the folder and start again.")
    pieces = [load_rows(path) for path in saved.replay]
    obs, tv_on, first = (np.concatenate([p[name][:, 0] for p in pieces]) for name in ("obs", "tv_on", "is_first"))
    return Life(
        cell.method, MOTTOS[cell.method], obs, tv_on, first,
        step=cell.config["action_repeat"] * np.cumsum(~first),
        late_share=summary["tv_share_last_quarter"],
    )  # fmt: skip


def tell(grid: Grid, out: Path) -> str:
    """Draw everything from the finished grid's first seed into ``out``. Returns where it is, and how it ended."""
    cells = [grid.of(method, ARM)[0] for method in MOTTOS]
    summaries = [cell.summary or {} for cell in cells]
    pair: Pair = (life(cells[0], summaries[0]), life(cells[1], summaries[1]))
    chance, end = float(summaries[0]["tv_chance"]), int(summaries[0]["env_steps"])
    film = Film(pair, chance=chance, end=end, title=TITLE)
    frames, card = list(film.frames()), film.card()
    video = write_video(out / "story.mp4", [*frames, *[card] * (CARD_SECONDS * FPS)], FPS)
    # It plays for ever, so the card that ends it may as well come first, where pages that do not move show it.
    gif = write_gif(out / "story.gif", [card, *frames], hold=CARD_SECONDS)
    plot = plot_story(out / "story.png", pair, chance=chance, end=end, random_until=int(cells[0].config["prefill"]))
    with (out / "tv_share.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["from_step", "to_step", *MOTTOS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(windows(pair, end))
    write_json(out / "summary.json", {"commands": grid.about["commands"], "runs": summaries})
    shares = [
        f"{each.name:<17} {percent(each.late_share):>5} of the last quarter at the TV; chance is {percent(chance)}"
        for each in pair
    ]
    return "\n".join([f"video   {video}", f"gif     {gif}", f"plot    {plot}", *shares])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="Options of dreamer-lpm compare may follow, such as --seeds 2 or --steps 2000.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/story"), help="where everything goes")
    options, more = parser.parse_known_args()
    folder = options.out / "grid"
    status = dreamer_lpm(["compare", *GRID, *more, "--out", str(folder)])
    if status == 0:
        print(tell(read_grid(folder), options.out))
    return status


if __name__ == "__main__":
    sys.exit(main())
