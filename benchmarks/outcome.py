"""How a benchmark ends: what it found, with what made it, in a file and on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamer_lpm.report.strict_json import dumps, write_json
from dreamer_lpm.report.summary import git_revision, versions


def leave(path: Path, found: Mapping[str, Any]) -> None:
    """Write and print it, the versions and the revision of the source at its end."""
    whole = {**found, "versions": versions(), "git_revision": git_revision()}
    write_json(path, whole)
    print(dumps(whole, indent=2))
