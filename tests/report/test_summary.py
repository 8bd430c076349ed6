"""summary.json, versions, and the revision of the source."""

import subprocess
import sys
from pathlib import Path

import pytest

import dreamer_lpm
from dreamer_lpm.report import summary
from dreamer_lpm.report.summary import git_revision, own_revision, versions


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A committed checkout with a package at its top."""
    folder = tmp_path / "checkout" / "dreamer_lpm"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    return folder


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["dreamer-lpm"] == dreamer_lpm.__version__
    assert {"platform", "torch", "numpy", "gymnasium"} <= found.keys()


def test_revision_is_the_commit_and_says_when_the_package_differs(package: Path) -> None:
    commit = git(package, "rev-parse", "HEAD")
    assert git_revision(package) == commit
    (package.parent / "notes.txt").write_text("a note beside the package changes no result")
    assert git_revision(package) == commit
    (package / "new.py").write_text("x = 1\n")
    assert git_revision(package) == f"{commit}+dirty"


def test_what_is_committed_while_a_process_runs_is_not_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    own_revision.cache_clear()
    monkeypatch.setattr(summary, "git_revision", lambda: "at its start")
    assert own_revision() == "at its start"
    monkeypatch.setattr(summary, "git_revision", lambda: "later")
    assert own_revision() == "at its start"
    own_revision.cache_clear()


def test_no_revision_outside_a_checkout(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None


def test_no_revision_from_some_other_projects_checkout(package: Path) -> None:
    installed = package.parent / ".venv" / "site-packages" / "dreamer_lpm"
    installed.mkdir(parents=True)
    assert git_revision(installed) is None


def test_no_revision_without_git(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(package))
    assert git_revision(package) is None


def test_no_revision_before_the_first_commit(tmp_path: Path) -> None:
    folder = tmp_path / "dreamer_lpm"
    folder.mkdir()
    git(tmp_path, "init", "-q")
    assert git_revision(folder) is None
