"""What the machine can do: devices by name, arithmetic by what is faster, an allocator that keeps its pages."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dreamer_lpm import machine
from dreamer_lpm.machine import (
    all_at_once,
    at_once,
    cores,
    keep_freed_memory,
    lanes,
    pick_device,
    pick_precision,
    pick_threads,
)
from dreamer_lpm.types import UserError


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "best"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_fastest_device_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, best: str
) -> None:
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device("auto").type == best


def test_a_device_is_taken_by_name_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True, mps=False)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("cuda:1") == torch.device("cuda", 1)


def test_at_once_goes_side_by_side_where_there_are_lanes() -> None:
    """Each half waits for the other here, which only two threads survive; one lane takes them in turn."""
    meet = threading.Barrier(2, timeout=10)

    def half() -> tuple[int, int]:
        meet.wait()
        return threading.get_ident(), torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with lanes(torch.device("cpu")) as count:
            (one, a), (other, b) = at_once(half, half, count)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert (one != other, a, b) == (True, 1, 1)
    order: list[str] = []
    at_once(lambda: order.append("first"), lambda: order.append("second"), 1)
    assert order == ["first", "second"]


def test_a_lane_that_is_done_takes_over_what_no_lane_has_begun() -> None:
    """The second half's own tasks wait for each other, which only both lanes together survive."""
    meet = threading.Barrier(2, timeout=10)
    _, met = at_once(lambda: None, lambda: all_at_once([meet.wait] * 2, 2), 2)
    assert sorted(met) == [0, 1]


def test_a_lane_does_itself_what_no_other_is_free_for() -> None:
    """The first half does not end before all tasks of the second are done; more tasks than lanes, in their order."""
    done = threading.Event()

    def tasks() -> list[int]:
        results = all_at_once([partial(int, i) for i in range(5)], 2)
        done.set()
        return results

    assert at_once(lambda: done.wait(10), tasks, 2) == (True, [0, 1, 2, 3, 4])


def test_tasks_of_a_lane_hand_errors_on_and_leave_none_behind() -> None:
    done: list[int] = []

    def work(which: int) -> None:
        if which == 0:
            raise UserError("the first of three")
        time.sleep(0.02)
        done.append(which)

    with pytest.raises(UserError, match="the first of three"):
        at_once(lambda: None, lambda: all_at_once([partial(work, i) for i in range(3)], 2), 2)
    before = len(done)
    time.sleep(0.1)
    assert len(done) == before, "a task went on after its caller had gone"


@pytest.mark.parametrize("ill", [0, 1])
def test_at_once_waits_for_both_and_hands_errors_on(ill: int) -> None:
    done: list[int] = []

    def work(which: int) -> None:
        if which == ill:
            raise UserError(f"half {which}")
        time.sleep(0.05)
        done.append(which)

    with pytest.raises(UserError, match=f"half {ill}"):
        at_once(lambda: work(0), lambda: work(1), 2)
    assert done == [1 - ill]


def test_other_devices_and_single_threads_have_one_lane() -> None:
    with lanes(torch.device("meta")) as count:
        assert count == 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with lanes(torch.device("cpu")) as count:
            assert count == 1
    finally:
        torch.set_num_threads(before)


def test_a_device_with_a_number_that_is_none() -> None:
    with pytest.raises(UserError, match="'cpu:x' is no device; name one as cpu, cuda or cuda:1"):
        pick_device("cpu:x")


def test_a_card_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True, mps=False)
    assert pick_device("cuda:1").index == 1
    with pytest.raises(UserError, match="There is no cuda:2 here: the last one is cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "abacus"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    pretend(monkeypatch, cuda=False, mps=True)
    with pytest.raises(
        UserError, match=rf"'{wanted}' is not available here; use --device auto, or one of: mps, cpu\.$"
    ):
        pick_device(wanted)


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_arithmetic_that_was_asked_for_is_taken(wanted: str, device: str) -> None:
    assert pick_precision(wanted, torch.device(device)) == wanted


@pytest.mark.parametrize(("bf16_seconds", "want"), [(0.5, "bf16"), (0.69, "bf16"), (0.71, "fp32"), (3.0, "fp32")])
def test_on_a_cpu_bf16_must_be_clearly_faster(monkeypatch: pytest.MonkeyPatch, bf16_seconds: float, want: str) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: bf16_seconds}
    monkeypatch.setattr(machine, "_product_seconds", seconds.__getitem__)
    machine.bf16_slowdown.cache_clear()
    assert pick_precision("auto", torch.device("cpu")) == want
    machine.bf16_slowdown.cache_clear()


