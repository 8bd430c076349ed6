"""Videos: right pictures in the right panels, strips that tell the truth, files that browsers play."""

import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from dreamer_lpm.report.html import _poster
from dreamer_lpm.report.video import (
    BACKGROUND,
    BONUS,
    CAPTION,
    HEADER,
    LABEL,
    MARGIN,
    PANEL,
    REWARD,
    TV,
    WIDTH,
    EpisodeTrace,
    Storyboard,
    episode_video,
    write_video,
)
from dreamer_lpm.types import UserError

TOP = HEADER + CAPTION
STRIPS = TOP + PANEL + MARGIN
T = 21


def make_trace() -> EpisodeTrace:
    rng = np.random.default_rng(0)
    obs = rng.integers(0, 256, (T, 64, 64, 3), dtype=np.uint8)
    steps = np.arange(T)
    return EpisodeTrace(
        obs=obs,
        reward=-steps.astype(float),
        reconstruction=255 - obs,
        prediction=np.roll(obs, 1, axis=0),
        tv_on=steps >= 10,
        bonus=np.sin(steps),
        title="Pendulum-v1 in front of a Noisy TV",
    )


def panel(frame: np.ndarray, column: int) -> np.ndarray:
    """The 64x64 picture in a panel: one pixel of each 3x3 block."""
    left = MARGIN + column * (PANEL + MARGIN)
    return frame[TOP + 1 : TOP + PANEL : 3, left + 1 : left + PANEL : 3]


