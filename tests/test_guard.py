"""The guard: the first bad update is the one that is named, whether it is told at once or asked later."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamer_lpm.guard import Guard, alarms, check_finite, save_batch
from dreamer_lpm.types import Batch, NotFinite

CPU = torch.device("cpu")


def batch(number: int) -> Batch:
    return Batch(*(torch.full((2, 3), number) for _ in Batch._fields))


def metrics(**bad: float) -> dict[str, torch.Tensor]:
    values = {"loss/recon": 1.0, "loss/kl": 2.0, "grad/world": 3.0, "bonus/tv_on": math.nan, **bad}
    return {key.replace("__", "/"): torch.tensor(value) for key, value in values.items()}


def waiting_guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    """As on a device that must not be waited for."""
    guard = Guard(CPU)
    guard._waits = True
    return guard


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["loss/kl", "grad/world"])
def test_a_bad_number_is_told_at_once(bad: float, key: str) -> None:
    guard = Guard(CPU)
    guard.look(torch.tensor(0), metrics(), batch(0))
    guard.ask()
    with pytest.raises(NotFinite, match=f"update 2: {key} not finite") as found:
        guard.look(torch.tensor(1), metrics(**{key: bad}), batch(1))
    assert found.value.batch is not None
    assert set(found.value.batch) == set(Batch._fields)
    assert all((field == 1).all() for field in found.value.batch.values())


def test_what_says_nothing_may_be_nan() -> None:
    Guard(CPU).look(torch.tensor(0), metrics(), batch(0))


def test_asked_later_the_first_bad_update_and_its_batch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = waiting_guard(monkeypatch)
    for update in range(9):
        bad = {4: {"grad/world": math.inf}, 5: {"loss/kl": math.nan}}.get(update, {})
        guard.look(torch.tensor(update), metrics(**bad), batch(update))
    with pytest.raises(NotFinite, match="update 5: grad/world not finite") as found:
        guard.ask()
    assert found.value.batch is not None
    assert all((field == 4).all() for field in found.value.batch.values())


def test_asked_later_and_all_was_well(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = waiting_guard(monkeypatch)
    guard.ask()
    for update in range(3):
        guard.look(torch.tensor(update), metrics(), batch(update))
        guard.ask()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_number_anywhere_in_a_state_is_named(bad: float) -> None:
    state: dict[str, Any] = {
        "agent": {"weight": torch.zeros(3), "count": torch.tensor(3), "flags": torch.ones(2, dtype=torch.bool)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "carry": [torch.zeros(2), torch.zeros(0)],
        "rows": {"obs": np.zeros((2, 2), np.uint8), "reward": np.zeros(2, np.float32)},
    }
    check_finite(state)
    state["optimizer"]["state"][0]["exp_avg"][1] = bad
    with pytest.raises(NotFinite, match=r"optimizer\.state\.0\.exp_avg not finite"):
        check_finite(state)
    state["optimizer"]["state"][0]["exp_avg"][1] = 0
    state["rows"]["reward"][0] = bad
    with pytest.raises(NotFinite, match=r"rows\.reward not finite"):
        check_finite(state)


def test_the_batch_is_kept_for_inspection(tmp_path: Path) -> None:
    path = save_batch(tmp_path / "not_finite", 70, {"reward": np.array([[1.0, np.nan]])})
    assert path.name == "batch_at_step_000000070.npz"
    with np.load(path) as kept:
        assert np.isnan(kept["reward"][0, 1])


def test_alarms() -> None:
    well = {"health/kl": 1.2, "health/dead_latents": 0.3, "health/entropy": 0.4}
    assert alarms(well) == {}
    assert alarms({}) == {}
    for key, value in (("health/kl", 0.001), ("health/dead_latents", 1.0), ("health/entropy", 0.0)):
        [(name, words)] = alarms({**well, key: value}).items()
        assert name == key
        assert words.startswith("Alarm: ")
        assert "try" in words
