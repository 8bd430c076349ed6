"""The testbeds are scripts: they are imported from their folder, as Python does when it runs one."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from dreamer_lpm.curiosity import REGISTRY
from tests.tiny_run import TINY

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
def error_spaces(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Runs with the smallest of agents, of which a second is enough; no other test sees its bonus."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = import_module("error_spaces")
    monkeypatch.setitem(REGISTRY, "onlookers", module.Onlookers)
    monkeypatch.setattr(module, "preset", lambda name: replace(TINY, env_name="Pendulum-v1", time_limit=None))
    monkeypatch.setattr(module, "EVERY", 40)
    return module


@pytest.fixture
def testbed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("testbed")
