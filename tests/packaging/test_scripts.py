"""The shell scripts are linted like the Python."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("script", ["start.sh", ".ci/run"])
def test_script_is_executable_and_clean(script: str, root: Path) -> None:
    assert (root / script).stat().st_mode & 0o111
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert shellcheck, "shellcheck is part of the dev extra: pip install -e '.[dev]'"
    checked = subprocess.run([shellcheck, script], cwd=root, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
