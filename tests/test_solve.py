"""The clock of a training program: it stops at the first pass, at the bound, and leaves nobody training on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from dreamer_lpm.solve import Attempt, in_words, solve
from dreamer_lpm.types import UserError

# A program that tells of its episodes at once, goes on for ever, has a helper, and ignores mild signals.
FAKE = """
import json, signal, subprocess, sys, time
log, returns = sys.argv[1], json.loads(sys.argv[2])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
beat = "import sys, time\\nwhile True: print('.', file=open(sys.argv[1], 'a')); time.sleep(0.05)"
subprocess.Popen([sys.executable, "-c", beat, log + ".alive"])
with open(log, "w") as file:
    print(json.dumps({"kind": "about", "step": 0, "version": "1.0"}), file=file)
    for i, value in enumerate(returns, 1):
        print(json.dumps({"kind": "train", "step": 200 * i, "updates": 80 * i}), file=file)
        print(json.dumps({"kind": "episode", "step": 200 * i, "return": value}), file=file)
    print('{"kind": "episode", "st', end="", file=file)
time.sleep(600)
"""


def fake(folder: Path, returns: Sequence[float]) -> Attempt:
    log = folder / "metrics.jsonl"
    return Attempt("fake", (sys.executable, "-c", FAKE, str(log), json.dumps(returns)), log, {})


def alive(folder: Path) -> bool:
    """Whether the fake's helper still runs."""
    file = folder / "metrics.jsonl.alive"
    before = file.stat().st_size if file.exists() else 0
    time.sleep(0.5)
    return file.exists() and file.stat().st_size > before


def test_the_first_mean_above_the_threshold_counts(tmp_path: Path) -> None:
    # Means of five: -360, then -250, which is not above it, then -249, then one that would be better still.
    found = solve(fake(tmp_path, [-1000, -200, -200, -200, -200, -450, -195, 0]), -250.0, bound=60)
    assert (found["solved"], found["env_steps"], found["updates"]) == (True, 1400, 560)
    assert 0 < found["seconds"] <= found["ran_seconds"] < 60
    assert [step for _, step, _ in found["episodes"]] == list(range(200, 1401, 200))
    assert found["about"] == {"version": "1.0"}
    assert not alive(tmp_path)
    assert "passed -250 after" in in_words("fake", found, -250.0)
    assert "(1,400 env steps)" in in_words("fake", found, -250.0)


def test_the_bound_ends_it_and_all_that_it_started(tmp_path: Path) -> None:
    start = time.monotonic()
    found = solve(fake(tmp_path, [-900, -900, -900, -900, -400, -900]), -250.0, bound=2)
    assert 2 <= time.monotonic() - start < 30
    assert (found["solved"], found["seconds"], found["best_mean"], found["best_env_steps"]) == (False, None, -800, 1000)
    assert not alive(tmp_path)
    assert "not solved in 0.0 min (best mean of 5: -800 at step 1,000; 1,200 env steps" in in_words("x", found, -250.0)


def test_four_episodes_have_no_mean_of_five(tmp_path: Path) -> None:
    found = solve(fake(tmp_path, [0, 0, 0, 0]), -250.0, bound=1)
    assert (found["solved"], found["best_mean"], found["best_env_steps"]) == (False, None, None)
    assert "not solved in 0.0 min (no 5 episodes; 800 env steps" in in_words("x", found, -250.0)


def test_a_program_that_fails_has_the_last_word(tmp_path: Path) -> None:
    dies = Attempt("peer", (sys.executable, "-c", "exit('No module named sheeprl')"), tmp_path / "never", {})
    with pytest.raises(UserError, match="'peer' stopped: No module named sheeprl"):
        solve(dies, -250.0, bound=60)


def test_nobody_trains_on_when_the_watcher_is_ended(tmp_path: Path) -> None:
    attempt = fake(tmp_path, [])
    watch = f"""
from pathlib import Path
from dreamer_lpm.solve import Attempt, solve
solve(Attempt("fake", {attempt.command!r}, Path({str(attempt.log)!r}), {{}}), -250.0, bound=600)
"""
    with subprocess.Popen([sys.executable, "-c", watch]) as watcher:
        deadline = time.monotonic() + 60
        while not alive(tmp_path):
            assert time.monotonic() < deadline
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(30) == 128 + signal.SIGTERM
    assert not alive(tmp_path)
