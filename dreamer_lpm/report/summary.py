"""The last word of a run: ``summary.json``, and what it takes to repeat the run (versions, revision of the source)."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import dreamer_lpm

CONFIG_FILE, SUMMARY_FILE = "config.json", "summary.json"  # of a run: before it, and after

# What a result can depend on.
PACKAGES = (
    "torch",
    "numpy",
    "gymnasium",
    "pygame-ce",
    "opencv-python-headless",
    "scikit-image",
    "imageio-ffmpeg",
    "matplotlib",
    "tensorboard",
    "wandb",
)


def versions() -> dict[str, str]:
    """Versions of Python, the platform, this package and those installed packages that a result can depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found["dreamer-lpm"] = dreamer_lpm.__version__
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed played no part
    return found


@cache
def own_revision() -> str | None:
    """That of this code, as it was when the process first asked: what is committed later plays no part in it."""
    return git_revision()


def git_revision(package: Path = Path(dreamer_lpm.__file__).parent) -> str | None:
    """Commit of the checkout that ``package`` (a folder) lies at the top of, with "+dirty" if its files differ.

    None for an installed copy, even one whose virtual environment lies inside some other project's checkout, and where
    git is missing or refuses.
    """
    root = _git(package, "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != package.resolve().parent:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    if commit is None:
        return None
    return f"{commit}+dirty" if changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
