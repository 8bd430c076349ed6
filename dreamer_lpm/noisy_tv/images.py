"""Where the pictures of the Noisy TV come from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dreamer_lpm.noisy_tv import cifar10
from dreamer_lpm.noisy_tv.errors import NoisyTVError
from dreamer_lpm.noisy_tv.lazy import require
from dreamer_lpm.noisy_tv.spec import FOLDER, SOURCES

Picture = NDArray[np.uint8]  # (h, w, 3), 0..255
Pictures = Sequence[Picture] | Picture  # of any sizes, or (N, h, w, 3)

# The colour photographs inside scikit-image's wheel, one of each scene (of the stereo pair only the left eye).
PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
CROP = 32
# Of 255: interquartile range of a crop's pixels, mean of its channels. Black sky, plain walls and skin look all alike:
# with them, two crops in three would be nearly the same dull picture and the "noise" could be predicted. Quartiles and
# not the standard deviation, which a single star on black sky suffices to raise. About 1,220 of 3,976 crops pass.
LEAST_SPREAD = 12.0
FOLDER_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# Of a file with whatever suffix. Pillow has others, one of which runs another program (EPS: Ghostscript).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_MOST_PIXELS = 50_000_000  # a few kilobytes may claim to be gigabytes
_LARGEST_SIDE = 64  # of a folder's pictures, roughly: the frames they are shown in are no larger as a rule
_POOL_SEED = 0x9001
_POOL_TRIES = 100  # draws per picture before a source counts as exhausted; the last of K distinct needs about K


class ImageSource(Protocol):
    """Draws a picture, uint8 of ``shape`` (H, W, 3), from the generator it is handed and from nothing else."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> Picture: ...


@dataclass(frozen=True)
class TVImages:
    """What the TV really shows, for the records of a run."""

    requested: str
    used: str
    count: int | None  # distinct pictures; None: without limit
    reason: str  # one sentence


@dataclass(frozen=True, eq=False)
class Collection:
    """Draws one of ``pictures`` (each uint8 (h, w, 3)) uniformly, and repeats or drops pixels to fit the shape.

    ``file``: where they lie on the disk, as ``np.save`` wrote them. Another process opens it and is sent no pictures.
    """

    pictures: Pictures
    file: str | None = None

    def __call__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> Picture:
        return self.fit(self.pick(rng), shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_opened, (self.file,)) if self.file else (Collection, (self.pictures,))

    def pick(self, rng: np.random.Generator) -> int:
        """The index of one of the pictures."""
        return int(rng.integers(len(self.pictures)))

    def fit(self, index: int, shape: tuple[int, int, int]) -> Picture:
        """That picture, repeated or thinned out to ``shape``: an array of its own."""
        picture = self.pictures[index]
        rows = np.arange(shape[0]) * picture.shape[0] // shape[0]
        columns = np.arange(shape[1]) * picture.shape[1] // shape[1]
        return np.asarray(picture[rows[:, None], columns])


def _opened(file: str) -> Collection:
    return Collection(np.load(file, mmap_mode="r", allow_pickle=False), file)


def static(rng: np.random.Generator, shape: tuple[int, int, int]) -> Picture:
    """Every pixel and channel uniform on 0..255."""
    return rng.integers(0, 256, shape, np.uint8)


