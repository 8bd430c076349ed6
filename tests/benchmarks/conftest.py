"""The testbeds are scripts: they are imported from their folder, as Python does when it runs one."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def results() -> Path:
    """Where the committed results lie."""
    return SCRIPTS / "results"


@pytest.fixture
def page() -> str:
    """The page that tells of them."""
    return (SCRIPTS.parent / "docs" / "testbeds.md").read_text(encoding="utf-8")


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("digits")


@pytest.fixture
def mountain_car(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Rollouts of 8 steps, so that a life takes a fraction of a second."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = import_module("mountain_car")
    monkeypatch.setattr(module, "STEPS", 8)
    return module


@pytest.fixture
def testbed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("testbed")
