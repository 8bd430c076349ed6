"""The story of two agents, drawn from lives made up here."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dreamer_lpm.report import story
from dreamer_lpm.report.measures import WINDOW
from dreamer_lpm.report.story import Film, Life, schedule, windows
from dreamer_lpm.report.video import SURFACE, TV

CHANCE = 0.25
END = 2_000
EPISODE = 101  # rows: a reset and 100 steps


def make_life(name: str, late: float, end: int = END) -> Life:
    """Action repeat 2. The TV is on by chance in the first half, and in a share of ``late`` after that."""
    first = np.arange(end // 2 + math.ceil(end / 2 / (EPISODE - 1))) % EPISODE == 0
    step = 2 * np.cumsum(~first)
    rng = np.random.default_rng(7)
    tv_on = (rng.random(len(first)) < np.where(step <= end / 2, CHANCE, late)) & ~first
    obs = np.full((len(first), 64, 64, 3), 255, np.uint8)
    obs[tv_on] = rng.integers(0, 256, (int(tv_on.sum()), 64, 64, 3), np.uint8)
    return Life(name, f"what {name} is paid for", obs, tv_on, first, step, late)


STARES, LEAVES = make_life("stares", 0.95), make_life("leaves", 0.02)
FILM = Film((STARES, LEAVES), chance=CHANCE, end=END, title="Two agents")


def meter(frame: np.ndarray, side: int) -> np.ndarray:
    """The pixels along a meter, below the chance line's ends."""
    left = story.LEFT[side]
    return frame[story.METER_TOP + 2, left : left + story.METER_WIDTH]


def share_by_hand(life: Life, step: int) -> float:
    """As defined: of the steps in the window, those with the TV on."""
    inside = (life.step > step - WINDOW) & (life.step <= step) & ~life.first
    return float(life.tv_on[inside].mean())


def test_shares_are_those_of_the_window() -> None:
    for row in (300, 611, 777, len(STARES.step) - 1):
        assert STARES.shares[row] == pytest.approx(share_by_hand(STARES, int(STARES.step[row])))
    assert np.isnan(STARES.shares[STARES.step < WINDOW]).all()
    assert np.isfinite(STARES.shares[STARES.step >= WINDOW]).all()


def test_a_picture_of_the_tv_in_a_reset_is_no_step() -> None:
    watched = replace(LEAVES, tv_on=LEAVES.tv_on | LEAVES.first)
    assert np.array_equal(watched.shares, LEAVES.shares, equal_nan=True)


def test_windows_are_whole_and_side_by_side() -> None:
    rows = windows((STARES, LEAVES), END + WINDOW // 2)
    assert [(r["from_step"], r["to_step"]) for r in rows] == [(0, 500), (500, 1000), (1000, 1500), (1500, 2000)]
    assert rows[2]["stares"] == pytest.approx(share_by_hand(STARES, 1500), abs=1e-4)
    assert rows[2]["leaves"] == pytest.approx(share_by_hand(LEAVES, 1500), abs=1e-4)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one length"):
        replace(STARES, tv_on=STARES.tv_on[:-1])


def test_the_schedule_visits_every_fifth_of_the_training() -> None:
    shown = schedule(STARES, END)
    steps = [step for step, _ in shown]
    assert steps == sorted(steps)
    assert steps[-1] == END
    clips = [step for step, hurried in shown if not hurried]
    assert len(clips) == story.CLIPS * story.CLIP
    for i in range(story.CLIPS):
        clip = clips[i * story.CLIP : (i + 1) * story.CLIP]
        assert clip[-1] == END * (i + 1) // story.CLIPS
        assert set(np.diff(clip)) <= {0, 2}  # row by row, a reset among them or not
    assert sum(hurried for _, hurried in shown) == (story.CLIPS - 1) * story.HURRY


def test_a_short_life_is_shown_from_its_beginning() -> None:
    short = make_life("short", 0.5, end=60)
    steps = [step for step, _ in schedule(short, 60)]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 60)
    film = Film((short, short), chance=CHANCE, end=60, title="")
    assert len(list(film.frames())) == len(steps)
    assert (meter(film.frame(60), 0) == SURFACE).all(-1).mean() > 0.95  # no share yet, only the mark of chance


