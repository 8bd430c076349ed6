"""What `pip install` gets out of pyproject.toml."""

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import dreamer_lpm


def test_version_is_the_packages_own_and_in_the_changelog(root: Path) -> None:
    assert importlib.metadata.version("dreamer-lpm") == dreamer_lpm.__version__
    assert f"## [{dreamer_lpm.__version__}]" in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_console_script_leads_to_a_function(project: dict[str, Any]) -> None:
    module, name = project["project"]["scripts"]["dreamer-lpm"].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_types_are_shipped() -> None:
    assert Path(dreamer_lpm.__file__).with_name("py.typed").is_file()
