"""CIFAR-10's 50,000 training pictures: fetched with a checksum, read without pickle, cached as one array.

The archive's records are 3,073 bytes each: a label 0..9, then 1,024 bytes of red, of green and of blue, row by row.
Nothing of the archive is ever unpacked to disk.
"""

from __future__ import annotations

import os
import queue
import sys
import tarfile
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamer_lpm.noisy_tv.errors import NoisyTVError
from dreamer_lpm.noisy_tv.lazy import require

ARCHIVE_NAME = "cifar-10-binary.tar.gz"
DATA_DIR_VARIABLE = "DREAMER_LPM_DATA"
RECORD = 1 + 3 * 32 * 32  # bytes
LARGEST_BATCH = 10_000 * RECORD  # bytes of one data_batch_*.bin
CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class Archive:
    """An archive in CIFAR-10's binary format: where it is served, its SHA-256 in hex, its size in bytes."""

    url: str
    sha256: str
    size: int


OFFICIAL = Archive(
    url=f"https://www.cs.toronto.edu/~kriz/{ARCHIVE_NAME}",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    size=170_052_171,
)


def load(data_dir: Path | None, timeout: float, archive: Archive = OFFICIAL) -> tuple[NDArray[np.uint8], str]:
    """The pictures, uint8 (N, 32, 32, 3), and how they were had ("was found in ...", "was downloaded from ...").

    From the cache if it is there, else from an archive that lies in ``data_dir``, else from the server, which must
    answer within ``timeout`` seconds and never be silent for longer. Raises NoisyTVError naming the fix.
    """
    folder = _data_dir(data_dir)
    cache = _cache(folder, archive)
    pictures = _read_cache(cache)
    if pictures is not None:
        return pictures, f"was found in {cache}"
    try:
        how = _fetch(archive, folder, timeout)
        pictures = read_archive(folder / ARCHIVE_NAME)
    except (OSError, NoisyTVError) as why:
        raise NoisyTVError(
            f"CIFAR-10 is not to be had: {why}; to get it, go online or put {archive.url} into {folder}"
        ) from why
    with suppress(OSError):  # a folder of somebody else, a full disk: then they are unpacked again the next time
        _write_cache(cache, pictures)
    cached = _read_cache(cache)  # in place of the array in memory, for all processes share it
    return pictures if cached is None else cached, how


def at_hand(data_dir: Path | None, archive: Archive = OFFICIAL) -> Path | None:
    """The file that ``load`` would read without going online: its cache, or the archive (not verified yet)."""
    folder = _data_dir(data_dir)
    paths = (_cache(folder, archive), folder / ARCHIVE_NAME)
    return next((path for path in paths if path.is_file()), None)


