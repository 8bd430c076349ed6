"""The Python that the documents show does what they say."""

import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer_lpm.config import RunConfig
from dreamer_lpm.evaluate import Player
from dreamer_lpm.noisy_tv import TVSpec
from dreamer_lpm.types import ActionSpec
from tests.docs.conftest import ROOT, small_agent
from tests.docs.documents import blocks, read

SOURCES = [
    (path.name, index, code.text)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for index, code in enumerate(c for c in blocks(read(path)) if c.language == "python")
]


@pytest.mark.parametrize(("name", "index", "text"), SOURCES, ids=[f"{name}-{index}" for name, index, _ in SOURCES])
def test_snippet_runs(name: str, index: int, text: str, agent_file: Path) -> None:
    text = text.replace("steps=10_000", "steps=60, prefill=40, time_limit=20, pictures=False")  # only that it runs
    scope: dict[str, Any] = {}
    exec(compile(text, f"{name}-{index}", "exec"), scope)
    if "picture" in scope:
        assert scope["picture"].shape == (64, 64, 3)
        assert np.abs(scope["torque"]) <= 2
    if "add_tv" in scope:
        env = scope["env"]
        env.reset(seed=0)
        strongest = np.float32([2.0]) if env.action_space.shape else env.action_space.n - 1
        assert env.step(strongest)[4]["tv_on"]


def test_readme_needs_five_lines() -> None:
    [snippet] = [
        text for name, _, text in SOURCES if name == "README.md" and "agent_lpm.pth" in text and "make_env" in text
    ]
    assert len([line for line in snippet.splitlines() if line]) == 5


def test_play_prints_a_possible_return(agent_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play = runpy.run_path(str(ROOT / "examples" / "play.py"))["play"]
    score = play(str(agent_file))
    assert -200 * (np.pi**2 + 0.1 * 8**2 + 0.001 * 2**2) <= score < 0  # 200 steps of Pendulum's worst, and its best
    assert score == play(str(agent_file))


def test_play_has_every_action_that_the_agent_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a remote on CartPole there are three; the third is the button's."""
    play = runpy.run_path(str(ROOT / "examples" / "play.py"))["play"]
    run = RunConfig(env_name="CartPole-v1", noisy_tv=True, tv=TVSpec(trigger="remote"), time_limit=5)
    path = small_agent(tmp_path / "button.pth", run, ActionSpec("discrete", 3))
    monkeypatch.setattr(Player, "act", lambda self, obs: 2)
    assert play(str(path)) == 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_debugging_command_runs(tmp_path: Path) -> None:
    [command] = [c.text.strip() for c in blocks(read(ROOT / "README.md")) if "--steps 600 " in c.text]
    words = [sys.executable, str(ROOT / "train_lpm.py"), *shlex.split(command)[2:], "--threads", "1"]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "agent_lpm.pth").is_file()
    assert (tmp_path / "videos" / "eval_iter_600_ep_0.mp4").is_file()
