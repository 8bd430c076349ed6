"""The import contract of pyproject.toml catches what it is there to catch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("noisy_tv", "envs", "report", "world", "curiosity")
MODULES = (
    "types",
    "nets",
    "replay",
    "behavior",
    "agent",
    "checkpoint",
    "evaluate",
    "train",
    "presets",
    "compare",
    "cli",
)


@pytest.fixture
def house(tmp_path: Path, root: Path) -> Path:
    """A package with the project's floors and nothing in them."""
    shutil.copy(root / "pyproject.toml", tmp_path)
    package = tmp_path / "dreamer_lpm"
    for folder in (package, *(package / name for name in PACKAGES)):
        folder.mkdir()
        (folder / "__init__.py").touch()
    for name in MODULES:
        (package / f"{name}.py").touch()
    return package


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=house.parent, capture_output=True, text=True, check=False, timeout=60)


def test_going_down_is_allowed(house: Path) -> None:
    (house / "cli.py").write_text("import torch\nfrom dreamer_lpm import train, types\n")
    (house / "evaluate.py").write_text("from dreamer_lpm.report import video\n")
    (house / "report" / "video.py").touch()
    (house / "envs" / "factory.py").write_text("from dreamer_lpm.noisy_tv import spec\n")
    (house / "noisy_tv" / "spec.py").touch()
    done = lint(house)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("agent.py", "from dreamer_lpm import train"),
        ("types.py", "import dreamer_lpm.nets"),
        ("world/__init__.py", "from dreamer_lpm import behavior"),
        ("replay.py", "from dreamer_lpm import envs"),
        ("checkpoint.py", "from dreamer_lpm import evaluate"),
        ("report/plots.py", "from dreamer_lpm import evaluate"),
        ("noisy_tv/wrapper.py", "from dreamer_lpm.types import UserError"),
        ("noisy_tv/wrapper.py", "from dreamer_lpm import nets"),
        ("noisy_tv/images.py", "import torch"),
        ("envs/vector.py", "from torch import Tensor"),
        ("report/plots.py", "import torch.nn"),
        ("helpers.py", "'''A module that nobody gave a floor.'''"),
    ],
)
def test_mistake_is_caught(house: Path, module: str, line: str) -> None:
    (house / module).write_text(line + "\n")
    done = lint(house)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_annotations_may_name_what_lies_above(house: Path) -> None:
    (house / "types.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n"
    )
    (house / "envs" / "vector.py").write_text("from dreamer_lpm.types import Tensor\n")
    done = lint(house)
    assert done.returncode == 0, done.stdout
