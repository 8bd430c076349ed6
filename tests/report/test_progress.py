"""Progress: a live bar in a terminal, sparse plain lines elsewhere, the same figures in both."""

import io

import pytest
from rich.console import Console

from dreamer_lpm.report.progress import Progress, _duration


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_plain_lines_are_at_least_ten_seconds_apart_and_the_last_is_always_there() -> None:
    console, clock = plain_console(), Clock()
    with Progress(1000, title="demo", console=console, clock=clock) as progress:
        for step in range(10, 501, 10):
            clock.now += 1
            progress.update(step)
    lines = written(console)
    assert [line.split(" | ")[0] for line in lines] == [
        *(f"demo: {step}/1,000 steps ({step // 10}%)" for step in (100, 200, 300, 400, 500)),
        "demo: 500/1,000 steps (50%)",
    ]
    assert "\x1b" not in "".join(lines)


def test_more_steps_than_were_asked_for_are_no_more_than_all_of_them() -> None:
    console = plain_console()
    with Progress(1000, title="demo", console=console, clock=Clock()) as progress:
        progress.update(1280)  # ten updates of 128 envs
    assert written(console) == ["demo: 1,280/1,000 steps (100%)"]


def test_plain_lines_get_rarer_in_a_long_run() -> None:
    console, clock = plain_console(), Clock()
    with Progress(360_000, console=console, clock=clock) as progress:
        for step in range(10, 360_001, 10):  # ten hours at ten steps a second
            clock.now += 1
            progress.update(step)
    assert 60 < len(written(console)) < 400  # every ten seconds would make 3,600


def test_figures_mean_of_the_last_five_share_speed_and_time_left() -> None:
    console, clock = plain_console(), Clock()
    with Progress(2000, start_step=1000, title="demo", console=console, clock=clock) as progress:
        for episode, value in enumerate((-999.0, 1.0, 2.0, 3.0, 4.0, 5.0), start=1):
            clock.now += 2
            progress.update(1000 + 100 * episode, episode_return=value, tv_share=0.25, note="evaluating")
    assert written(console)[0] == (
        "demo: 1,500/2,000 steps (75%) | return -197.8 (last 5) | TV share 25% | 50 steps/s | 10 s left | evaluating"
    )
    assert (
        written(console)[-1]
        == "demo: 1,600/2,000 steps (80%) | return 3.0 (last 5) | TV share 25% | 50 steps/s | 8 s left"
    )


def test_speed_is_that_of_late_not_of_the_quick_start() -> None:
    console, clock = plain_console(), Clock()
    with Progress(20_000, console=console, clock=clock) as progress:
        for _ in range(10):
            clock.now += 1
            progress.update(int(clock.now - 1000) * 1000)  # random play
        for step in range(10_010, 10_401, 10):
            clock.now += 1
            progress.update(step)  # learning
    assert "| 10 steps/s |" in written(console)[-1]


def test_say_prints_brackets_as_they_are() -> None:
    console = plain_console()
    Progress(10, console=console).say("saved [red] runs/a")
    assert written(console) == ["saved [red] runs/a"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_breaks_prose_between_words_and_no_commands(terminal: bool) -> None:
    text = "a new picture on each step that presses an extra button"
    for prose in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=50)
        Progress(10, console=console).say(text, prose=prose)
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        assert " ".join(line.strip() for line in lines) == text
        assert len(lines) == (2 if terminal and prose else 1)


def test_terminal_shows_bar_figures_and_messages_above() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    clock = Clock()
    with Progress(10_000, title="demo", console=console, clock=clock) as progress:
        clock.now += 10
        progress.update(2500, episode_return=-300.0, tv_share=0.1)
        progress.say("checkpoint saved")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "checkpoint saved" in text
    last = text[text.rindex("demo") :]
    for part in ("2,500 / 10,000 steps", "━", "return -300.0 (1 episode)", "TV share 10%", "250 steps/s", "30 s left"):
        assert part in last
    assert text.rindex("checkpoint saved") < text.rindex("demo")


def test_an_error_inside_leaves_the_terminal_in_order() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    with pytest.raises(KeyboardInterrupt), Progress(10, console=console):
        raise KeyboardInterrupt
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[?25h" in console.file.getvalue()  # the cursor is shown again


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (8.4, "8 s"), (125, "2 min 05 s"), (3600, "1 h 00 min"), (7325, "2 h 02 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
