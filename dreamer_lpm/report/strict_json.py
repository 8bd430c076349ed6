"""JSON that every parser reads: no ``NaN``, no ``Infinity``, numpy welcome."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from dreamer_lpm.types import UserError


def plain(value: Any) -> Any:
    """``value`` in Python's own types. NaN and the infinities become ``None`` (JSON ``null``), at any depth.

    Raises TypeError for what has no place in JSON, arrays on a device included.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: give a number, text, a list or a mapping")


def loads(text: str | bytes) -> Any:
    """What a file of somebody else's says. Raises ValueError where it is no JSON, nested without end, or holds a whole
    number beyond 64 bits.
    """
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _whole(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise ValueError("a number beyond 64 bits")
    return number


def dumps(value: Any, *, indent: int | None = None) -> str:
    """One JSON text of ``plain(value)``, keys in the order given."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def partial_of(path: Path) -> Path:
    """Where a file is written until it is whole. Raises UserError if ``path`` is a folder or a device."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, such as {path / 'FILE'}.")
    if path.exists() and not path.is_file():  # the whole file would take its place: /dev/null would be gone
        raise UserError(f"{path} is no file that could be written anew; name one.")
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Put at ``path`` what ``fill`` writes: readers and crashes meet the old file or the new one, never half of one.

    On the disk when this returns. Raises UserError if ``path`` is a folder or a device.
    """
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """``text`` as :func:`write_whole` writes, in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))  # of names that are no UTF-8


def write_json(path: Path, value: Any) -> None:
    """``value`` as :func:`write_whole` writes, for eyes too. NaN and the infinities become ``null``."""
    write_atomically(path, dumps(value, indent=2) + "\n")


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` in Python's own types, with the SHA-256 of all of it under "sha256": what is changed later shows."""
    body = plain(data)
    return {**body, _SEAL: _digest(body)}


def is_sealed(data: Mapping[str, Any]) -> bool:
    """Whether ``data``, as read back, is what was sealed, however it is indented and ordered."""
    return data.get(_SEAL) == _digest({key: value for key, value in data.items() if key != _SEAL})


_SEAL = "sha256"


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