def at_home(path: Path) -> Path:
    """``~`` and ``~user`` as the folder meant. Raises NoisyTVError if there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise NoisyTVError(f"{path} is in the home of nobody known here: give the whole path") from error


def read_archive(path: Path) -> NDArray[np.uint8]:
    """The pictures of all ``data_batch_*.bin``, uint8 (N, 32, 32, 3), in the order of their names.

    Raises NoisyTVError when the archive is damaged, or holds links or names that lead out of it.
    """
    batches: dict[str, NDArray[np.uint8]] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = _checked_name(member)
                if name.startswith("data_batch_") and name.endswith(".bin"):
                    batches[name] = _read_batch(tar, member)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise NoisyTVError(f"the archive {path} is damaged ({error})") from error
    if not batches:
        raise NoisyTVError(f"the archive {path} holds no data_batch_*.bin")
    return np.concatenate([batches[name] for name in sorted(batches)])


def _cache(folder: Path, archive: Archive) -> Path:
    return folder / f"cifar10-{archive.sha256[:12]}.npy"


def _data_dir(data_dir: Path | None) -> Path:
    if data_dir is not None:
        return at_home(Path(data_dir))
    named = os.environ.get(DATA_DIR_VARIABLE)
    return at_home(Path(named)) if named else Path(require("pooch", "pooch").os_cache("dreamer-lpm"))


def _fetch(archive: Archive, folder: Path, timeout: float) -> str:
    """Sees to it that ``folder`` holds the true archive. pooch checks its SHA-256 before it takes its final name."""
    pooch = require("pooch", "pooch")
    path = folder / ARCHIVE_NAME
    there = path.is_file()
    if there and pooch.file_hash(str(path)) == archive.sha256:
        return f"was read from {path}"
    try:
        _await_answer(archive.url, timeout)
    except NoisyTVError as error:
        if there:
            raise NoisyTVError(f"{path} is not the true archive (its SHA-256 differs), and {error}") from error
        raise
    downloader = pooch.HTTPDownloader(progressbar=_Progress(archive.size), timeout=timeout, chunk_size=CHUNK)
    try:
        pooch.retrieve(archive.url, f"sha256:{archive.sha256}", ARCHIVE_NAME, folder, downloader=downloader)
    except NoisyTVError:
        raise
    except ValueError as error:  # pooch's mismatch of hashes, in several lines
        raise NoisyTVError(f"what {archive.url} serves is not the true archive (its SHA-256 differs)") from error
    return f"was downloaded from {archive.url}"


def _await_answer(url: str, timeout: float) -> None:
    """Asks for the header alone. In a thread, because looking up a host name heeds no time limit."""
    require("requests", "pooch")  # pooch would load it in the thread, at the cost of the server's time
    downloader = require("pooch", "pooch").HTTPDownloader(timeout=timeout)
    answers: queue.SimpleQueue[bool | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(downloader(url, None, None, check_only=True))
        except OSError as error:  # the base of every error of requests
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise NoisyTVError(f"{url} did not answer within {timeout:g} s") from None
    if isinstance(answer, OSError):
        raise NoisyTVError(f"{url} cannot be reached ({type(answer).__name__})") from answer
    if not answer:
        raise NoisyTVError(f"there is nothing at {url}")


class _Progress:
    """pooch's progress bar: a line on a terminal, silence elsewhere, and a stop to what outgrows ``size``."""

    def __init__(self, size: int) -> None:
        self.total = 0  # set by pooch from the header; the server's word, so not relied upon
        self._size = size
        self._done = 0
        self._shown = sys.stderr.isatty()

    def update(self, count: int) -> None:
        self._done += count
        if self._done > self._size + CHUNK:  # pooch counts whole chunks
            raise NoisyTVError(f"the server sends more than the archive's {self._size:,} bytes")
        if self._shown:
            done = min(self._done, self._size)
            print(f"\rCIFAR-10: {done / 1e6:.1f} of {self._size / 1e6:.1f} MB", end="", file=sys.stderr, flush=True)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        if self._shown:
            print(file=sys.stderr)


def _checked_name(member: tarfile.TarInfo) -> str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise NoisyTVError(f"the archive names a file outside itself ({member.name!r})")
    if not (member.isfile() or member.isdir()):
        raise NoisyTVError(f"the archive holds something that is neither file nor folder ({member.name!r})")
    return path.name


def _read_batch(tar: tarfile.TarFile, member: tarfile.TarInfo) -> NDArray[np.uint8]:
    if member.size % RECORD or not 0 < member.size <= LARGEST_BATCH:
        raise NoisyTVError(f"{member.name!r} in the archive has {member.size:,} bytes, not 1 to 10,000 records")
    file = tar.extractfile(member)
    if file is None:
        raise NoisyTVError(f"{member.name!r} in the archive is not a file")
    records = np.frombuffer(file.read(), np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise NoisyTVError(f"{member.name!r} in the archive has labels beyond 9")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _read_cache(path: Path) -> NDArray[np.uint8] | None:
    """The cached pictures, left on disk and shared by all processes that open them; None if there are none."""
    try:
        pictures: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(pictures, np.ndarray):  # an archive of several, which NumPy reads whatever its name
        return None
    return pictures if pictures.dtype == np.uint8 and pictures.shape[1:] == (32, 32, 3) and len(pictures) else None


def _write_cache(path: Path, pictures: NDArray[np.uint8]) -> None:
    """All or nothing: what is interrupted never bears the final name."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            np.save(file, np.ascontiguousarray(pictures), allow_pickle=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
