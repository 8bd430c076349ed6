"""Checkpoints: written beside, verified, rotated. A crash at any point leaves the one before it whole.

    runs/<name>/checkpoints/step_000010000/   manifest.json, state.pt, state.json
    runs/<name>/replay/rows_000000000_000005001.npz   append-only pieces of the replay, named by the manifest

The manifest carries the schema version and the SHA-256 of every file the checkpoint needs. Nothing here unpickles code.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamer_lpm.types import UserError

SCHEMA = 1
KEEP = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds: ``tensors`` (nested dicts and lists of tensors and numbers) and ``plain`` (JSON)."""

    step: int
    tensors: dict[str, Any]
    plain: dict[str, Any]
    replay: list[Path]


def save(run_dir: Path, step: int, tensors: Mapping[str, Any], plain: Mapping[str, Any], replay: list[Path]) -> Path:
    """Write the checkpoint of ``step``, make it durable, then forget the oldest. Returns its folder."""
    root = run_dir / "checkpoints"
    final, scratch = root / f"step_{step:09d}", root / f".step_{step:09d}.{os.getpid()}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        torch.save(dict(tensors), scratch / "state.pt")
        (scratch / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        files = {name: _sha256(scratch / name) for name in ("state.pt", "state.json")}
        pieces = {path.name: _sha256(path) for path in replay}
        manifest = {"schema": SCHEMA, "step": step, "files": files, "replay": pieces}
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in scratch.iterdir():
            fsync(path)
        fsync(scratch)
        shutil.rmtree(final, ignore_errors=True)
        scratch.rename(final)
        fsync(root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in checkpoints(run_dir)[:-KEEP]:
        shutil.rmtree(old)
    return final


def checkpoints(run_dir: Path) -> list[Path]:
    """Folders of the complete checkpoints, oldest first (a half-written one still has its scratch name)."""
    return sorted((run_dir / "checkpoints").glob("step_*"))


def load_newest(run_dir: Path) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint whose every file is as it was written, and what was wrong with newer ones.

    None where nothing was saved yet. Raises UserError when all are damaged, or the newest is of another schema.
    """
    damaged: list[str] = []
    for folder in reversed(checkpoints(run_dir)):
        try:
            return _load(run_dir, folder), damaged
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
            damaged.append(f"{folder.name}: {error}")
    if damaged:
        raise UserError(
            f"Every checkpoint of {run_dir} is damaged; start a new run under another name ({'; '.join(damaged)})."
        )
    return None, []


def _load(run_dir: Path, folder: Path) -> Saved:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["schema"] != SCHEMA:
        raise UserError(
            f"{folder} has schema {manifest['schema']} and this version reads {SCHEMA}: resume with the version of "
            "dreamer-lpm that config.json names."
        )
    pieces = {run_dir / "replay" / name: digest for name, digest in manifest["replay"].items()}
    for path, digest in {**{folder / name: d for name, d in manifest["files"].items()}, **pieces}.items():
        if _sha256(path) != digest:
            raise ValueError(f"{path.name} is not as it was written (SHA-256 differs)")
    tensors = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Saved(int(manifest["step"]), tensors, plain, list(pieces))


def save_rows(run_dir: Path, first: int, rows: Mapping[str, np.ndarray]) -> Path:
    """Append rows ``first`` and on, field -> (rows, N, ...), as one compressed, durable piece of the replay."""
    folder = run_dir / "replay"
    folder.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(rows.values())))
    path = folder / f"rows_{first:09d}_{first + count:09d}.npz"
    scratch = path.with_suffix(".tmp")
    with scratch.open("wb") as file:
        np.savez_compressed(file, **rows)  # type: ignore[arg-type]
    fsync(scratch)
    scratch.replace(path)
    fsync(folder)
    return path


def load_rows(path: Path) -> dict[str, np.ndarray]:
    """One piece of the replay."""
    with np.load(path, allow_pickle=False) as piece:
        return {name: piece[name] for name in piece.files}


def fsync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