def test_pictures_are_crisp_and_tv_frames_are_marked() -> None:
    rows = [row for row in range(len(STARES.step)) if STARES.tv_on[row] != LEAVES.tv_on[row]]
    step = int(STARES.step[rows[-1]])
    frame = FILM.frame(step)
    assert frame.shape == (story.HEIGHT, story.WIDTH, 3)
    for life, left in zip((STARES, LEAVES), story.LEFT, strict=True):
        scale = story.PICTURE // 64
        centres = frame[story.PICTURES_TOP + scale // 2 :, left + scale // 2 :][::scale, ::scale][:64, :64]
        row = life.at(step)
        assert np.array_equal(centres[8:], life.obs[row][8:])  # below the mark
        marked = tuple(frame[story.PICTURES_TOP + 100, left - 2]) == TV
        assert marked == life.tv_on[row]


def test_meters_are_as_long_as_the_share_and_chance_is_marked() -> None:
    frame = FILM.frame(END)
    for side, life in enumerate((STARES, LEAVES)):
        filled = (meter(frame, side) == story.COLOURS[side]).all(-1).sum()
        assert filled / story.METER_WIDTH == pytest.approx(life.shares[-1], abs=0.02)
        tick = story.LEFT[side] + round(CHANCE * story.METER_WIDTH)
        assert frame[story.METER_TOP - 3, tick].min() > 200


def test_the_curves_are_drawn_up_to_now() -> None:
    def coloured(frame: np.ndarray) -> np.ndarray:
        chart = frame[story.CHART_TOP : story.CHART_TOP + story.CHART_HEIGHT, story.CHART_LEFT :][
            :, : story.CHART_WIDTH
        ]
        return np.flatnonzero((np.abs(chart.astype(int) - story.COLOURS[1]).max(-1) < 12).any(0))

    half, whole = (coloured(FILM.frame(step)).max() / story.CHART_WIDTH for step in (END // 2, END))
    assert half == pytest.approx(0.5, abs=0.02)
    assert whole == pytest.approx(1.0, abs=0.02)


def test_the_card_says_how_each_ended() -> None:
    card = FILM.card()
    other = Film((replace(STARES, late_share=0.02), LEAVES), chance=CHANCE, end=END, title="Two agents").card()
    left, right = slice(0, story.WIDTH // 2), slice(story.WIDTH // 2, None)
    assert (card[:, left] != other[:, left]).any()
    assert np.array_equal(card[:, right], other[:, right])
    assert (card != FILM.frame(END)).any()


def test_percent() -> None:
    assert [story.percent(x) for x in (0.254, 1.0, 0.0)] == ["25 %", "100 %", "0 %"]


def test_gif_plays_for_ever_and_holds_its_first_frame(tmp_path: Path) -> None:
    frames = [FILM.card(), *(FILM.frame(step) for step in (END // 2, END - 200, END))]
    path = story.write_gif(tmp_path / "new" / "story.gif", frames, hold=2.5)
    assert [p.name for p in path.parent.iterdir()] == ["story.gif"]
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 2500
        shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)])
    error = np.abs(np.stack(frames).astype(int) - shown).mean((1, 2, 3))
    assert error.max() < 12  # of 255, noise among it
    assert np.abs(shown[1][64, :].astype(int) - frames[1][64, :]).mean() < 4  # a line of text


def test_gif_needs_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        story.write_gif(tmp_path / "story.gif", [], hold=1)


@pytest.mark.parametrize("pair", [(STARES, LEAVES), (LEAVES, LEAVES), (make_life("short", 0.5, end=60),) * 2])
def test_plot(pair: tuple[Life, Life], tmp_path: Path) -> None:
    end = int(pair[0].step[-1])
    path = story.plot_story(tmp_path / "story.png", pair, chance=CHANCE, end=end, random_until=end // 4)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for colour in ((0xEA, 0x58, 0x0C), (0x25, 0x63, 0xEB)):  # at least their labels
        assert (np.abs(picture - colour).max(-1) < 8).sum() > 300


def test_labels_of_like_shares_do_not_overlap() -> None:
    assert story._apart(0.9, 0.1) == (0.9, 0.1)
    for first, second in ((0.25, 0.25), (0.3, 0.22), (0.22, 0.3)):
        high, low = story._apart(first, second)
        assert abs(high - low) == pytest.approx(0.14)
        assert (high >= low) == (first >= second)