def has(region: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((region == np.array(colour)).all(axis=-1).any())


def decode(path: Path, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
    """ffmpeg's description of a video, and its frames."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    return done.stderr.decode(errors="replace"), np.frombuffer(done.stdout, np.uint8).reshape(-1, *shape)


def test_frame_is_a_size_that_codecs_like() -> None:
    frame = Storyboard(make_trace()).frame(0)
    assert frame.dtype == np.uint8
    assert frame.shape[1:] == (WIDTH, 3)
    assert frame.shape[0] % 16 == WIDTH % 16 == 0


def test_each_panel_shows_its_own_picture_of_the_moment() -> None:
    trace = make_trace()
    frame = Storyboard(trace).frame(4)  # TV off: nothing lies over the pictures
    for column, pictures in enumerate((trace.obs, trace.reconstruction, trace.prediction)):
        np.testing.assert_array_equal(panel(frame, column), pictures[4])


def test_tv_is_marked_exactly_when_it_is_on() -> None:
    board = Storyboard(make_trace())
    edge = (slice(TOP - 3, TOP), slice(MARGIN, MARGIN + PANEL))
    assert not has(board.frame(9)[edge], TV)
    assert has(board.frame(10)[edge], TV)


def test_strips_show_the_past_and_not_the_future() -> None:
    board = Storyboard(make_trace())
    plot = slice(MARGIN + LABEL, None)
    start, end = board.frame(0)[STRIPS:, plot], board.frame(T - 1)[STRIPS:, plot]
    for colour in (TV, BONUS, REWARD):
        assert not has(start, colour)
        assert has(end, colour)
    middle = board.frame(T // 2)[STRIPS:, plot]
    columns = np.flatnonzero((middle == np.array(REWARD)).all(axis=-1).any(axis=0))
    width = end.shape[1] - MARGIN
    assert 0.3 * width < columns.max() < 0.6 * width


def test_tv_strip_is_lit_where_the_tv_was_on() -> None:
    strip = Storyboard(make_trace()).frame(T - 1)[STRIPS + 10, MARGIN + LABEL : WIDTH - MARGIN]
    lit = np.flatnonzero((strip == np.array(TV)).all(axis=-1))
    first_on = 10 / (T - 1) * 448  # the plot is 448 pixels wide
    assert lit.min() == pytest.approx(first_on, abs=2)
    assert not has(strip[: int(first_on) - 1], TV)


def test_falling_reward_is_drawn_falling() -> None:
    frame = Storyboard(make_trace()).frame(T - 1)
    rows, columns = np.nonzero((frame[STRIPS:, MARGIN + LABEL :] == np.array(REWARD)).all(axis=-1))
    assert np.corrcoef(rows, columns)[0, 1] > 0.9  # rows count downwards


def test_runs_without_tv_or_bonus() -> None:
    trace = make_trace()
    bare = replace(trace, tv_on=None, bonus=None)
    frame, full = Storyboard(bare).frame(12), Storyboard(trace).frame(12)
    assert frame.shape[0] < full.shape[0]  # no empty strips
    assert frame.shape[0] % 16 == 0
    assert not has(frame, TV)


def test_title_and_counts_never_run_into_each_other() -> None:
    trace = replace(make_trace(), title="Organisation/VeryLongEnvironmentName-v12 in front of a Noisy TV")
    header = Storyboard(trace).frame(T - 1)[:HEADER]
    filled = (header != np.array(BACKGROUND)).any(axis=(0, 2))
    counts = Storyboard(replace(trace, title="")).frame(T - 1)[:HEADER]
    first_count = np.flatnonzero((counts != np.array(BACKGROUND)).any(axis=(0, 2))).min()
    assert not filled[first_count - 8 : first_count].any()


@pytest.mark.parametrize("values", [np.zeros(T), np.full(T, np.nan), np.full(T, 5.0), np.r_[np.inf, np.ones(T - 1)]])
def test_flat_and_broken_curves_are_drawn_without_complaint(values: np.ndarray) -> None:
    plots = Storyboard(replace(make_trace(), bonus=values)).frame(T - 1)[STRIPS:, MARGIN + LABEL :]
    assert has(plots, BONUS) == bool(np.isfinite(values[1:]).all())


def test_an_episode_of_one_frame() -> None:
    blank = np.zeros((1, 64, 64, 3), np.uint8)
    trace = EpisodeTrace(blank, np.zeros(1), blank, blank, tv_on=np.ones(1, bool))
    assert has(Storyboard(trace).frame(0), TV)


def test_arrays_of_unequal_length_are_refused() -> None:
    trace = make_trace()
    with pytest.raises(ValueError, match=r"lengths \[20, 21\]"):
        replace(trace, reward=trace.reward[1:])
    with pytest.raises(ValueError, match="above 0"):
        EpisodeTrace(trace.obs[:0], trace.reward[:0], trace.obs[:0], trace.obs[:0])


def test_video_is_h264_yuv420p_with_its_index_in_front(tmp_path: Path) -> None:
    trace = make_trace()
    path = episode_video(tmp_path / "videos" / "a.mp4", trace)
    assert list(path.parent.iterdir()) == [path]
    drawn = Storyboard(trace).frame(5)
    description, frames = decode(path, drawn.shape)
    assert re.search(r"Video: h264 .*yuv420p.*15 fps", description)
    assert len(frames) == T
    outside = (slice(STRIPS, None), slice(None))  # white noise in the panels is beyond any codec
    assert np.abs(frames[5][outside].astype(int) - drawn[outside]).mean() < 4
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # fast start: it plays while it loads


def test_a_colon_in_a_path_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_video(Path("grid:1") / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 60)
    assert path.stat().st_size > 0
    assert _poster(path).startswith(' poster="data:image/jpeg;base64,')


def test_a_failure_midway_keeps_the_old_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    frame = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="every frame must be"):
        write_video(path, [frame, frame[:16]])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("frames", [[], [np.zeros((31, 32, 3), np.uint8)], [np.zeros((32, 32), np.uint8)]])
def test_frames_that_make_no_video_are_refused(tmp_path: Path, frames: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="frame"):
        write_video(tmp_path / "a.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_ffmpegs_own_words_reach_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\necho 'No space left on device' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(broken))
    frames = [np.zeros((512, 512, 3), np.uint8)] * 5  # more than a pipe holds
    with pytest.raises(OSError, match="No space left on device"):
        write_video(tmp_path / "a.mp4", frames)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


def test_no_ffmpeg_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise RuntimeError("none")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    with pytest.raises(UserError, match="install ffmpeg"):
        write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_for_the_run_does_not_break_the_video(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from dreamer_lpm.report.video import write_video\n"
        "signal.signal(signal.SIGINT, lambda *_: None)  # as a run that saves before it leaves\n"
        "def frames():\n"
        "    for t in range(40):\n"
        "        if t == 20: os.killpg(0, signal.SIGINT)\n"
        "        yield np.full((64, 64, 3), t, np.uint8)\n"
        "write_video(Path(sys.argv[1]), frames())\n"
    )
    path = tmp_path / "a.mp4"
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, start_new_session=True, timeout=60, check=False)
    assert done.returncode == 0, signal.Signals(-done.returncode) if done.returncode < 0 else done.returncode
    assert len(decode(path, (64, 64, 3))[1]) == 40
