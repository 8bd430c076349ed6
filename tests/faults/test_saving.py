"""A save that is cut short at any file operation, damage to any file of a run, and what the disk is told when."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamer_lpm import checkpoint
from dreamer_lpm.report.metrics import METRICS_FILE, MetricsLog
from dreamer_lpm.train import read_config
from dreamer_lpm.types import UserError

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_killed_or_out_of_room_at_every_file_operation_of_a_save(tmp_path: Path) -> None:
    """Always one whole checkpoint, the one before or the new one, and the next save is as if nothing had been."""
    command = [sys.executable, "-m", "tests.faults.victim", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=280, check=True)
    said = json.loads(done.stdout)
    assert said["wrong"] == []
    kinds = {"open", "write", "flush", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir"}
    for cases in said["cases"].values():
        assert set(cases) == kinds, "a kind of operation was never met"


# --- damage -----------------------------------------------------------------------------------------------------------


def of_newest(run_dir: Path) -> list[Path]:
    """The files that the newest checkpoint needs, and the one before it does not."""
    older, newest = checkpoint.checkpoints(run_dir)[-2:]
    before, now = (set(json.loads((f / "manifest.json").read_text())["replay"]) for f in (older, newest))
    return sorted(newest.iterdir()) + [run_dir / "replay" / name for name in sorted(now - before)]


NAMES = ["manifest.json", "state.pt", "state.json", "config.json", "rows"]


def named(run_dir: Path, name: str) -> Path:
    [path] = (path for path in of_newest(run_dir) if path.name.startswith(name))
    return path


def truncations(content: bytes) -> list[bytes]:
    return [content[: len(content) * i // 12] for i in range(12)] + [content[:-1]]


def flips(content: bytes) -> list[bytes]:
    found = []
    for i in range(12):
        changed = bytearray(content)
        changed[len(content) * i // 12] ^= 1 << (i % 8)
        found.append(bytes(changed))
    return found


def additions(content: bytes) -> list[bytes]:
    return [content + b"\0", content + content]


def check_is_passed_over(run_dir: Path) -> None:
    saved, damaged = checkpoint.load_newest(run_dir, str(read_config(run_dir)["run"]))
    assert saved is not None
    assert saved.step == 90
    assert len(damaged) == 1
    assert damaged[0].startswith("step_000000100: ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("harm", [truncations, flips, additions])
def test_every_damage_to_a_file_of_the_newest_checkpoint_is_seen(
    harm: Callable[[bytes], list[bytes]], name: str, run_dir: Path
) -> None:
    path = named(run_dir, name)
    content = path.read_bytes()
    for changed in harm(content):
        assert changed != content
        path.write_bytes(changed)
        check_is_passed_over(run_dir)
    path.write_bytes(content)
    saved, damaged = checkpoint.load_newest(run_dir)
    assert (saved and saved.step, damaged) == (100, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_gone_another_runs_a_folder_or_a_link_is_seen(
    name: str, run_dir: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    path = named(run_dir, name)
    path.rename(tmp_path / "kept")
    check_is_passed_over(run_dir)
    theirs = finished[1] / path.relative_to(run_dir)
    shutil.copyfile(theirs if theirs.exists() else named(finished[1], name), path)
    check_is_passed_over(run_dir)
    path.unlink()
    path.mkdir()
    check_is_passed_over(run_dir)
    path.rmdir()
    for target in (tmp_path / "kept", Path("/dev/zero"), tmp_path / "nowhere"):
        path.symlink_to(target)
        check_is_passed_over(run_dir)
        path.unlink()
    os.mkfifo(path)
    check_is_passed_over(run_dir)


@pytest.mark.parametrize("harm", [truncations, flips])
def test_every_damage_to_config_json_is_told_with_the_copy_that_mends_it(
    harm: Callable[[bytes], list[bytes]], run_dir: Path
) -> None:
    path = run_dir / "config.json"
    content = path.read_bytes()
    for changed in harm(content.rstrip()):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"config.json is damaged; put back its copy: cp .*step_000000100/config"):
            read_config(run_dir)


@pytest.mark.parametrize("harm", [truncations, flips])
def test_every_damage_to_the_metrics_is_seen(harm: Callable[[bytes], list[bytes]], run_dir: Path) -> None:
    newest = checkpoint.checkpoints(run_dir)[-1]
    saved = checkpoint.load_newest(run_dir)[0]
    assert saved is not None
    assert checkpoint.metrics_intact(run_dir, newest)
    path = run_dir / METRICS_FILE
    content = path.read_bytes()[: saved.metrics_at]
    for changed in harm(content):
        path.write_bytes(changed)
        assert not checkpoint.metrics_intact(run_dir, newest)
        if len(changed) < len(content):
            with pytest.raises(UserError, match=r"metrics.jsonl ends before its checkpoint"):
                MetricsLog(run_dir, resume_at=saved.metrics_at)


# --- the disk ---------------------------------------------------------------------------------------------------------

TRACED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.faults.victim import save_step
run_dir = Path(sys.argv[1])
save_step(run_dir, 10)
save_step(run_dir, 20)
"""
CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_disk_has_each_file_before_its_name_and_the_name_before_anything_is_forgotten(tmp_path: Path) -> None:
    """From the kernel's own log: fsync(file), rename, fsync(folder), unlink of what is old."""
    log, run_dir = tmp_path / "log", tmp_path / "run"
    calls = "trace=openat,fsync,rename,renameat,renameat2,unlink,unlinkat,rmdir"
    command = ["strace", "-f", "-y", "-s", "300", "-o", str(log), "--seccomp-bpf", "-e", calls]
    done = subprocess.run(
        [*command, sys.executable, "-c", TRACED, str(run_dir)], cwd=ROOT, env=ENV, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    if "ptrace" in done.stderr and done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    events = [event for line in log.read_text().splitlines() if (event := told(line, run_dir))]
    synced: set[str] = set()
    renamed: list[str] = []
    pending: set[str] = set()  # folders with a name that is not on the disk yet
    for kind, *paths in events:
        if kind == "fsync":
            synced.add(paths[0])
            pending.discard(paths[0])
        elif kind == "rename":
            source, target = paths
            renamed.append(target)
            if not target.endswith(".gone"):  # what is on its way out need not be safe
                inside = {path for path in created(events) if path == source or path.startswith(source + "/")}
                assert inside, source
                assert inside <= synced, f"{target} got its name before {inside - synced} were on the disk"
                pending.add(str(Path(target).parent))
        elif kind == "unlink" and ".tmp" not in paths[0]:
            assert not pending, f"{paths[0]} was removed while names in {pending} were not on the disk"
    assert [Path(target).name for target in renamed] == [
        "rows_000000000_000000010.npz", "step_000000010", "rows_000000010_000000020.npz", "step_000000020",
    ]  # fmt: skip
    assert not pending


def told(line: str, run_dir: Path) -> tuple[str, ...] | None:
    """What a line of the log says of the run: ("create" | "fsync" | "rename" | "unlink", path, ...)."""
    match = CALL.search(line)
    if match is None or int(match[3]) < 0 or str(run_dir) not in line:
        return None
    call, arguments = match[1], match[2]
    quoted = re.findall(r'"([^"]*)"', arguments)
    folder = re.search(r"<([^>]*)>", arguments)
    if call == "fsync":
        return ("fsync", folder[1]) if folder else None
    if call == "openat":
        return ("create", quoted[0]) if "O_CREAT" in arguments else None
    if call.startswith("rename"):
        return ("rename", *quoted)
    base = folder[1] if folder and not quoted[0].startswith("/") else ""
    return ("unlink", os.path.join(base, quoted[0]))  # noqa: PTH118  a base of "" adds nothing


def created(events: list[tuple[str, ...]]) -> list[str]:
    return [event[1] for event in events if event[0] == "create"]
