"""JSON that strict parsers read, and files that are whole or not there."""

import json
import math
import os
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from dreamer_lpm.report.strict_json import dumps, plain, write_atomically, write_json, write_whole
from dreamer_lpm.report.video import write_video
from dreamer_lpm.types import UserError


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_no_float_breaks_a_strict_parser_at_any_depth() -> None:
    value = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": np.float32("-inf")}}
    assert json.loads(dumps(value), parse_constant=refuse_constant) == {"a": None, "b": [1.0, None], "c": {"d": None}}


def test_numpy_and_paths_become_plain_and_types_survive() -> None:
    value = {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "x": np.arange(2), "p": Path("runs") / "a"}
    result = plain(value)
    assert result == {"i": 3, "f": 0.5, "b": True, "x": [0, 1], "p": str(Path("runs/a"))}
    assert [type(item) for item in result.values()] == [int, float, bool, list, str]


def test_what_is_no_json_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="object cannot be written"):
        dumps({"x": object()})


def test_atomic_write_replaces_the_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old and much longer than the new text")
    write_atomically(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [".", "..", "folder"])
def test_a_folder_is_no_file_to_write(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for write in (lambda path: write_atomically(path, "text"), lambda path: write_video(path, [])):
        with pytest.raises(UserError, match="is a folder; name a file"):
            write(Path(name))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "device"
    os.mkfifo(path)
    for write in (lambda path: write_atomically(path, "text"), lambda path: write_video(path, [])):
        with pytest.raises(UserError, match="is no file that could be written anew; name one"):
            write(path)
    assert path.is_fifo()


def test_names_that_are_no_utf8_are_written_and_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_atomically(tmp_path / "a.json", dumps({"out": name}))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"out": name}


def test_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, "half")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"env_steps": 10, "eval_returns": [-1.5, math.nan], "versions": {"a": "1"}})
    assert json.loads(path.read_text()) == {"env_steps": 10, "eval_returns": [-1.5, None], "versions": {"a": "1"}}
    assert "NaN" not in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_filled_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def full(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, full)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"
