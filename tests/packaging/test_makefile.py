"""`make` from a bare machine, with a Python that only writes down what it is asked to install and to run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# `python -m venv DIR` makes an environment whose python records its calls; anything else is answered by the real one.
FAKE_PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
  mkdir -p "$3/bin"
  printf '#!/bin/sh\\necho "$*" >> "%s"\\nexit "${{PYTHON_CODE:-0}}"\\n' "{calls}" > "$3/bin/python3"
  chmod +x "$3/bin/python3"
  touch "$3/bin/pip"
else
  exec "{python}" "$@"
fi
"""

Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make(tmp_path: Path, root: Path) -> Make:
    """Runs make on the project's Makefile with an environment folder of its own."""
    python = tmp_path / "fake-python"
    python.write_text(FAKE_PYTHON.format(calls=tmp_path / "calls", python=sys.executable))
    python.chmod(0o755)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTEST_ARGS"))
        }
        return subprocess.run(
            ["make", "-C", str(root), f"VENV={tmp_path / 'venv'}", f"PYTHON={python}", *arguments],
            env=inherited | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text(encoding="utf-8").splitlines()


def test_demo_installs_once_and_trains_each_time(make: Make, tmp_path: Path) -> None:
    assert make("demo").returncode == 0
    assert make("demo", "ARGS=--seed 3").returncode == 0
    assert calls(tmp_path) == [
        "-m pip install -e .",
        "train_lpm.py --steps 10000 --noisy-tv",
        "train_lpm.py --steps 10000 --noisy-tv --seed 3",
    ]


def test_story_needs_no_more_than_the_demo(make: Make, tmp_path: Path) -> None:
    assert make("demo").returncode == 0
    assert make("story", "ARGS=--out elsewhere").returncode == 0
    assert calls(tmp_path)[1:] == ["train_lpm.py --steps 10000 --noisy-tv", "benchmarks/story.py --out elsewhere"]


def test_test_installs_the_developers_tools_and_demo_needs_nothing_more(make: Make, tmp_path: Path) -> None:
    assert make("test", "PYTEST_ARGS=-x").returncode == 0
    assert make("demo").returncode == 0
    assert calls(tmp_path) == [
        "-m pip install -e .[dev]",
        "-m pytest -n 2 -x",
        "train_lpm.py --steps 10000 --noisy-tv",
    ]


def test_locked_installs_by_hash_and_what_comes_after_finds_it_done(make: Make, tmp_path: Path) -> None:
    assert make("locked").returncode == 0
    assert make("test").returncode == 0
    assert make("demo").returncode == 0
    assert calls(tmp_path) == [
        "-m pip install --no-deps --require-hashes -r requirements/ci.lock",
        "-m pip install --no-deps --require-hashes -r requirements/torch-cpu.lock",
        "-m pip install --no-build-isolation -e .[dev]",
        "-m pytest -n 2",
        "train_lpm.py --steps 10000 --noisy-tv",
    ]


def test_pip_arguments_are_handed_on(make: Make, tmp_path: Path) -> None:
    assert make("install", "PIP_ARGS=--extra-index-url https://example.org/cpu").returncode == 0
    assert calls(tmp_path) == ["-m pip install --extra-index-url https://example.org/cpu -e ."]


def test_failed_install_is_tried_again(make: Make, tmp_path: Path) -> None:
    assert make("install", PYTHON_CODE="1").returncode != 0
    assert make("install").returncode == 0
    assert calls(tmp_path) == ["-m pip install -e ."] * 2


@pytest.mark.parametrize(("code", "passes"), [("0", True), ("5", True), ("1", False), ("2", False)])
def test_slow_forgives_only_that_there_is_no_slow_test(make: Make, code: str, passes: bool) -> None:
    assert make("dev").returncode == 0
    assert (make("slow", PYTHON_CODE=code).returncode == 0) is passes


def test_python_missing(make: Make) -> None:
    done = make("demo", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "No no-such-python here: install Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize(
    ("pretence", "message"),
    [
        ("sys.version_info = (3, 10, 4)", "needs Python 3.11 or newer, and this is 3.10"),
        ("sys.modules['ensurepip'] = None", "sudo apt install python3-venv"),
    ],
)
def test_python_unfit(make: Make, tmp_path: Path, pretence: str, message: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{pretence}\n")
    done = make("demo", PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_command(make: Make, root: Path) -> None:
    lines = (root / "Makefile").read_text(encoding="utf-8").splitlines()
    [phony] = [line.split()[1:] for line in lines if line.startswith(".PHONY:")]
    shown = make("help").stdout
    assert [name for name in phony if f"make {name} " not in shown] == []
