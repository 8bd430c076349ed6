"""Two agents before one TV, told by what they saw while they trained: a film, a moving picture for a page, a plot.

Everything is drawn from the steps that the agents learned from, so nothing is played again and nothing is staged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from PIL import Image, ImageDraw

from dreamer_lpm.report import plots
from dreamer_lpm.report.measures import WINDOW
from dreamer_lpm.report.strict_json import write_whole
from dreamer_lpm.report.video import (
    BACKGROUND,
    BONUS,
    BRIGHT,
    DIM,
    GRID,
    SMOOTH,
    SURFACE,
    TV,
    Colour,
    mark_tv,
    write_text,
)

# Pixels of the film. A picture is five times what the agent sees; both sizes are multiples of 16, which codecs like.
WIDTH, HEIGHT, MARGIN = 704, 624, 22
PICTURE, PICTURES_TOP = 320, 104
METER_TOP, METER = 436, 24
METER_WIDTH = PICTURE - 78  # the figure stands beside it
CHART_LEFT, CHART_TOP, CHART_WIDTH, CHART_HEIGHT = 82, 502, 532, 88
LEFT = (MARGIN, WIDTH - MARGIN - PICTURE)  # of each agent's column
COLOURS: tuple[Colour, Colour] = (TV, BONUS)

FPS = 12
CLIPS, CLIP = 5, 24  # moments of the training that are shown, and the agent steps of each
HURRY = 6  # frames from one moment to the next
CARD_SECONDS = 3


@dataclass(frozen=True)
class Life:
    """What one agent saw in all of its training, T rows in the order they came, resets among them.

    ``obs`` (T, 64, 64, 3) uint8. ``tv_on`` (T,) bool: the TV was on in this picture. ``first`` (T,) bool: a reset, so
    no step. ``step`` (T,) int, never falling: env steps behind the row. ``late_share``: TV share in [0, 1] of the last
    quarter of training. ``name`` of its curiosity, ``motto``: what that pays for, in a few words.
    Raises ValueError if lengths differ or are 0.
    """

    name: str
    motto: str
    obs: np.ndarray
    tv_on: np.ndarray
    first: np.ndarray
    step: np.ndarray
    late_share: float

    def __post_init__(self) -> None:
        lengths = {len(array) for array in (self.obs, self.tv_on, self.first, self.step)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"a life needs arrays of one length above 0, got lengths {sorted(lengths)}")

    @cached_property
    def shares(self) -> np.ndarray:
        """TV share in [0, 1] over the ``WINDOW`` env steps up to each row; NaN while there are not as many. (T,)."""
        moved = ~self.first
        steps = np.concatenate([[0], np.cumsum(moved)])
        watched = np.concatenate([[0], np.cumsum(self.tv_on & moved)])
        begin = np.searchsorted(self.step, self.step - WINDOW, side="right")
        now = np.arange(1, len(self.step) + 1)
        counted = steps[now] - steps[begin]
        share = (watched[now] - watched[begin]) / np.maximum(counted, 1)
        return np.where((self.step >= WINDOW) & (counted > 0), share, np.nan)

    def at(self, step: int) -> int:
        """The newest row when ``step`` env steps were taken."""
        return max(0, int(np.searchsorted(self.step, step, side="right")) - 1)


Pair = tuple[Life, Life]


def windows(pair: Pair, end: int) -> list[dict[str, float]]:
    """TV share of both in each ``WINDOW`` of ``end`` env steps, one row a window, keyed by the agents' names."""
    rows = []
    for stop in range(WINDOW, end + 1, WINDOW):
        shares = {life.name: round(float(life.shares[life.at(stop)]), 4) for life in pair}
        rows.append({"from_step": stop - WINDOW, "to_step": stop, **shares})
    return rows


