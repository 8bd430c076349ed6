"""Checkpoints: written beside, verified, rotated. A crash at any point leaves the one before it whole.

    runs/<name>/checkpoints/step_000010000/   manifest.json, state.pt, state.json, config.json
    runs/<name>/replay/rows_000000000_000005001.npz   append-only pieces of the replay, named by the manifest

The manifest carries the schema version, the run's id, the SHA-256 of every file the checkpoint needs, and its own. A
checkpoint bears its name only once all of it is on the disk. Nothing here unpickles code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from dreamer_lpm.capture import save_tensors
from dreamer_lpm.report.metrics import METRICS_FILE
from dreamer_lpm.report.strict_json import is_sealed, sealed
from dreamer_lpm.report.summary import CONFIG_FILE
from dreamer_lpm.types import UserError
from dreamer_lpm.untrusted import read_tensors, regular_size

SCHEMA = 2
KEEP = 2
MANIFEST, TENSORS, PLAIN = "manifest.json", "state.pt", "state.json"
LARGEST_TEXT = 256 << 20  # bytes of a JSON file: an episode of millions of actions
Fields = Mapping[str, tuple[tuple[int, ...], Any]]
_PIECE = re.compile(r"rows_(\d{9,15})_(\d{9,15})\.npz")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: ``tensors`` (nested dicts and lists of tensors and numbers) and ``plain`` (JSON).

    ``replay``: the pieces it needs, in order, with their SHA-256. ``run``: id of the run it belongs to; "" fits any.
    ``metrics_at``: bytes of ``metrics.jsonl`` that belong to it.
    """

    step: int
    tensors: Mapping[str, Any]
    plain: Mapping[str, Any]
    replay: Mapping[Path, str]
    run: str = ""
    metrics_at: int = 0