class Pool:
    """``size`` distinct pictures of ``images``, the same ones in every env, episode and run, drawn uniformly.

    All of them are kept in memory, but for those of a Collection, which are there already. Raises NoisyTVError when the
    source has fewer: at once where it says how many it has, else when they are first drawn.
    """

    def __init__(self, images: ImageSource, size: int) -> None:
        if isinstance(images, Collection) and len(images.pictures) < size:
            raise _exhausted(len(images.pictures), size)
        self._images = images
        self._size = size
        self._chosen: dict[tuple[int, int, int], list[Callable[[], Picture]]] = {}

    def __call__(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> Picture:
        if shape not in self._chosen:
            self._chosen[shape] = self._choose(shape)
        return self._chosen[shape][rng.integers(self._size)]()

    def _choose(self, shape: tuple[int, int, int]) -> list[Callable[[], Picture]]:
        rng = np.random.default_rng(_POOL_SEED)
        chosen: dict[bytes, Callable[[], Picture]] = {}
        for get in self._draws(rng, shape):
            chosen.setdefault(blake2b(get().tobytes()).digest(), get)
            if len(chosen) == self._size:
                return list(chosen.values())
        raise _exhausted(len(chosen), self._size)

    def _draws(self, rng: np.random.Generator, shape: tuple[int, int, int]) -> Iterator[Callable[[], Picture]]:
        seen = set[int]()
        for _ in range(_POOL_TRIES * self._size):
            if not isinstance(self._images, Collection):
                picture = np.array(self._images(rng, shape))  # a copy, for a source may draw into one array every time
                yield partial(np.asarray, picture)
            elif (index := self._images.pick(rng)) not in seen:  # one seen before would only cost the time to draw it
                seen.add(index)
                yield partial(self._images.fit, index, shape)


def _exhausted(found: int, size: int) -> NoisyTVError:
    return NoisyTVError(
        f"the TV source has {found} distinct pictures, the pool asks for {size}: use a smaller pool or another source"
    )


def pooled(images: ImageSource, size: int | None) -> ImageSource:
    """A pool of ``images``; None asks for no pool. One that is a pool stays it, so that all who have it share it."""
    return images if size is None or isinstance(images, Pool) else Pool(images, size)


def load_images(
    source: str, data_dir: Path | None = None, *, timeout: float = 5.0, archive: cifar10.Archive = cifar10.OFFICIAL
) -> tuple[ImageSource, TVImages]:
    """The pictures that ``TVSpec.source`` names, and the record of what was really found.

    ``data_dir`` caches CIFAR-10 (None: the environment variable DREAMER_LPM_DATA, else the user's cache folder).
    ``timeout``: seconds within which its server must answer, and the longest silence during the download.
    Raises NoisyTVError, naming the fix, when what was asked for by name cannot be had.
    """
    if source == "auto":
        return _auto(data_dir, timeout, archive)
    if source == "cifar10":
        pictures, how = cifar10.load(data_dir, timeout, archive)
        return _cached(pictures), TVImages(source, source, len(pictures), f"CIFAR-10 {how}.")
    if source == "static":
        return static, TVImages(source, source, None, "Uniform noise was asked for by name.")
    offline = _offline(source)
    return Collection(offline), TVImages(source, source, len(offline), f"{source} was asked for by name.")


def _auto(data_dir: Path | None, timeout: float, archive: cifar10.Archive) -> tuple[ImageSource, TVImages]:
    try:
        pictures, how = cifar10.load(data_dir, timeout, archive)
    except NoisyTVError as error:
        photos = _photos()
        reason = f"Crops of scikit-image's photographs stand in: {error}."
        return Collection(photos), TVImages("auto", "photos", len(photos), reason)
    return _cached(pictures), TVImages("auto", "cifar10", len(pictures), f"CIFAR-10 {how}.")


def _cached(pictures: Picture) -> Collection:
    return Collection(pictures, str(pictures.filename) if isinstance(pictures, np.memmap) else None)


def _offline(source: str) -> Pictures:
    if source == "photos":
        return _photos()
    if source == "digits":
        return _digits()
    if source.startswith(FOLDER):
        return _folder(cifar10.at_home(Path(source.removeprefix(FOLDER))))
    raise NoisyTVError(f"unknown TV source {source!r}: use one of {', '.join(SOURCES)} or {FOLDER}PATH")


def _photos() -> Picture:
    """Disjoint crops, (N, 32, 32, 3), of the photographs that scikit-image ships; never one it would download."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise NoisyTVError("the photographs come with scikit-image, which is missing: pip install scikit-image")
    shipped = [path for name in PHOTOS if (path := Path(package.origin).parent / "data" / name).is_file()]
    if not shipped:
        raise NoisyTVError("this scikit-image ships no colour photographs: pip install --upgrade scikit-image")
    crops = np.concatenate([_crops(_read_picture(path)) for path in shipped])
    return np.asarray(crops[spread(crops) >= LEAST_SPREAD])


def spread(pictures: Picture) -> NDArray[np.float64]:
    """How lively each of ``pictures`` (N, h, w, 3) is, (N,): see LEAST_SPREAD."""
    lower, upper = np.percentile(pictures, (25, 75), axis=(1, 2))
    return np.asarray((upper - lower).mean(axis=-1))


def _crops(photo: Picture) -> Picture:
    rows, columns = photo.shape[0] // CROP, photo.shape[1] // CROP
    tiles: Picture = photo[: rows * CROP, : columns * CROP].reshape(rows, CROP, columns, CROP, 3)
    crops: Picture = tiles.swapaxes(1, 2).reshape(-1, CROP, CROP, 3)
    return crops


def _digits() -> Picture:
    """scikit-learn's 1,797 handwritten digits in grey, (N, 8, 8, 3)."""
    grey = require("sklearn.datasets", "scikit-learn").load_digits().images  # 0..16
    return np.asarray(np.repeat(grey[..., None] * (255 / 16), 3, axis=-1), np.uint8)


def _folder(folder: Path) -> list[Picture]:
    if not folder.is_dir():
        raise NoisyTVError(f"there is no folder {folder}: give an existing one as {FOLDER}PATH")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in FOLDER_SUFFIXES)
    if not files:
        raise NoisyTVError(f"folder {folder} holds no pictures: put {', '.join(FOLDER_SUFFIXES)} files there")
    return [_shrink(_read_picture(path)) for path in files]


def _shrink(picture: Picture) -> Picture:
    """Averages whole blocks, so that fine detail of a large picture does not turn into static."""
    block = max(1, min(picture.shape[:2]) // _LARGEST_SIDE)
    height, width = picture.shape[0] // block, picture.shape[1] // block
    blocks = picture[: height * block, : width * block].reshape(height, block, width, block, 3)
    return np.asarray(blocks.mean(axis=(1, 3)).round(), np.uint8)


def _read_picture(path: Path) -> Picture:
    pillow = require("PIL.Image", "pillow")
    try:
        if not path.is_file():  # a pipe may never end
            raise ValueError("no regular file")
        with pillow.open(path, formats=_FORMATS) as picture:  # of an animation, the first
            if picture.width * picture.height > _MOST_PIXELS:
                raise ValueError(f"more than {_MOST_PIXELS:,} pixels")
            if picture.mode.startswith("I"):  # 16 bits of grey, which "RGB" would cut off at 255
                return np.asarray(np.repeat(np.asarray(picture)[..., None] >> 8, 3, axis=-1), np.uint8)
            return np.asarray(picture.convert("RGB"), np.uint8)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NoisyTVError(f"{path} is not a picture that can be read ({reason}): mend it or take it away") from error
