"""A part of the agent that dies is told on the screen, once, by a run as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dreamer_lpm.train as train_module
from dreamer_lpm.guard import FIRST_ALARM
from dreamer_lpm.report.metrics import read_metrics
from dreamer_lpm.train import train
from tests.tiny_run import TINY

DEAD = {
    "health/kl": (0.001, "Alarm: the latents hardly follow the pictures any more (KL 0.0010 nats)"),
    "health/dead_latents": (1.0, "Alarm: 100% of the latents never change"),
    "health/entropy": (0.0, "Alarm: the policy has stopped trying things (entropy 0.0% of its range)"),
}


@pytest.mark.parametrize("first", [1, FIRST_ALARM])
def test_what_died_is_told_once_and_not_before_it_can_have_begun_to_live(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm, lines = train_module._Run._alarm, []

    def dying(self: train_module._Run, values: dict[str, float]) -> None:
        lines.append([values[key] for key in DEAD])
        alarm(self, {**values, **{key: value for key, (value, _) in DEAD.items()}})

    monkeypatch.setattr(train_module._Run, "_alarm", dying)
    monkeypatch.setattr(train_module, "FIRST_ALARM", first)
    train(TINY, tmp_path)
    assert len(lines) > 2
    assert np.isfinite(lines).all(), "the run measures them"
    said = " ".join(capsys.readouterr().out.split())
    told = len(DEAD) if first == 1 else 0
    assert said.count("Alarm:") == told
    assert sum(said.count(words) == 1 for _, words in DEAD.values()) == told
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "train"]
    assert all(DEAD.keys() <= row.keys() for row in rows)