def save(run_dir: Path, what: Saved, *, keep: int = KEEP) -> Path:
    """Write a checkpoint, make it durable, then forget all but the last ``keep``. Returns its folder."""
    root = run_dir / "checkpoints"
    final, scratch = folder_of(run_dir, what.step), root / f".step_{what.step:09d}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        _write(scratch / TENSORS, lambda file: save_tensors(what.tensors, file))
        _write(scratch / PLAIN, lambda file: file.write(json.dumps(what.plain).encode()))
        if (run_dir / CONFIG_FILE).is_file():  # a copy, for whoever loses it
            _write(scratch / CONFIG_FILE, lambda file: file.write((run_dir / CONFIG_FILE).read_bytes()))
        manifest = {
            "schema": SCHEMA,
            "step": what.step,
            "run": what.run,
            "metrics": [what.metrics_at, sha256(run_dir / METRICS_FILE, what.metrics_at) if what.metrics_at else ""],
            "files": {path.name: sha256(path) for path in sorted(scratch.iterdir())},
            "replay": {path.name: digest for path, digest in what.replay.items()},
        }
        _write(scratch / MANIFEST, lambda file: file.write(json.dumps(sealed(manifest), indent=1).encode()))
        fsync(scratch)
        for later in [path for path in checkpoints(run_dir) if step_of(path) >= what.step]:
            _discard(later)  # those beyond were damaged, or the run would have gone on from there
        scratch.rename(final)
        fsync(root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    prune(run_dir, keep)
    return final


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints, and whatever no checkpoint needs: old rows, remains of a crash."""
    for old in checkpoints(run_dir)[:-keep]:
        _discard(old)
    for remains in (run_dir / "checkpoints").glob(".step_*"):
        shutil.rmtree(remains)
    try:
        needed = {name for folder in checkpoints(run_dir) for name in _pieces_of(folder)}
    except UserError:
        return  # another version wrote one of them, and nobody here knows what it needs
    for path in (run_dir / "replay").glob("rows_*"):
        if path.name not in needed:
            path.unlink()


def _pieces_of(folder: Path) -> Iterable[str]:
    try:
        return list(_manifest(folder)["replay"])
    except UserError:
        raise
    except (FileNotFoundError, ValueError):
        return []  # damaged, so no piece helps it


def _discard(folder: Path) -> None:
    """Remove a checkpoint so that a crash on the way never leaves half of it under its name."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def checkpoints(run_dir: Path) -> list[Path]:
    """Folders of the complete checkpoints, oldest first (a half-written one still has its scratch name)."""
    found = (p for p in (run_dir / "checkpoints").glob("step_*") if p.name.removeprefix("step_").isdecimal())
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The env step at which a checkpoint was saved, by its name."""
    return int(folder.name.removeprefix("step_"))


def load_newest(run_dir: Path, run: str = "") -> tuple[Saved | None, list[str]]:
    """The newest checkpoint whose every file is as it was written, and what was wrong with newer ones.

    ``run``: the id that it must have; "" takes any. None where nothing was saved yet. Raises UserError when all are
    damaged, or the newest is of a schema that this version does not read.
    """
    damaged: list[str] = []
    for folder in reversed(checkpoints(run_dir)):
        wrong = problems(run_dir, folder, run)
        try:
            if not wrong:
                return _load(folder), damaged
        except (OSError, ValueError, KeyError, TypeError) as error:
            wrong = [str(error)]
        damaged.append(f"{folder.name}: {wrong[0]}")
    if damaged:
        raise UserError(
            f"Every checkpoint of {run_dir} is damaged; start a new run under another name ({'; '.join(damaged)})."
        )
    return None, []


def problems(run_dir: Path, folder: Path, run: str = "") -> list[str]:
    """What is wrong with a checkpoint, a phrase for each; none when all it needs is as it was written.

    Raises UserError when a version that is not known here wrote it.
    """
    try:
        manifest = _manifest(folder)
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except UserError:
        raise
    except (OSError, ValueError) as error:
        return [str(error)]
    wrong = []
    if f"step_{manifest['step']:09d}" != folder.name:
        wrong.append(f"it is the checkpoint of step {manifest['step']}")
    if run and manifest["run"] != run:
        wrong.append("it belongs to another run")
    for path, digest in _files(run_dir, folder, manifest):
        try:
            if regular_size(path) < 0 or sha256(path) != digest:
                wrong.append(f"{path.name} is not as it was written (SHA-256 differs)")
        except FileNotFoundError:
            wrong.append(f"{path.name} is missing")
        except (OSError, ValueError) as error:
            wrong.append(f"{path.name} cannot be read ({error})")
    return wrong


def folder_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is, if there is one."""
    return run_dir / "checkpoints" / f"step_{step:09d}"


def metrics_reach(run_dir: Path, folder: Path) -> bool:
    """Whether ``metrics.jsonl`` is as long as when the (whole) checkpoint was saved; else nothing can go on from it."""
    return _reaches(run_dir / METRICS_FILE, _manifest(folder)["metrics"][0])


def metrics_intact(run_dir: Path, folder: Path) -> bool:
    """Whether ``metrics.jsonl`` still begins with the lines that the (whole) checkpoint was saved with."""
    length, digest = _manifest(folder)["metrics"]
    path = run_dir / METRICS_FILE
    return not length or (_reaches(path, length) and sha256(path, length) == digest)


def _reaches(path: Path, length: int) -> bool:
    return not length or (path.is_file() and path.stat().st_size >= length)


def _files(run_dir: Path, folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    for name, digest in manifest["files"].items():
        yield folder / name, digest
    for name, digest in manifest["replay"].items():
        yield run_dir / "replay" / name, digest


def _manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest, its form checked. Raises ValueError when it is damaged, UserError when its schema is unknown."""
    manifest = _read_json(folder / MANIFEST)
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int) or not is_sealed(manifest):
        raise ValueError(f"{MANIFEST} is not as it was written")
    if schema != SCHEMA:
        raise UserError(
            f"{folder} has schema {schema} and this version reads {SCHEMA}: resume with the version of dreamer-lpm "
            "that config.json names."
        )
    try:
        sound = isinstance(manifest["step"], int) and {TENSORS, PLAIN} <= set(manifest["files"]) <= _OWN
        sound = sound and all(_PIECE.fullmatch(name) for name in manifest["replay"])
        metrics_at, of_metrics = manifest["metrics"]
        sound = sound and isinstance(metrics_at, int) and metrics_at >= 0
        words = [manifest["run"], of_metrics, *manifest["files"].values(), *manifest["replay"].values()]
        sound = sound and all(isinstance(word, str) for word in words)
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"{MANIFEST} is no manifest")
    return cast(Mapping[str, Any], manifest)


_OWN = {TENSORS, PLAIN, CONFIG_FILE}


def _load(folder: Path) -> Saved:
    manifest, plain = _manifest(folder), _read_json(folder / PLAIN)
    if not isinstance(plain, dict):
        raise ValueError(f"{PLAIN} holds no settings")
    tensors = read_tensors(folder / TENSORS)
    pieces = {folder.parents[1] / "replay" / name: digest for name, digest in manifest["replay"].items()}
    return Saved(manifest["step"], tensors, plain, pieces, manifest["run"], manifest["metrics"][0])


def _read_json(path: Path) -> Any:
    if regular_size(path) > LARGEST_TEXT:
        raise ValueError(f"{path.name} is larger than it can be")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON ({type(error).__name__})") from None


def save_rows(run_dir: Path, first: int, rows: Mapping[str, np.ndarray]) -> Path:
    """Append rows ``first`` and on, field -> (rows, N, ...), as one compressed, durable piece of the replay."""
    folder = run_dir / "replay"
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(rows.values())))
    path = folder / f"rows_{first:09d}_{first + count:09d}.npz"
    scratch = path.with_suffix(".tmp")
    try:
        _write(scratch, lambda file: np.savez_compressed(file, **rows))  # type: ignore[arg-type]
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    fsync(folder)
    return path


def span(piece: Path) -> tuple[int, int]:
    """First row of a piece of the replay, and the one after its last, from its name."""
    match = _PIECE.fullmatch(piece.name)
    assert match, piece
    return int(match[1]), int(match[2])


def load_rows(path: Path, fields: Fields | None = None) -> dict[str, np.ndarray]:
    """One piece of the replay. ``fields``: shape and dtype of one row, name by name, that the piece must have.

    Raises UserError when it has others; before anything is unpacked, so that no piece takes more memory than its rows.
    Also when it is damaged.
    """
    try:
        return _load_rows(path, fields)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  whatever damaged or hostile bytes make zipfile and numpy raise
        raise UserError(f"The saved replay ({path.name}) is damaged ({' '.join(str(error).split())}).") from None


def _load_rows(path: Path, fields: Fields | None) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as piece:
        if fields is not None:
            first, last = span(path)
            want = {key: ((last - first, *shape), np.dtype(dtype)) for key, (shape, dtype) in fields.items()}
            found = {key: _header(path, key) for key in piece.files}
            for key in sorted(found.keys() | want.keys()):
                if found.get(key) != want.get(key):
                    raise UserError(
                        f"The saved replay ({path.name}) holds '{key}' as {_say(found.get(key))}, this run needs "
                        f"{_say(want.get(key))}; resume with the same settings."
                    )
        return {key: piece[key] for key in piece.files}


def _header(path: Path, field: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{field}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype


def _say(what: tuple[tuple[int, ...], np.dtype[Any]] | None) -> str:
    return "nothing" if what is None else f"{what[1]} {what[0]}"


def _write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """A new file, on the disk when this returns. Raises OSError where there is no room."""
    with path.open("wb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def fsync(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path, length: int | None = None) -> str:
    """Of the whole file, or of its first ``length`` bytes."""
    with path.open("rb") as file:
        if length is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while length > 0 and (block := file.read(min(length, 1 << 20))):
            digest.update(block)
            length -= len(block)
        return digest.hexdigest()
