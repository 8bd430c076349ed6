"""Videos of an episode: what the agent saw, what its world model made of it, and what it had expected to see.

Pillow draws; ffmpeg, which comes with ``imageio-ffmpeg``, encodes H.264 that every browser plays.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamer_lpm.report.strict_json import partial_of
from dreamer_lpm.types import UserError

# Pixels. Three panels and four margins make the width. Codecs like sizes that are multiples of 16.
WIDTH, MARGIN, PANEL = 640, 16, 192
HEADER, CAPTION = 40, 42
LABEL, SCALE = 112, 48  # to the left and to the right of a strip's plot
PLOT = WIDTH - 2 * MARGIN - LABEL - SCALE  # its width
SMOOTH = 4  # strips are drawn this many times larger and then shrunk, which smooths their lines

Colour = tuple[int, int, int]
BACKGROUND, SURFACE, GRID = (16, 18, 24), (30, 34, 44), (74, 82, 100)
BRIGHT, DIM = (238, 241, 246), (160, 168, 184)
TV, BONUS, REWARD = (255, 138, 76), (94, 200, 255), (134, 224, 140)


@dataclass(frozen=True)
class EpisodeTrace:
    """One episode as arrays of one length T; index t holds what came with frame t, index 0 the reset.

    ``obs``, ``reconstruction``, ``prediction``: (T, 64, 64, 3) uint8. ``reconstruction`` decodes the posterior, which
    has seen frame t; ``prediction`` decodes the prior, which has not.
    ``reward`` (T,) float: the task's own. ``tv_on`` (T,) bool, None without a TV. ``bonus`` (T,) float, None without
    curiosity. ``title`` stands at the top of the video. Raises ValueError if lengths differ or are 0.
    """

    obs: np.ndarray
    reward: np.ndarray
    reconstruction: np.ndarray
    prediction: np.ndarray
    tv_on: np.ndarray | None = None
    bonus: np.ndarray | None = None
    title: str = ""

    def __post_init__(self) -> None:
        arrays = (self.obs, self.reward, self.reconstruction, self.prediction, self.tv_on, self.bonus)
        lengths = {len(array) for array in arrays if array is not None}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"an episode needs arrays of one length above 0, got lengths {sorted(lengths)}")


def episode_video(path: Path, trace: EpisodeTrace, watch: Callable[[], None] = lambda: None) -> Path:
    """Write the whole episode as an annotated MP4 and return its path. Raises as ``write_video`` does.

    ``watch`` is called before each frame, and may raise to end it.
    """
    board = Storyboard(trace)

    def frames() -> Iterator[np.ndarray]:
        for t in range(len(trace.obs)):
            watch()
            yield board.frame(t)

    return write_video(path, frames())


@dataclass(frozen=True)
class _Strip:
    """A quantity over the episode, drawn under the pictures."""

    label: str
    values: np.ndarray  # (T,)
    colour: Colour
    low: float
    high: float
    height: int = 52
    blocks: bool = False  # on/off, shown as filled blocks

    def now(self, t: int) -> str:
        return ("on" if self.values[t] else "off") if self.blocks else f"{self.values[t]:+.2f}"


class Storyboard:
    """Draws the frames of one episode's video. Strips keep their scale from the first frame to the last."""

    def __init__(self, trace: EpisodeTrace) -> None:
        self._trace = trace
        self._returns = np.cumsum(trace.reward)
        self._strips = []
        top = HEADER + CAPTION + PANEL + MARGIN
        for strip in _strips(trace):
            self._strips.append((top, strip))
            top += strip.height + 10
        height = math.ceil((top + 4) / 16) * 16
        # What never changes is drawn once: without the curves, and with them.
        self._blank = self._static(height, curves=False)
        self._drawn = self._static(height, curves=True)

    def frame(self, t: int) -> np.ndarray:
        """Draw frame ``t`` of the video: (height, 640, 3) uint8, the height a multiple of 16."""
        trace = self._trace
        image = self._blank.copy()
        playhead = MARGIN + LABEL + round(t * (PLOT - 1) / max(len(trace.obs) - 1, 1))
        below = HEADER + CAPTION + PANEL + MARGIN
        image.paste(self._drawn.crop((0, below, playhead + 1, image.height)), (0, below))

        draw = ImageDraw.Draw(image)
        counts = f"step {t} of {len(trace.obs) - 1}   return {self._returns[t]:,.1f}"
        write_text(draw, (WIDTH - MARGIN, HEADER // 2), counts, 14, DIM, "rm")
        for column, pictures in enumerate((trace.obs, trace.reconstruction, trace.prediction)):
            picture = Image.fromarray(pictures[t]).resize((PANEL, PANEL), Image.Resampling.NEAREST)
            image.paste(picture, _corner(column))
        if trace.tv_on is not None and trace.tv_on[t]:
            left, top = _corner(0)
            mark_tv(draw, left, top, PANEL)
        for top, strip in self._strips:
            draw.line((playhead, top, playhead, top + strip.height - 1), fill=BRIGHT)
            if not strip.blocks:
                write_text(draw, (MARGIN, top + strip.height // 2 + 9), strip.now(t), 14, strip.colour, "lm")
        return np.asarray(image)

    def _static(self, height: int, *, curves: bool) -> Image.Image:
        image = Image.new("RGB", (WIDTH, height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        room = WIDTH - 2 * MARGIN - 210  # beside the counts
        size = next((size for size in (17, 15, 13) if font(size).getbbox(self._trace.title)[2] <= room), 11)
        write_text(draw, (MARGIN, HEADER // 2), self._trace.title, size, BRIGHT, "lm")
        captions = (
            ("what it saw", "the real picture"),
            ("what it reconstructed", "from memory and this picture"),
            ("what it expected", "from memory, before looking"),
        )
        for column, (title, subtitle) in enumerate(captions):
            left, top = _corner(column)
            write_text(draw, (left, top - 31), title, 15, BRIGHT, "lm")
            write_text(draw, (left, top - 13), subtitle, 12, DIM, "lm")
        for top, strip in self._strips:
            middle = top + strip.height // 2
            write_text(draw, (MARGIN, middle if strip.blocks else middle - 9), strip.label, 13, DIM, "lm")
            image.paste(_plot(strip, curves=curves), (MARGIN + LABEL, top))
            if not strip.blocks:
                right = WIDTH - MARGIN - SCALE + 6
                write_text(draw, (right, top + 6), _short(strip.high), 11, DIM, "lm")
                write_text(draw, (right, top + strip.height - 7), _short(strip.low), 11, DIM, "lm")
        return image


def _strips(trace: EpisodeTrace) -> list[_Strip]:
    strips = []
    if trace.tv_on is not None:
        strips.append(_Strip("Noisy TV", np.asarray(trace.tv_on, bool), TV, 0.0, 1.0, height=20, blocks=True))
    if trace.bonus is not None:
        strips.append(_Strip("curiosity bonus", trace.bonus, BONUS, *_limits(trace.bonus)))
    strips.append(_Strip("task reward", trace.reward, REWARD, *_limits(trace.reward)))
    return strips


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value, zero among them: a bonus is judged by its sign."""
    finite = values[np.isfinite(values)]
    low, high = min(0.0, float(finite.min(initial=0.0))), max(0.0, float(finite.max(initial=0.0)))
    return (low, high) if high > low else (-1.0, 1.0)


def _plot(strip: _Strip, *, curves: bool) -> Image.Image:
    """Draw a strip's plot, ``PLOT`` wide; without ``curves`` only its ground and its zero line."""
    width, height = PLOT * SMOOTH, strip.height * SMOOTH
    image = Image.new("RGB", (width, height), SURFACE)
    draw = ImageDraw.Draw(image)
    steps = np.linspace(0, width - 1, max(len(strip.values), 2))[: len(strip.values)]
    if strip.blocks:
        for start, on in zip(steps, strip.values, strict=True):
            if on and curves:
                draw.rectangle((start, 0, start + width / max(len(steps) - 1, 1), height), fill=strip.colour)
    else:
        inset = 5 * SMOOTH  # room for the line's own width
        share = (np.asarray(strip.values, float) - strip.low) / (strip.high - strip.low)
        heights = height - inset - share * (height - 2 * inset)
        zero = height - inset + strip.low / (strip.high - strip.low) * (height - 2 * inset)
        draw.line((0, zero, width, zero), fill=GRID, width=SMOOTH)
        for begin, end in pairwise(zip(steps, heights, strict=True)) if curves else ():
            if math.isfinite(begin[1]) and math.isfinite(end[1]):  # a gap where there is no value
                draw.line((*begin, *end), fill=strip.colour, width=2 * SMOOTH)
    return image.resize((PLOT, strip.height), Image.Resampling.BOX)


def _corner(column: int) -> tuple[int, int]:
    """Left and top pixel of a panel."""
    return MARGIN + column * (PANEL + MARGIN), HEADER + CAPTION


def mark_tv(draw: ImageDraw.ImageDraw, left: int, top: int, size: int) -> None:
    """Mark a square picture of ``size`` pixels as one that the TV shows."""
    draw.rectangle((left - 3, top - 3, left + size + 2, top + size + 2), outline=TV, width=3)
    draw.rounded_rectangle((left + 8, top + 8, left + 64, top + 28), 4, fill=TV)
    write_text(draw, (left + 36, top + 18), "TV ON", 13, BACKGROUND, "mm")


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own at ``size`` pixels: the same on every machine."""
    return ImageFont.load_default(size)


def write_text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: Colour, anchor: str
) -> None:
    """Write ``text`` with its ``anchor`` (Pillow's two letters) at ``at``."""
    draw.text(at, text, font=font(size), fill=colour, anchor=anchor, align="center")


def _short(value: float) -> str:
    """Three significant digits, plainly: ``-16.27`` -> "-16.3"."""
    return f"{value:.3g}"


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int = 15) -> Path:
    """Encode ``frames``, each (height, width, 3) uint8 of one even size, as H.264 (yuv420p, fast start) at ``path``.

    A reader finds no file or the whole video, never half of one. Raises ValueError without frames or for a frame of
    another form, UserError if ``path`` is no file or there is no ffmpeg for this machine, OSError if ffmpeg fails (a
    full disk).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        _encode(partial, frames, fps)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _encode(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    source = iter(frames)
    first = next(source, None)
    if first is None:
        raise ValueError("a video needs at least one frame")
    if first.ndim != 3 or first.shape[0] % 2 or first.shape[1] % 2 or first.shape[2] != 3:
        raise ValueError(f"a frame needs an even height, an even width and 3 colours, got shape {first.shape}")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _command(path, first.shape[1], first.shape[0], fps),
            stdin=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the training run, which then saves; its video must not break
        )
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                for frame in chain([first], source):
                    if frame.shape != first.shape or frame.dtype != np.uint8:
                        raise ValueError(f"every frame must be uint8 {first.shape}, got {frame.dtype} {frame.shape}")
                    pipe.write(frame.tobytes())
        except BrokenPipeError:
            process.wait()  # ffmpeg gave up; its own words, below, say why
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.wait() != 0:
            log.seek(0)
            raise OSError(f"ffmpeg could not write {path}: {log.read().decode(errors='replace').strip()}")


def find_ffmpeg() -> str:
    """Where it is. Raises UserError where there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise UserError("No ffmpeg for this machine: install ffmpeg, or set IMAGEIO_FFMPEG_EXE to its path.") from error


def _command(path: Path, width: int, height: int, fps: int) -> list[str]:
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i -"
    # yuv420p is the one pixel format that all browsers play; crf 18 keeps the noise of a TV frame crisp.
    coded = "-an -c:v libx264 -preset medium -crf 18 -threads 1 -pix_fmt yuv420p -movflags +faststart -f mp4"
    return [
        find_ffmpeg(),
        "-y",
        "-loglevel",
        "error",
        *raw.split(),
        *coded.split(),
        f"file:{path}",
    ]  # a colon in it is no protocol's
