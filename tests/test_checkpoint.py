"""Checkpoints: whole or not there, the last two kept, damage found and named, nothing unpickled."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamer_lpm import checkpoint
from dreamer_lpm.checkpoint import Saved
from dreamer_lpm.report.strict_json import sealed
from dreamer_lpm.types import UserError


def rows(first: int, count: int) -> dict[str, np.ndarray]:
    return {"obs": np.arange(first, first + count, dtype=np.uint8), "reward": np.ones((count, 1), np.float32)}


def saved_at(run_dir: Path, *steps: int) -> None:
    """A checkpoint at each step, each with one more piece of the replay."""
    pieces, before = dict[Path, str](), 0
    for step in steps:
        piece = checkpoint.save_rows(run_dir, before, rows(before, step - before))
        pieces[piece] = checkpoint.sha256(piece)
        before = step
        tensors = {"weight": torch.tensor([float(step)]), "nested": [{"count": step}]}
        checkpoint.save(run_dir, Saved(step, tensors, {"at": step}, pieces))


def newest(run_dir: Path) -> tuple[checkpoint.Saved, list[str]]:
    saved, damaged = checkpoint.load_newest(run_dir)
    assert saved is not None
    return saved, damaged


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved_at(tmp_path, 10, 25)
    saved, damaged = newest(tmp_path)
    assert (saved.step, saved.plain, damaged) == (25, {"at": 25}, [])
    assert torch.equal(saved.tensors["weight"], torch.tensor([25.0]))
    assert saved.tensors["nested"] == [{"count": 25}]
    assert [path.name for path in saved.replay] == ["rows_000000000_000000010.npz", "rows_000000010_000000025.npz"]
    for path, want in zip(saved.replay, (rows(0, 10), rows(10, 15)), strict=True):
        got = checkpoint.load_rows(path)
        assert got.keys() == want.keys()
        assert all(np.array_equal(got[key], want[key]) and got[key].dtype == want[key].dtype for key in want)


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) == (None, [])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    saved_at(tmp_path, 10, 25, 30, 1_000)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_000000030", "step_000001000"]
    assert newest(tmp_path)[0].step == 1_000


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    saved_at(tmp_path, 10)
    checkpoint.save(tmp_path, Saved(10, {}, {"at": "again"}, {}))
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_000000010"]
    assert newest(tmp_path)[0].plain == {"at": "again"}


def test_what_was_damaged_gives_way_to_the_run_that_goes_on_from_before_it(tmp_path: Path) -> None:
    """It would keep a place among the last two, and a whole one would go."""
    saved_at(tmp_path, 10, 25)
    flip(tmp_path / "checkpoints" / "step_000000025" / "state.pt")
    saved, _ = newest(tmp_path)
    checkpoint.save(tmp_path, Saved(20, {}, {"at": 20}, saved.replay))
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_000000010", "step_000000020"]
    saved, damaged = newest(tmp_path)
    assert (saved.step, damaged) == (20, [])
    assert [path.name for path in (tmp_path / "replay").iterdir()] == ["rows_000000000_000000010.npz"]


def test_more_digits_are_later(tmp_path: Path) -> None:
    for step in (999_999_990, 999_999_999, 1_000_000_000):
        checkpoint.save(tmp_path, Saved(step, {}, {}, {}))
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_999999999", "step_1000000000"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    """What a power cut leaves on some file systems."""
    path.write_bytes(bytes(path.stat().st_size))


def odd_json(path: Path) -> None:
    path.write_text("[]")


DAMAGE = [(how, name) for name in ("state.pt", "state.json", "piece") for how in (cut, flip, empty, zeros, Path.unlink)]
DAMAGE += [(how, "manifest.json") for how in (cut, flip, empty, zeros, odd_json, Path.unlink)]


@pytest.mark.parametrize(("how", "name"), DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, how: Callable[[Path], None], name: str
) -> None:
    saved_at(tmp_path, 10, 25)
    folder = tmp_path / "checkpoints" / "step_000000025"
    how(tmp_path / "replay" / "rows_000000010_000000025.npz" if name == "piece" else folder / name)
    saved, damaged = newest(tmp_path)
    assert (saved.step, saved.plain) == (10, {"at": 10})
    assert torch.equal(saved.tensors["weight"], torch.tensor([10.0]))
    [line] = damaged
    assert line.startswith("step_000000025: ")


def test_all_damaged(tmp_path: Path) -> None:
    saved_at(tmp_path, 10, 25)
    flip(tmp_path / "replay" / "rows_000000000_000000010.npz")  # both need it
    with pytest.raises(UserError) as caught:
        checkpoint.load_newest(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"Every checkpoint of {tmp_path} is damaged; start a new run under another name")
    for name in ("step_000000010", "step_000000025", "rows_000000000_000000010.npz is not as it was written"):
        assert name in message


def test_another_schema_is_refused_by_name_and_not_passed_over(tmp_path: Path) -> None:
    saved_at(tmp_path, 10, 25)
    rewrite(tmp_path / "checkpoints" / "step_000000025" / "manifest.json", schema=99)
    with pytest.raises(UserError, match=r"step_000000025 has schema 99 and this version reads 2:"):
        checkpoint.load_newest(tmp_path)


def rewrite(manifest: Path, **changes: object) -> None:
    """As somebody would who knows how manifests are sealed."""
    body = {key: value for key, value in json.loads(manifest.read_text()).items() if key != "sha256"}
    manifest.write_text(json.dumps(sealed({**body, **changes})))


@pytest.mark.parametrize("forged", [{"run": None}, {"metrics": None}, {"metrics": [3]}, {"metrics": [-1, ""]}], ids=str)
def test_a_sealed_manifest_that_lacks_something_is_damage(tmp_path: Path, forged: dict[str, object]) -> None:
    saved_at(tmp_path, 10, 25)
    rewrite(tmp_path / "checkpoints" / "step_000000025" / "manifest.json", **forged)
    saved, damaged = newest(tmp_path)
    assert (saved.step, damaged) == (10, ["step_000000025: manifest.json is no manifest"])


@pytest.mark.parametrize("stop", ["save", "rename", "digest"])
def test_a_crash_while_saving_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    saved_at(tmp_path, 10)

    def crash(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        target = {"save": (torch, "save"), "rename": (Path, "rename"), "digest": (checkpoint, "sha256")}[stop]
        patch.setattr(*target, crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, Saved(25, {"weight": torch.zeros(1)}, {"at": 25}, {}))
    assert newest(tmp_path)[0].step == 10
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000000010"]


def test_half_written_scratch_of_a_killed_process_is_ignored(tmp_path: Path) -> None:
    saved_at(tmp_path, 10)
    scratch = tmp_path / "checkpoints" / ".step_000000025.tmp"
    scratch.mkdir()
    (scratch / "state.pt").write_bytes(b"half")
    (tmp_path / "replay" / "rows_000000010_000000025.tmp").write_bytes(b"half")
    saved, damaged = newest(tmp_path)
    assert (saved.step, damaged) == (10, [])
    checkpoint.save(tmp_path, Saved(25, {}, {}, saved.replay))
    assert newest(tmp_path)[0].step == 25
    assert [path.name for path in (tmp_path / "replay").iterdir()] == ["rows_000000000_000000010.npz"]


class Bomb:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return (Path.touch, (self.trap,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """Not even from a checkpoint whose checksums somebody has made fit."""
    trap = tmp_path / "trap"
    saved_at(tmp_path, 10)
    folder = tmp_path / "checkpoints" / "step_000000010"
    plain, of_torch = io.BytesIO(pickle.dumps(Bomb(trap), protocol=2)), io.BytesIO()
    torch.save(Bomb(trap), of_torch)
    for bomb in (plain, of_torch):
        (folder / "state.pt").write_bytes(bomb.getvalue())
        manifest = folder / "manifest.json"
        files = {**json.loads(manifest.read_text())["files"], "state.pt": checkpoint.sha256(folder / "state.pt")}
        rewrite(manifest, files=files)
        with pytest.raises(UserError, match=r"Every checkpoint of .* is damaged"):
            checkpoint.load_newest(tmp_path)
    np.savez(tmp_path / "rows.npz", obs=np.array([Bomb(trap)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.load_rows(tmp_path / "rows.npz")
    assert not trap.exists()