class Film:
    """Draws the frames: clips of several moments, time flying between them, and a card with how it ended."""

    def __init__(self, pair: Pair, *, chance: float, end: int, title: str) -> None:
        self._pair, self._chance, self._end, self._title = pair, chance, end, title
        self._blank = self._static(curves=False)
        self._drawn = self._static(curves=True)

    def frames(self) -> Iterator[np.ndarray]:
        """Every frame but the card: (624, 704, 3) uint8."""
        for step, hurried in schedule(self._pair[0], self._end):
            yield self.frame(step, hurried=hurried)

    def frame(self, step: int, *, hurried: bool = False) -> np.ndarray:
        """Both agents when they had taken ``step`` env steps. ``hurried``: time flies."""
        image = self._at(step)
        draw = ImageDraw.Draw(image)
        for i in range(2 if hurried else 1):
            x = WIDTH - MARGIN - 196 - 13 * i
            draw.polygon([(x, 17), (x, 31), (x + 11, 24)], fill=BRIGHT if hurried else DIM)
        for left, life in zip(LEFT, self._pair, strict=True):
            row = life.at(step)
            picture = Image.fromarray(life.obs[row]).resize((PICTURE, PICTURE), Image.Resampling.NEAREST)
            image.paste(picture, (left, PICTURES_TOP))
            if life.tv_on[row]:
                mark_tv(draw, left, PICTURES_TOP, PICTURE)
        return np.asarray(image)

    def card(self) -> np.ndarray:
        """How it ended: the TV share of the last quarter of training, over the last pictures."""
        image = self._at(self._end)
        draw = ImageDraw.Draw(image)
        ground = Image.new("RGB", (PICTURE, PICTURE), BACKGROUND)
        for left, colour, life in zip(LEFT, COLOURS, self._pair, strict=True):
            last = Image.fromarray(life.obs[-1]).resize((PICTURE, PICTURE), Image.Resampling.NEAREST)
            image.paste(Image.blend(last, ground, 0.88), (left, PICTURES_TOP))
            middle = left + PICTURE // 2
            write_text(draw, (middle, PICTURES_TOP + 128), percent(life.late_share), 104, colour, "mm")
            write_text(draw, (middle, PICTURES_TOP + 206), "of its time at the TV", 26, BRIGHT, "mm")
            written = f"last quarter of training; chance: {percent(self._chance)}"
            write_text(draw, (middle, PICTURES_TOP + 242), written, 17, DIM, "mm")
        return np.asarray(image)

    def _at(self, step: int) -> Image.Image:
        """Everything but the pictures."""
        image = self._blank.copy()
        x = CHART_LEFT + round(CHART_WIDTH * step / self._end)
        top = CHART_TOP - 10
        image.paste(self._drawn.crop((0, top, x + 1, HEIGHT)), (0, top))
        draw = ImageDraw.Draw(image)
        draw.line((x, CHART_TOP, x, CHART_TOP + CHART_HEIGHT), fill=BRIGHT)
        write_text(draw, (WIDTH - MARGIN, 24), f"env step {step:,}", 20, BRIGHT, "rm")
        for left, colour, life in zip(LEFT, COLOURS, self._pair, strict=True):
            share = life.shares[life.at(step)]
            if np.isfinite(share):
                self._meter(draw, left, colour, float(share))
                height = CHART_TOP + CHART_HEIGHT - share * CHART_HEIGHT
                draw.ellipse((x - 5, height - 5, x + 5, height + 5), fill=colour, outline=BACKGROUND)
        return image

    def _meter(self, draw: ImageDraw.ImageDraw, left: int, colour: Colour, share: float) -> None:
        if share > 0:
            right = left + round(share * (METER_WIDTH - 1))
            draw.rectangle((left, METER_TOP, right, METER_TOP + METER - 1), fill=colour)
        write_text(draw, (left + PICTURE, METER_TOP + METER // 2), percent(share), 26, colour, "rm")
        tick = left + round(self._chance * METER_WIDTH)
        draw.line((tick, METER_TOP - 4, tick, METER_TOP + METER + 3), fill=BRIGHT, width=2)

    def _static(self, *, curves: bool) -> Image.Image:
        image = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
        draw = ImageDraw.Draw(image)
        write_text(draw, (MARGIN, 24), self._title, 20, BRIGHT, "lm")
        for left, colour, life in zip(LEFT, COLOURS, self._pair, strict=True):
            write_text(draw, (left, 64), life.name, 22, colour, "lm")
            write_text(draw, (left, 88), life.motto, 16, DIM, "lm")
            right = left + METER_WIDTH - 1
            draw.rectangle((left, METER_TOP, right, METER_TOP + METER - 1), fill=SURFACE)
            tick = left + round(self._chance * METER_WIDTH)
            draw.line((tick, METER_TOP - 4, tick, METER_TOP + METER + 3), fill=BRIGHT, width=2)
            write_text(draw, (tick, METER_TOP + METER + 15), "chance", 16, DIM, "mm")
            write_text(draw, (left + PICTURE, METER_TOP + METER + 15), "time at the TV", 16, DIM, "rm")
        for share in (0.0, 1.0):
            height = CHART_TOP + round((1 - share) * CHART_HEIGHT)
            write_text(draw, (CHART_LEFT - 8, height), percent(share), 16, DIM, "rm")
        height = CHART_TOP + round((1 - self._chance) * CHART_HEIGHT)
        write_text(draw, (CHART_LEFT + CHART_WIDTH + 12, height), "chance", 16, DIM, "lm")
        for step in range(0, self._end + 1, 1000):
            x = CHART_LEFT + round(CHART_WIDTH * step / self._end)
            write_text(draw, (x, CHART_TOP + CHART_HEIGHT + 16), f"{step:,}", 15, DIM, "mm")
        image.paste(self._chart(curves=curves), (CHART_LEFT, CHART_TOP))
        return image

    def _chart(self, *, curves: bool) -> Image.Image:
        width, height = CHART_WIDTH * SMOOTH, CHART_HEIGHT * SMOOTH
        image = Image.new("RGB", (width, height), SURFACE)
        draw = ImageDraw.Draw(image)
        level = (1 - self._chance) * height
        for x in range(0, width, 10 * SMOOTH):
            draw.line((x, level, x + 5 * SMOOTH, level), fill=GRID, width=2 * SMOOTH)
        for colour, life in zip(COLOURS, self._pair, strict=True) if curves else ():
            known = np.flatnonzero(np.isfinite(life.shares))
            across = life.step[known] / self._end * width
            up = np.clip((1 - life.shares[known]) * height, 2 * SMOOTH, height - 2 * SMOOTH)
            for begin, end in pairwise(zip(across, up, strict=True)):
                draw.line((*begin, *end), fill=colour, width=3 * SMOOTH)
        return image.resize((CHART_WIDTH, CHART_HEIGHT), Image.Resampling.BOX)


def schedule(life: Life, end: int) -> list[tuple[int, bool]]:
    """The env steps to show, in order, and whether time flies there: ``CLIPS`` clips, evenly spread, the last at the
    end.
    """
    shown: list[tuple[int, bool]] = []
    newest = -1  # row
    for clip in range(CLIPS):
        last = life.at(end * (clip + 1) // CLIPS)
        begin = max(newest + 1, last - CLIP + 1)
        if shown and begin - newest > HURRY:
            between = np.linspace(life.step[newest], life.step[begin], HURRY + 2)[1:-1]
            shown += [(int(step), True) for step in between]
        shown += [(int(life.step[row]), False) for row in range(begin, last + 1)]
        newest = last
    return shown


def percent(share: float) -> str:
    """``0.254`` -> "25 %"."""
    return f"{share:.0%}".replace("%", " %")


def write_gif(path: Path, frames: Sequence[np.ndarray], *, hold: float) -> Path:
    """Write a moving picture that plays for ever, its first frame held for ``hold`` seconds. One palette for all.

    ``frames``: (height, width, 3) uint8 of one size. Raises ValueError without frames.
    """
    if not frames:
        raise ValueError("a moving picture needs at least one frame")
    # Whole frames: what is small, such as a letter, would vanish from a shrunken sample.
    some = np.concatenate(frames[:: max(1, len(frames) // 12)])
    palette = Image.fromarray(some).quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * hold)] + [1000 // FPS] * (len(images) - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"save_all": True, "append_images": images[1:], "duration": durations, "loop": 0}
    write_whole(path, lambda file: images[0].save(file, "GIF", **how))
    return path


def plot_story(path: Path, pair: Pair, *, chance: float, end: int, random_until: int) -> Path:
    """Draw the TV share of both over their training. ``random_until``: the env step at which they began to choose."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvspan(0, random_until, color=plots.GREY, alpha=0.12, lw=0)
    axes.text(random_until / 2, 1.0, "random\nactions", color=plots.GREY, ha="center", va="top", fontsize=10)
    axes.axhline(chance, color=plots.GREY, ls="--", lw=1.4)
    axes.text(end, chance + 0.02, f"chance {percent(chance)}", color=plots.GREY, ha="right", va="bottom", fontsize=10)
    heights = _apart(pair[0].late_share, pair[1].late_share)
    for life, colour, height in zip(pair, (plots.ORANGE, plots.BLUE), heights, strict=True):
        axes.plot(life.step, life.shares, color=colour, lw=2.4)
        words = f"{life.name}\n{percent(life.late_share)} in the last quarter"
        axes.annotate(
            words, (end, height), xytext=(8, 0), textcoords="offset points", color=colour, fontsize=11, va="center",
            fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(0, end)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("env steps")
    axes.set_ylabel(f"time at the TV, last {WINDOW} env steps")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))
    return path


def _apart(first: float, second: float) -> tuple[float, float]:
    """Heights for two labels of these shares that do not overlap."""
    room = 0.14
    if abs(first - second) >= room:
        return first, second
    middle, half = (first + second) / 2, room / 2 if first >= second else -room / 2
    return middle + half, middle - half