def test_the_fastest_product_counts() -> None:
    """Others may have had the cores meanwhile."""
    moments = [at for i in range(30) for at in (10.0 * i, 10.0 * i + (0.002 if i == 19 else 0.005))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.time, "perf_counter", iter(moments).__next__)
        assert machine._product_seconds(torch.float32) == pytest.approx(0.002)


def test_products_that_are_emulated_are_not_waited_for() -> None:
    """A quarter of a second each, before each run."""
    moments = iter([at for i in range(30) for at in (i, i + 0.25)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.time, "perf_counter", moments.__next__)
        assert machine._product_seconds(torch.float32) == 0.25
    assert next(moments) == 3  # products were timed


def test_products_are_timed_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wait for each other where others have the cores: bf16 passed for 13 times as slow, and is 5 times as fast.

    The process keeps as many threads as it had.
    """
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    timed: list[list[int]] = []
    moments = iter([at for i in range(30) for at in (i, i + 0.25)])

    def clock() -> float:
        timed.append([*asked])
        return next(moments)

    monkeypatch.setattr(machine.time, "perf_counter", clock)
    machine._product_seconds(torch.float32)
    assert all(before == [1] for before in timed)
    assert asked == [1, 2]


@pytest.mark.parametrize(("in_hardware", "want"), [(True, "bf16"), (False, "fp32")])
def test_on_cuda_the_hardware_decides(monkeypatch: pytest.MonkeyPatch, in_hardware: bool, want: str) -> None:
    def supported(including_emulation: bool) -> bool:
        return in_hardware or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert pick_precision("auto", torch.device("cuda")) == want


def test_elsewhere_fp32_is_safe() -> None:
    assert pick_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(("cores", "wanted", "threads"), [(1, 0, 1), (2, 0, 2), (64, 0, 2), (64, 8, 8), (1, 4, 4)])
def test_threads(monkeypatch: pytest.MonkeyPatch, cores: int, wanted: int, threads: int) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    # The cores this process may use, not those of the whole machine: in a container they differ.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 999)
    assert pick_threads(wanted) == threads


@pytest.mark.parametrize(
    ("quota", "may"),
    [("max 100000", 64), ("400000 100000", 4), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 64)],
)
def test_a_containers_quota_counts_as_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, may: int
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert cores() == 64, "no such file: not in such a container"
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert cores() == may


@pytest.mark.parametrize(
    ("said", "folders"),
    [("0::/\n", [""]), ("0::/a/b\n", ["a/b", "a", ""]), ("0::/../c\n", [""]), ("4:memory:/x\n", [""])],
)
def test_own_group_and_those_around_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, folders: list[str]
) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")
    assert machine.cgroups() == [], "no Linux"
    (tmp_path / "own").write_text(said)
    assert machine.cgroups() == [tmp_path / folder for folder in folders]


def test_threads_where_no_affinity_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert pick_threads(0) == 1


def test_freed_memory_is_left_alone_where_the_allocator_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # musl: no mallopt
    assert not keep_freed_memory()


def test_freed_memory_is_kept_by_every_setting_or_said_not_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}
    refuses = -2

    def mallopt(option: int, value: int) -> int:
        asked[option] = value
        return int(option != refuses)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert not keep_freed_memory()
    refuses = 0
    assert keep_freed_memory()
    # The numbers of malloc.h: no mmap at all, trim never, grow by 256 MiB, one arena.
    assert asked == {-4: 0, -1: 2**31 - 1, -2: 2**28, -8: 1}


FAULTS = """
import resource, sys
from dreamer_lpm.machine import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def take():
    return [bytearray(40_000_000) for _ in range(3)]
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def glibc() -> bool:
    return sys.platform == "linux" and "glibc" in str(os.confstr("CS_GNU_LIBC_VERSION") or "")


@pytest.mark.skipif(not glibc(), reason="the setting is glibc's")
def test_kept_memory_costs_no_page_faults() -> None:
    """Taking again what was freed touches no new page; without the setting each of its pages is cleared anew."""

    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("leave") > 10 * max(1, faults("keep"))
