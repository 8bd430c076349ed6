"""What the hostile files of ``hostile.py`` found, each once more by hand."""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreamer_lpm import checkpoint
from dreamer_lpm.config import RunConfig
from dreamer_lpm.noisy_tv import NoisyTVError, cifar10
from dreamer_lpm.settings import from_plain
from dreamer_lpm.state import State
from dreamer_lpm.types import UserError
from tests.faults.conftest import RUN


def test_a_setting_whose_name_has_lines_is_told_in_one() -> None:
    with pytest.raises(UserError, match=r"^Unknown setting 'a\\nb'; known are: steps, .*\.$"):
        from_plain(RunConfig, {"a\nb": 1})


def test_a_link_whose_name_has_lines_is_told_in_one(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("a\nb")
        link.type = tarfile.SYMTYPE
        tar.addfile(link)
    with pytest.raises(NoisyTVError, match=r"neither file nor folder \('a\\nb'\)$"):
        cifar10.read_archive(tmp_path / "x.tar.gz")


def test_a_piece_of_replay_with_a_long_header_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows_000000000_000000001.npz"
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros(1, dtype=[(f"field{i}", "u1") for i in range(2000)]))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("obs.npy", file.getvalue())
    for fields in (None, {"obs": ((), np.uint8)}):
        with pytest.raises(UserError, match=r"^The saved replay \(rows_.*npz\) is damaged \(.*\)\.$"):
            checkpoint.load_rows(path, fields)


@pytest.mark.parametrize("key", ["uinteger", "has_uint32"])
def test_a_generator_with_a_number_beyond_all_bounds_does_not_fit(key: str, finished: tuple[Path, Path]) -> None:
    saved = checkpoint.load_newest(finished[0])[0]
    assert saved is not None
    state = State(RUN, None)
    state.restore(saved)
    bad = replace(saved, plain={**saved.plain, "rng": {**saved.plain["rng"], key: 2**70}})
    with pytest.raises(UserError, match=r"does not fit this run \(OverflowError\)"):
        state.restore(bad)
