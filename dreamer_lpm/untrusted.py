"""Tensors from a file that a stranger may have made: no code of it runs, and it takes no more memory than it has bytes.

``torch.load(weights_only=True)`` keeps code out. It does not keep out a file that claims to hold more than it does.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class NotTensors(ValueError):  # noqa: N818  as in "this is not tensors"
    """The file is damaged, or something else than ``torch.save`` of plain data. The message says how."""


def read_tensors(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote: a dict of tensors, numbers, text, lists and dicts.

    Raises FileNotFoundError where there is no such file, and NotTensors.
    """
    size = regular_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(p.compress_type != zipfile.ZIP_STORED for p in parts) or sum(p.file_size for p in parts) > size:
                raise NotTensors(f"{path.name} is packed tighter than torch packs")
            if archive.testzip() is not None:  # torch writes checksums, and does not look at them
                raise NotTensors(f"{path.name} is not as it was written")
        data = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(data, dict):
            raise NotTensors(f"{path.name} holds no dict")
        if sum(t.numel() * t.element_size() for t in tensors_in(data)) > size:
            raise NotTensors(f"{path.name} claims larger tensors than it holds")
    except NotTensors:
        raise
    except Exception as error:  # noqa: BLE001  whatever damaged or hostile bytes make zipfile and torch raise
        raise NotTensors(f"{path.name} cannot be read ({type(error).__name__})") from None
    return data


def regular_size(path: Path) -> int:
    """Bytes of a file. Raises FileNotFoundError, and NotTensors for links, devices and pipes, which may never end."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise NotTensors(f"{path.name} is no regular file")
    return status.st_size


def tensors_in(data: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts, lists and tuples, each once, however often and deeply it is wrapped."""
    waiting, met = [data], set[int]()
    while waiting:
        item = waiting.pop()
        if id(item) in met:
            continue
        met.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)


def check_like(value: Any, model: Any, where: str) -> None:
    """Raises NotTensors, naming the place, unless ``value`` is built as ``model`` is.

    That is: the same keys and lengths, tensors of the same shape and dtype, numbers and texts of the same type.
    """
    if isinstance(model, Tensor):
        same = isinstance(value, Tensor) and (value.shape, value.dtype) == (model.shape, model.dtype)
    elif isinstance(model, dict):
        same = isinstance(value, dict) and value.keys() == model.keys()
    elif isinstance(model, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(model)
    else:
        same = type(value) is type(model)
    if not same:
        raise NotTensors(f"{where} is not what it must be")
    if isinstance(model, dict | list | tuple):
        for key in model if isinstance(model, dict) else range(len(model)):
            check_like(value[key], model[key], f"{where}.{key}")
