"""The locked versions are those that pyproject.toml allows, all of them, each with its hashes."""

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("ci.lock", "torch-cpu.lock", "torch-pypi.lock")
CUDA = ("nvidia-", "cuda-", "triton")  # what torch's CUDA build brings, and CI does not use


def read(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Package -> version and SHA-256s of a lock file."""
    locked = {}
    text = re.sub(r"(?m)^#.*\n", "", path.read_text(encoding="utf-8")).replace("\\\n", " ")
    for line in text.splitlines():
        match = re.fullmatch(r"([\w.-]+)==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        assert match, f"{path.name}: {line[:80]}"
        locked[canonicalize_name(match[1])] = (match[2], re.findall(r"[0-9a-f]{64}", match[3]))
    return locked


@pytest.fixture(scope="module")
def locked(root: Path) -> dict[str, tuple[str, list[str]]]:
    return {name: what for lock in LOCKS for name, what in read(root / "requirements" / lock).items()}


def required(project: dict[str, Any]) -> list[Requirement]:
    """What `.[dev]` asks for, its own extras opened, and what builds it."""
    extras = project["project"]["optional-dependencies"]
    waiting = [*project["project"]["dependencies"], *extras["dev"], *project["build-system"]["requires"]]
    found = []
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name == project["project"]["name"]:
            waiting += [line for extra in requirement.extras for line in extras[extra]]
        else:
            found.append(requirement)
    return found


def test_everything_that_pyproject_asks_for_is_locked_at_a_version_that_it_allows(
    locked: dict[str, tuple[str, list[str]]], project: dict[str, Any]
) -> None:
    names = {canonicalize_name(requirement.name) for requirement in required(project)}
    assert {"torch", "wandb", "pytest", "hatchling"} <= names, "the tests read pyproject.toml wrongly"
    assert names <= locked.keys(), "make lock"
    for requirement in required(project):
        version = locked[canonicalize_name(requirement.name)][0]
        assert version in requirement.specifier, f"{requirement} is locked at {version}: make lock"


def test_what_is_locked_asks_for_nothing_that_is_not(locked: dict[str, tuple[str, list[str]]]) -> None:
    """With `--no-deps` pip would not notice. Asked of what is installed here, where its version is the locked one."""
    asked = 0
    for name, (version, _) in locked.items():
        if not is_installed(name, version):
            continue
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                asked += 1
                known = canonicalize_name(requirement.name)
                assert known in locked or known.startswith(CUDA), f"{name} needs {line}: make lock"
    assert asked > 50


def is_installed(name: str, version: str) -> bool:
    try:
        return metadata.version(name).split("+")[0] == version
    except metadata.PackageNotFoundError:
        return False


def test_both_builds_of_torch_are_the_same_version(root: Path) -> None:
    cpu, pypi = (read(root / "requirements" / f"torch-{build}.lock") for build in ("cpu", "pypi"))
    assert cpu["torch"][0] == f"{pypi['torch'][0]}+cpu"
    assert cpu["torch"][1] != pypi["torch"][1]


def test_ci_installs_from_the_locks_before_it_checks(root: Path) -> None:
    commands = (root / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    makes = [line for line in commands if line.startswith("make ")]
    assert makes[0] == "make locked"
    assert makes[1:] == ["make lint", "make slow", "make test"]


def test_locks_name_no_place(root: Path) -> None:
    """Neither an index nor a file of the machine on which they were written."""
    for lock in LOCKS:
        text = (root / "requirements" / lock).read_text(encoding="utf-8")
        assert not re.search(r"://|(?m:^-)| @ |/(?:opt|home|usr|root|tmp)/", text)
