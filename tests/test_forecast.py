"""What a run will take, by hand, and the refusals."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamer_lpm import forecast, machine
from dreamer_lpm.forecast import Forecast, free_memory
from dreamer_lpm.state import State
from dreamer_lpm.types import UserError
from tests.tiny_run import TINY

CPU = torch.device("cpu")
ONE = Forecast(rows=1_000_000, row=12_400, weights=50_000_000)  # 12.4 GB of replay, 50 MB of weights
Usage = namedtuple("Usage", "total used free")


def test_the_arithmetic() -> None:
    assert ONE.memory == 12_400_000_000 + 200_000_000
    assert ONE.disk(keep=2) == 12_400_000_000 + (3 * 3 + 2) * 50_000_000


def test_too_little_memory_is_told_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_held", lambda device: 0)
    monkeypatch.setattr(forecast, "free_memory", lambda device: 12_000_000_000)
    with pytest.raises(UserError) as told:
        ONE.check_memory(CPU)
    assert str(told.value) == (
        "Memory does not suffice: 1,000,000 steps x 12,400 bytes = 12.40 GB of replay + 0.20 GB of weights, gradients "
        "and optimizer + 0.27 GB to spare, and cpu has 12.00 GB free; lower replay_capacity or choose a smaller preset."
    )
    monkeypatch.setattr(forecast, "free_memory", lambda device: 13_000_000_000)
    ONE.check_memory(CPU)
    monkeypatch.setattr(forecast, "free_memory", lambda device: None)
    ONE.check_memory(CPU)


def test_runs_that_share_a_cpus_memory_are_reckoned_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the others will fill looks free until they do."""
    monkeypatch.setattr(forecast, "_held", lambda device: 0)
    monkeypatch.setattr(forecast, "free_memory", lambda device: 25_000_000_000)
    ONE.check_memory(CPU)
    with pytest.raises(UserError, match="Memory does not suffice: 2 runs, each 1,000,000 steps x 12,400 bytes"):
        replace(ONE, runs=2).check_memory(CPU)
    assert State(TINY, None, together=3).forecast.memory == 3 * State(TINY, None).forecast.memory


def test_too_little_disk_is_told_with_the_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "rows").write_bytes(bytes(1_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 13_000_000_000))
    with pytest.raises(UserError) as told:
        ONE.check_disk(tmp_path, keep=2)
    assert str(told.value) == (
        f"The disk of {tmp_path} does not suffice: 1,000,000 steps x 12,400 bytes = 12.40 GB of replay (less once "
        "compressed) + 0.55 GB of checkpoints and agents + 0.27 GB to spare, and 13.00 GB are free; make room or lower "
        "replay_capacity."
    )
    # What lies there already is part of what it takes: a run that was resumed has filled its own room.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, ONE.disk(2) + forecast.SPARE - 1_000_000))
    ONE.check_disk(tmp_path, keep=2)


def test_a_container_counts_and_its_cached_files_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n")
    monkeypatch.setattr(forecast, "MEMINFO", meminfo)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr("sys.platform", "linux")
    assert free_memory(CPU) == 8_000_000 * 1024
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("3000000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000000\n")
    assert free_memory(CPU) == 1_500_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU) == 8_000_000 * 1024
    # A job of a cluster, on a machine that is shown whole: its group's limit, and that of the group around it.
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text("1:cpu:/x\n0::/slurm/job_7/step_0\n")
    (tmp_path / "slurm" / "job_7" / "step_0").mkdir(parents=True)
    for name, content in (("memory.max", "2000000000"), ("memory.current", "800000000"), ("memory.stat", "anon 1")):
        (tmp_path / "slurm" / "job_7" / name).write_text(content)
    assert free_memory(CPU) == 1_200_000_000


def test_what_the_process_holds_already_is_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that goes back, and one that is resumed beside others, would else be refused what it had."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(forecast, "free_memory", lambda device: 7_000_000_000)
    monkeypatch.setattr(forecast, "OWN_PAGES", tmp_path / "statm")
    for held, fits in ((5_000_000_000, False), (6_000_000_000, True)):
        (tmp_path / "statm").write_text(f"9 {held // os.sysconf('SC_PAGE_SIZE')} 9 9 0 9 0\n")
        with nullcontext() if fits else pytest.raises(UserError, match=r"and cpu has 12\.00 GB free"):
            ONE.check_memory(CPU)


def test_memory_of_this_machine_is_a_number_of_gigabytes() -> None:
    there = free_memory(CPU)
    assert there is not None
    assert 1e8 < there < 1e14


def test_the_forecast_of_a_run_counts_the_bytes_of_its_rows() -> None:
    from dreamer_lpm.state import State

    state = State(TINY, None)
    row = {name: held[0].numel() * held.element_size() for name, held in state.replay.data.items()}
    assert state.forecast.row == sum(row.values())
    assert state.forecast.rows == min(TINY.steps, TINY.replay_capacity)
    assert state.forecast.weights > sum(p.numel() * 4 for p in state.agent.parameters())
    state.envs.close()


def test_a_device_commits_the_whole_replay_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made for twice the steps: each may begin an episode, and so have a second row."""
    from dreamer_lpm.state import State

    state = State(TINY, None)
    held = state.replay.capacity * TINY.num_envs
    there = state._forecast(together=3, held=held)
    assert there.memory < 3 * (held * there.row + 4 * there.weights), "a CPU takes it as it is filled"
    state.device = torch.device("meta")
    there = state._forecast(together=3, held=held)
    assert there.memory == held * there.row + 4 * there.weights > state.forecast.memory
    assert there.disk(2) == state.forecast.disk(2)
    monkeypatch.setattr(forecast, "_held", lambda device: 0)
    monkeypatch.setattr(forecast, "free_memory", lambda device: 1)
    with pytest.raises(UserError, match=f"suffice: {held:,} steps x"):
        there.check_memory(CPU)
    state.envs.close()
