"""The page of a grid or a run: one HTML file that opens offline, with its charts, videos, figures and commands in it.

It asks for nothing from anywhere, and its own policy forbids it. Whatever names a file brings are escaped.
"""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreamer_lpm.report.curves import Curve, curve, series
from dreamer_lpm.report.grid import (
    COVERAGE,
    LATE_SHARE,
    MEASURES,
    RETURN,
    SHARE,
    AgainstSham,
    Arm,
    Cell,
    Grid,
    Measure,
    Verdict,
    against_sham,
    improvements,
    verdict,
)
from dreamer_lpm.report.statistics import ENOUGH_SEEDS, LEAST_SEEDS, Estimate
from dreamer_lpm.report.strict_json import dumps
from dreamer_lpm.report.svg import Dots, Line, dot_chart, line_chart, meter, number, span
from dreamer_lpm.report.video import find_ffmpeg
from dreamer_lpm.types import UserError

COLOURS = 13  # one for each bonus of the bank, and one for random play
NOISY = ("return", "tv_share")  # of an episode; their curves are smoothed
EMBED_EACH, EMBED_ALL = 1_500_000, 30_000_000  # bytes of video inside the page; others are linked
CHIPS = {"captured": "captured", "free": "walks away", "open": "undecided", "few seeds": "too few seeds"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data: 'self' file:"
STATISTICS = (
    "Figures are interquartile means over seeds (IQM: the mean of the middle half) with 95 % bootstrap intervals, "
    f"which need {LEAST_SEEDS} seeds; a verdict needs {ENOUGH_SEEDS}, for intervals of few seeds are too narrow: that "
    "of 3 holds the truth in 3 cases of 4, of 5 in 9 of 10, of 10 in 94 of 100. Dots and thin lines are single seeds: "
    "staring at a TV is all or nothing, and a mean can hide it."
)


@dataclass(frozen=True)
class _Films:
    """Puts videos into the page as long as there is room, and links the others from where the page lies."""

    page_folder: Path
    used: list[int]

    def tag(self, path: Path) -> str:
        size = path.stat().st_size
        if size <= EMBED_EACH and sum(self.used) + size <= EMBED_ALL:
            self.used.append(size)
            source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
        else:
            source = quote(Path(os.path.relpath(path, self.page_folder)).as_posix())
        return f'<video controls muted loop playsinline preload="metadata"{_poster(path)} src="{source}"></video>'


def _poster(video: Path) -> str:
    """The attribute with a picture from the film's beginning; none if the film cannot be read."""
    command = ["-v", "error", "-ss", "2", "-i", f"file:{video}", "-frames:v", "1",
               "-vf", "scale=480:-2", "-q:v", "5", "-f", "image2pipe", "-c:v", "mjpeg", "-"]  # fmt: skip
    try:
        command = [find_ffmpeg(), *command]
        picture = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout
    except (OSError, UserError):  # no ffmpeg
        return ""
    return f' poster="data:image/jpeg;base64,{base64.b64encode(picture).decode()}"' if picture else ""


def page(title: str, header: str, legend: str, body: str, footer: str, css: str = "") -> str:
    """A whole document. ``title`` is text; the others are HTML."""
    sheet = resources.files("dreamer_lpm.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>\n{sheet}{css}</style>\n</head>\n'
        f"<body>\n<header>{header}</header>\n{legend}\n<main>{body}</main>\n<footer>{footer}</footer>\n</body>\n</html>\n"
    )


# --- a grid -----------------------------------------------------------------------------------------------------------


def grid_page(grid: Grid, page_folder: Path) -> str:
    """The report of a grid with at least one finished cell; videos that are linked are so from ``page_folder``."""
    return _GridPage(grid, page_folder).html()


class _GridPage:
    def __init__(self, grid: Grid, page_folder: Path):
        self.grid = grid
        self.methods = [m for m in grid.methods if any(c.method == m for c in grid.finished)]
        self.arms = [arm for arm in grid.arms.values() if any(c.arm == arm.name for c in grid.finished)]
        self.tv_arms = [arm for arm in self.arms if grid.chance(arm.name) is not None]
        self.films = _Films(page_folder, [])
        # "none" is what all others are measured against: grey. The others keep their colours wherever they appear.
        coloured = [m for m in self.methods if m != "none"]
        self.css = {m: f"m{i % COLOURS}" for i, m in enumerate(coloured)} | {"none": "grey"}
        self.last_step = max((row["step"] for cell in grid.finished for row in cell.rows), default=1)

    def html(self) -> str:
        title = "Who does the TV capture?" if self.tv_arms else "Comparison"
        sections = [
            self.scorecard(),
            self.curves_and_dots(
                "Return", RETURN, "return", self.arms, "Of training episodes, the mean of the last 5."
            ),
            self.tv(),
            self.curves_and_dots(
                "Coverage", COVERAGE, "coverage", self.arms, "Share of the state space seen so far.", percent=True
            ),
            self.inside(),
            self.better(),
            self.videos(),
            self.figures(),
            self.origin(),
        ]
        toggles = "".join(
            f"body:has(#show{i}:not(:checked)) .of{i} {{ display: none; }}\n" for i in range(len(self.methods))
        )
        return page(
            f"{title} {self.grid.folder.resolve().name}", self.header(title), self.legend(), "".join(sections),
            f"<p>{STATISTICS}</p>", toggles,
        )  # fmt: skip

    def classes(self, method: str) -> str:
        """Colour, and what the legend hides."""
        return f"{self.css[method]} of{self.methods.index(method)}"

    def header(self, title: str) -> str:
        grid = self.grid
        envs = ", ".join(dict.fromkeys(str(c.config.get("env_name", "")) for c in grid.finished))
        kicker = f"{grid.folder.resolve().name} · {envs}"
        steps = sorted({c.summary["env_steps"] for c in grid.finished if c.summary and "env_steps" in c.summary})
        ends = " to ".join(f"{n:,}" for n in dict.fromkeys(steps[:1] + steps[-1:]))
        of_steps = f" of {ends} env steps" if steps else ""
        lead = (
            f"{_count(len(self.methods), 'method')}, {_count(len(self.arms), 'arm')}, "
            f"{_count(len(grid.seeds), 'seed')}: {_count(len(grid.finished), 'run')}{of_steps}."
        )
        warning = ""
        if len(grid.finished) < len(grid.cells):
            warning = (
                f'<p class="warning">{len(grid.finished)} of {len(grid.cells)} cells are finished; the others, '
                f"unfinished or failed, are in no figure.{self.absent()}</p>"
            )
        found = "".join(self.finding(arm) for arm in self.tv_arms)
        found = f'<div class="found">{found}</div>' if found else ""
        return (
            f'<p class="kicker">{escape(kicker)}</p><h1>{title}</h1><p class="lead">{escape(lead)}</p>{warning}{found}'
        )

    def absent(self) -> str:
        """Methods and arms of which nothing is finished, so that the page does not know them."""
        known = {*self.methods, *(arm.name for arm in self.arms)}
        names = [name for name in (*self.grid.methods, *self.grid.arms) if name not in known]
        return f" There is none yet of: {escape(', '.join(names))}." if names else ""

    def finding(self, arm: Arm) -> str:
        """Who the arm's TV captured, and who walks away, at a glance."""
        groups: dict[str, list[str]] = {}
        for method in self.methods:
            found = verdict(self.grid, method, arm.name)
            if found is not None:
                groups.setdefault(found.word, []).append(
                    f'<span class="who {self.css[method]}"><span class="swatch"></span><b>{escape(method)}</b> '
                    f"{number(found.share.value, percent=True)}</span>"
                )
        rows = "".join(
            f'<div><span class="chip {word.replace(" ", "-")}">{chip}</span> {"".join(groups[word])}</div>'
            for word, chip in CHIPS.items()
            if word in groups
        )
        chance = self.chance(arm)
        words = (
            "chance is another for each method" if chance is None else
            f"by chance {number(chance, percent=True)} of the steps"
        ) + ("" if self.grid.chosen(arm.name) else ", whatever the policy does")  # fmt: skip
        return f'<section><h3>{escape(arm.name)}</h3><p class="note">{words}</p>{rows}</section>'

    def chance(self, arm: Arm) -> float | None:
        """The arm's TV share of a random policy; None without a TV, or where methods with TVs of their own differ."""
        known = [self.grid.chance(arm.name, method) for method in self.methods]
        levels = [x for x in known if x is not None]
        return levels[0] if len({number(x, percent=True) for x in levels}) == 1 else None

    def legend(self) -> str:
        boxes = "".join(
            f'<label class="{self.css[m]}"><input type="checkbox" id="show{i}" checked><span class="swatch"></span>'
            f"{escape(m)}</label>"
            for i, m in enumerate(self.methods)
        )
        return f'<nav class="legend" aria-label="Methods shown"><div>{boxes}</div></nav>'

    def scorecard(self) -> str:
        cards = [self.card(arm) for arm in self.tv_arms]
        if not cards:
            return ""
        intro = (
            "The TV's share of the steps against chance (the notch), which is what a policy of random actions gets: "
            "<b>captured</b> if the whole interval lies above it, and above what methods with neither curiosity nor "
            "reward come to; <b>walks away</b> if none of it lies above chance. "
            "<b>Return kept</b> is the gain over random play that is left, against the same arm with a TV that shows "
            "nothing."
        )
        return f"<h2>Scorecard</h2><p class='note'>{intro}</p>{''.join(cards)}"

    def card(self, arm: Arm) -> str:
        span = "last quarter" if self.grid.share_measure(arm.name) is LATE_SHARE else "whole run"
        columns = [f"TV share, {span}", "Verdict", "Return"]
        columns += ["Return kept"] if arm.sham else []
        extra = [m for m in (COVERAGE, *_of("escaped", "dream_tv_share")) if m in self.grid.measures()]
        head = "".join(f"<th>{escape(c)}</th>" for c in ["Method", *columns, *(m.name for m in extra)])
        rows = []
        for method in self.methods:
            if not self.grid.of(method, arm.name):
                continue
            found = verdict(self.grid, method, arm.name)
            cells = [_share(found, self.css[method]), _chip(found)]
            cells.append(_figure(self.grid.estimate(method, arm.name, RETURN)))
            if arm.sham:
                cells.append(_kept(against_sham(self.grid, method, arm.name)))
            cells += [_figure(self.grid.estimate(method, arm.name, m), m.percent) for m in extra]
            labels = [*columns, *(m.name for m in extra)]
            tds = "".join(
                f'<td data-label="{escape(label)}">{cell}</td>' for label, cell in zip(labels, cells, strict=True)
            )
            seeds = self.seeds(method, arm)
            name = f'<td class="name {self.css[method]}"><span class="swatch"></span>{escape(method)}{seeds}</td>'
            rows.append(f'<tr class="of{self.methods.index(method)}">{name}{tds}</tr>')
        return (
            f'<div class="card"><h3>{escape(arm.name)}</h3><p class="note">{escape(arm.words)}</p><div class="scroll">'
            f'<table class="score"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></div>'
        )

    def seeds(self, method: str, arm: Arm) -> str:
        """How many there are of those asked for, where that is not all that any method has."""
        asked = {m: sum((c.method, c.arm) == (m, arm.name) for c in self.grid.cells) for m in self.methods}
        done = len(self.grid.of(method, arm.name))
        return "" if done == max(asked.values()) else f" <small>{done} of {_count(asked[method], 'seed')}</small>"

    def curves_and_dots(
        self, heading: str, measure: Measure, key: str, arms: Sequence[Arm], about: str, *, percent: bool = False
    ) -> str:
        """Curves of training, then the figure at the end, a panel for each arm."""
        limits = self._limits([measure], arms)
        curves = self.curve_panels(arms, heading, key, percent=percent)
        dots = [self.dot_panel(arm, measure, limits) for arm in arms]
        return _section(heading, about, curves, dots)

    def tv(self) -> str:
        if not self.tv_arms:
            return ""
        curves = self.curve_panels(self.tv_arms, "TV share", "tv_share", percent=True)
        dots = [self.dot_panel(arm, self.grid.share_measure(arm.name), (0.0, 1.0)) for arm in self.tv_arms]
        about = "Share of the steps with the TV on, in training; dashed is chance, a policy of random actions."
        return _section("Time in front of the TV", about, curves, dots)

    def inside(self) -> str:
        """What the agent feels and dreams before the TV."""
        pay = _of("bonus_tv_on", "bonus_tv_off")
        rows = [
            [self.dot_panel(arm, measure, limits) for arm in self.tv_arms]
            for measures, limits in (
                (_of("dream_tv_share", "recon_tv_share"), (0.0, 1.0)),
                (pay, self._limits(pay, self.tv_arms)),
            )
            for measure in measures
        ]
        about = "What its dreams show, where the world model's effort goes, and what the bonus pays on and off the TV."
        return _section("Inside the agent", about, *rows)

    def _limits(self, measures: Sequence[Measure], arms: Sequence[Arm]) -> tuple[float, float] | None:
        """One scale for all panels, so that they compare at a glance."""
        values = [
            v for x in measures for arm in arms for m in self.methods for v in self.grid.values(m, arm.name, x).values()
        ]
        return (min(values), max(values)) if values else None

    def curve_panels(self, arms: Sequence[Arm], name: str, key: str, *, percent: bool) -> list[str]:
        """A panel for each arm that has the curve, all on one scale."""
        found = {arm.name: self.curves(arm, key) for arm in arms}
        every = [c for curves in found.values() for c in curves.values()]
        if not every:
            return []
        panels = []
        for arm in arms:
            chance = self.chance(arm) if key == "tv_share" else None
            chart = line_chart(
                [Line(self.classes(method), method, c) for method, c in found[arm.name].items()],
                title=f"{name} over env steps, {arm.name}", last_step=self.last_step, percent=percent,
                limits=(0.0, 1.0) if percent else span(every),
                chance=chance,
            )  # fmt: skip
            panels.append(
                f'<figure class="panel"><h3>{escape(arm.name)}</h3><p>{name} over env steps</p>{chart}</figure>'
            )
        return panels

    def curves(self, arm: Arm, key: str) -> dict[str, Curve]:
        """Method -> its curve in the arm, where it has one."""
        found = {
            m: curve({c.seed: series(c.rows, "episode", key) for c in self.grid.of(m, arm.name)}, smooth=key in NOISY)
            for m in self.methods
        }
        return {method: c for method, c in found.items() if c is not None}

    def dot_panel(self, arm: Arm, measure: Measure, limits: tuple[float, float] | None) -> str:
        rows = []
        for method in self.methods:
            found = self.grid.estimate(method, arm.name, measure)
            if found is not None:
                seeds = self.grid.values(method, arm.name, measure)
                rows.append(Dots(self.classes(method), method, seeds, found.value, found.low, found.high))
        if not rows:
            return ""
        chance = self.chance(arm) if measure in (SHARE, LATE_SHARE) else None
        chart = dot_chart(
            rows, title=f"{measure.name}, {arm.name}", percent=measure.percent, limits=limits,
            chance=chance,
        )  # fmt: skip
        words = f"{measure.name}, every seed" + (" (last evaluation)" if measure is RETURN else "")
        return f'<figure class="panel"><h3>{escape(arm.name)}</h3><p>{escape(words)}</p>{chart}</figure>'

    def better(self) -> str:
        """Probability of improvement, a square of methods for each arm."""
        panels = []
        for arm in self.arms:
            every = improvements(self.grid, arm.name)
            for measure in (RETURN, self.grid.share_measure(arm.name), COVERAGE):
                square = every.get(measure.key, {})
                if any(chance["low"] is not None for row in square.values() for chance in row.values()):
                    panels.append(self.square(arm, measure, square))
        if not panels:
            return ""
        about = (
            "Chance that a seed of the method in the row does better than one of the method in the column: more "
            "return, less TV, more coverage. 50\u202f% is no difference; a dot stands where two methods have other "
            "envs, or TVs with other chance levels."
        )
        return f'<h2>Who does better</h2><p class="note">{about}</p>{"".join(panels)}'

    def square(self, arm: Arm, measure: Measure, chances: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
        head = "".join(f'<th scope="col">{escape(m)}</th>' for m in chances)
        rows = "".join(
            f'<tr><th scope="row">{escape(a)}</th>{"".join(_heat(chances[a].get(b)) for b in chances)}</tr>'
            for a in chances
        )
        return (
            f"<details{' open' if len(self.methods) <= 6 and measure is RETURN else ''}><summary>{escape(arm.name)}: "
            f'{escape(measure.name)}</summary><div class="scroll"><table class="heat"><tr><td></td>{head}</tr>{rows}'
            "</table></div></details>"
        )

    def videos(self) -> str:
        """One film of each method and arm: the last of the seed that is most like the others."""
        rows = []
        for arm in self.arms:
            panels = []
            for method in self.methods:
                cell = self.typical(method, arm)
                if cell is None or not cell.videos:
                    continue
                share = cell.value(self.grid.share_measure(arm.name))
                words = f"seed {cell.seed}" + ("" if share is None else f", TV share {number(share, percent=True)}")
                panels.append(
                    f'<figure class="panel of{self.methods.index(method)}"><h3>{escape(method)} · {escape(arm.name)}'
                    f"</h3><p>{words}</p>{self.films.tag(cell.videos[-1])}</figure>"
                )
            rows.append(panels)
        return _section("Videos", "The last evaluation of the seed nearest to the middle.", *rows)

    def typical(self, method: str, arm: Arm) -> Cell | None:
        """The finished cell nearest to the IQM, of TV share where there is a TV, else of return."""
        cells = self.grid.of(method, arm.name)
        for measure in (self.grid.share_measure(arm.name), RETURN):
            middle = self.grid.estimate(method, arm.name, measure)
            known = {c.seed: v for c in cells if (v := c.value(measure)) is not None}
            if middle is not None:
                nearest = min(known, key=lambda seed: (abs(known[seed] - middle.value), seed))
                return next(c for c in cells if c.seed == nearest)
        return cells[0] if cells else None

    def figures(self) -> str:
        """Every figure of every seed."""
        measures = self.grid.measures()
        tables = []
        for arm in self.arms:
            rows = []
            for method in self.methods:
                for cell in self.grid.of(method, arm.name):
                    values = "".join(f"<td>{_plain(cell.value(m), m.percent)}</td>" for m in measures)
                    rows.append(
                        f'<tr class="of{self.methods.index(method)}"><td>{escape(method)}</td><td>{cell.seed}</td>'
                        f"{values}</tr>"
                    )
            head = "".join(f"<th>{escape(m.name)}</th>" for m in measures)
            tables.append(
                f'<details><summary>{escape(arm.name)}</summary><div class="scroll"><table class="figures"><tr>'
                f"<th>Method</th><th>Seed</th>{head}</tr>{''.join(rows)}</table></div></details>"
            )
        return f'<h2>Every figure</h2><p class="note">Also in results.csv.</p>{"".join(tables)}'

    def origin(self) -> str:
        """Commands, settings, versions."""
        about = self.grid.about
        minutes = sum(c.seconds for c in self.grid.finished) / 60
        arms = {name: arm.get("settings", {}) for name, arm in about.get("arms", {}).items()}
        every = {revision for c in self.grid.finished for revision in _revisions(c.summary or {})}
        mixed = (
            f'<p class="warning">These runs were made by {len(every)} different versions of the code: '
            f"{escape(', '.join(sorted(every)))}.</p>"
            if len(every) > 1
            else ""
        )
        return (
            "<h2>How it was made</h2>"
            + f"<pre>{escape(chr(10).join(map(str, about.get('commands', []))))}</pre>"
            + f'<p class="note">{minutes:,.0f} minutes of computing in all. Each cell is one '
            "<code>dreamer-lpm train --config settings/CELL.json</code>.</p>" + mixed
            + _json("Methods", about.get("methods", {})) + _json("Arms", arms)
            + _json("Settings of all cells", {**about.get("common", {}), "auto": about.get("machine", {})})
            + _versions([c.summary or {} for c in self.grid.finished])
        )  # fmt: skip


# --- a run ------------------------------------------------------------------------------------------------------------

# Heading, whether in percent, and the curves: (label, kind, key, arm).
PANELS: tuple[tuple[str, bool, tuple[tuple[str, str, str, str | None], ...]], ...] = (
    (
        "Return",
        False,
        (
            ("training", "episode", "return", None),
            ("evaluation", "eval", "return_mean", "as_trained"),
            ("evaluation, TV shows nothing", "eval", "return_mean", "tv_off"),
        ),
    ),
    (
        "Time in front of the TV",
        True,
        (("training", "episode", "tv_share", None), ("evaluation", "eval", "tv_share", "as_trained")),
    ),
    ("Coverage", True, (("coverage", "episode", "coverage", None),)),
    ("Bonus", False, (("TV on", "train", "bonus/tv_on", None), ("TV off", "train", "bonus/tv_off", None))),
    ("TV share in dreams", True, (("dreams", "train", "dream/tv_share", None),)),
    ("Reconstruction spent on the TV", True, (("share", "train", "loss/recon_tv_share", None),)),
    ("Reconstruction loss", False, (("loss", "train", "loss/recon", None),)),
    ("Surprise (KL)", False, (("KL", "train", "health/kl", None),)),
    ("Reward loss", False, (("loss", "train", "loss/reward", None),)),
    ("Error-predictor loss", False, (("loss", "train", "loss/error_predictor", None),)),
)


def run_page(folder: Path, page_folder: Path) -> str:
    """The report of one run, finished or not; videos that are linked are so from ``page_folder``.

    Raises UserError if the run's files are damaged.
    """
    cell = Cell("", "", 0, folder)
    summary = cell.summary or {}
    name = folder.resolve().name
    last = max((row["step"] for row in cell.rows), default=1)
    films = _Films(page_folder, [])
    videos = "".join(
        f'<figure class="panel"><h3>after {int(p.stem.split("_")[2]):,} env steps</h3>{films.tag(p)}</figure>'
        for p in cell.videos
    )
    charts = "".join(_run_panel(cell, heading, percent, wanted, last) for heading, percent, wanted in PANELS)
    header = (
        f'<p class="kicker">{escape(str(cell.config.get("env_name", "")))}</p><h1>{escape(name)}</h1>'
        f'<p class="lead">{escape(_run_words(cell, last))}</p>{_tiles(cell)}'
    )
    body = (
        (f'<h2>Curves</h2><div class="panels">{charts}</div>' if charts else "")
        + (f'<h2>Videos</h2><div class="panels">{videos}</div>' if videos else "")
        + "<h2>How it was made</h2>"
        + _json("Figures", summary) + _json("Settings", cell.config)
        + _versions([summary])
    )  # fmt: skip
    footer = "<p>One run is one seed: compare several before you believe it, with dreamer-lpm compare.</p>"
    return page(name, header, "", body, footer)


def _run_words(cell: Cell, last: int) -> str:
    curiosity = cell.config.get("agent", {}).get("curiosity", "")
    steps = cell.config.get("steps", last)
    told = cell.summary and cell.summary.get("env_steps", steps)  # of a run that goes on, less than it shall have
    state = "" if told and told >= steps else f", not finished (at {last:,})"
    if told and state:
        state += f"; the figures are of step {told:,}"
    return f"Curiosity {curiosity}, seed {cell.config.get('seed', '?')}, {steps:,} env steps{state}."


def _tiles(cell: Cell) -> str:
    measures = (
        RETURN, *_of("eval_return_tv_off"), LATE_SHARE, SHARE, COVERAGE, *_of("dream_tv_share", "recon_tv_share"),
    )  # fmt: skip
    shown = [(m.name, number(v, m.percent)) for m in measures if (v := cell.value(m)) is not None]
    if cell.chance is not None:
        shown.append(("chance level of the TV share", number(cell.chance, percent=True)))
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>' for name, value in shown)
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _run_panel(
    cell: Cell, heading: str, percent: bool, wanted: Sequence[tuple[str, str, str, str | None]], last: int
) -> str:
    lines = []
    for i, (label, kind, key, arm) in enumerate(wanted):
        steps, values = series(cell.rows, kind, key, arm)
        training = kind == "episode" and key != "coverage"
        if len(steps):
            found = curve({0: (steps, values)}, smooth=training)
            lines.append(Line(f"m{i}", label, found, (steps, values) if training or found is None else None))
    if not lines:
        return ""
    chance = cell.chance if heading == "Time in front of the TV" else None
    chart = line_chart(
        lines, title=f"{heading} over env steps", last_step=last, percent=percent,
        limits=(0.0, 1.0) if percent else None, chance=chance,
    )  # fmt: skip
    names = " &nbsp; ".join(
        f'<span class="{x.css}"><span class="swatch"></span> {escape(x.label)}</span>' for x in lines
    )
    return f'<figure class="panel"><h3>{heading}</h3><p>{names}</p>{chart}</figure>'


# --- pieces -----------------------------------------------------------------------------------------------------------


def _of(*keys: str) -> tuple[Measure, ...]:
    return tuple(m for key in keys for m in MEASURES if m.key == key)


def _section(heading: str, about: str, *rows: Sequence[str]) -> str:
    """A heading and rows of panels; nothing where no row has any."""
    panels = "".join(f'<div class="panels">{"".join(row)}</div>' for row in rows if any(row))
    return f'<h2>{heading}</h2><p class="note">{about}</p>{panels}' if panels else ""


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" + ("" if n == 1 else "s")


def _interval(found: Estimate, percent: bool = False) -> str:
    if found.low is None or found.high is None:
        return number(found.value, percent)
    ends = (number(v, percent).removesuffix("\u202f%") for v in (found.low, found.high))
    return f"{number(found.value, percent)} [{', '.join(ends)}]"


def _figure(found: Estimate | None, percent: bool = False) -> str:
    if found is None:
        return "<small>–</small>"
    head, _, ends = _interval(found, percent).partition(" [")
    return f'<span class="fig">{head}' + (f" <small>[{ends}</small></span>" if ends else "</span>")


def _plain(value: float | None, percent: bool) -> str:
    return "–" if value is None else number(value, percent)


def _share(found: Verdict | None, css: str) -> str:
    if found is None:
        return "<small>–</small>"
    title = f"{_interval(found.share, percent=True)}, chance {number(found.chance, percent=True)}"
    bar = meter(found.share.value, found.share.low, found.share.high, found.chance, css=css, title=title)
    return f'<div class="share">{bar}<span>{_figure(found.share, percent=True)}</span></div>'


def _chip(found: Verdict | None) -> str:
    if found is None:
        return "<small>–</small>"
    times = found.share.low / found.chance if found.word == "captured" and found.share.low and found.chance else 0
    more = f" {times:.1f}×" if times >= 1.1 else ""
    return f'<span class="chip {found.word.replace(" ", "-")}">{CHIPS[found.word]}{more}</span>'


def _kept(found: AgainstSham | None) -> str:
    if found is None:
        return "<small>–</small>"
    if found.kept is not None:
        return _figure(found.kept, percent=True)
    difference = number(found.difference.value)
    sign = "+" if found.difference.value > 0 else ""
    return f'<small title="{escape(found.reason)}">{sign}{difference} against {escape(found.sham)}</small>'


def _heat(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "<td>·</td>"
    value = float(found["value"])
    colour = "--c2" if value >= 0.5 else "--c1"
    strength = round(2 * abs(value - 0.5) * 45)
    ends = "" if found["low"] is None else f"<small>{100 * found['low']:.0f}–{100 * found['high']:.0f}</small>"
    background = f"color-mix(in srgb, var({colour}) {strength}%, transparent)"
    return f'<td style="background: {background}">{number(value, percent=True)}{ends}</td>'


def _json(title: str, data: Any) -> str:
    return f"<details><summary>{title}</summary><pre>{escape(dumps(data, indent=2))}</pre></details>"


def _revisions(summary: Mapping[str, Any]) -> list[str]:
    """The commits that had a part in a run, as short as git itself writes them, or the package's version."""
    commits = str(summary.get("git_revision") or "").split(", ")
    known = [commit[:10] + plus + dirty for commit, plus, dirty in (c.partition("+") for c in commits) if commit]
    return known or [str(summary.get("versions", {}).get("dreamer-lpm", "unknown"))]


def _versions(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Every version that had a part; more than one of a package where runs differ."""
    found: dict[str, set[str]] = {}
    for summary in summaries:
        for name, version in {**summary.get("versions", {}), "git revision": summary.get("git_revision")}.items():
            found.setdefault(str(name), set()).add(str(version))
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(', '.join(sorted(versions)))}</td></tr>"
        for name, versions in found.items()
    )
    return (
        f'<details><summary>Versions</summary><div class="scroll"><table class="figures">{rows}</table></div></details>'
    )
