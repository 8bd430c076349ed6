"""The notebook runs from top to bottom, and is committed clean."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "dreamer_lpm.ipynb"
STEPS = 160  # the fewest that fill one sequence and learn from it


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def test_committed_without_outputs_and_paths(notebook: nbformat.NotebookNode) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in cells if cell.outputs or cell.execution_count is not None]
    assert not re.search(r"['\"]/\w+/", NOTEBOOK.read_text(encoding="utf-8"))
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_from_top_to_bottom(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMER_LPM_NOTEBOOK_STEPS", str(STEPS))
    monkeypatch.setenv("DREAMER_LPM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert [data for out in outputs["curves"] if (data := out.get("data", {}).get("image/png"))]
    assert [
        data
        for out in outputs["video"]
        if "data:video/mp4;base64," in (data := out.get("data", {}).get("text/html", ""))
    ]
    assert re.search(r"return without a TV: -\d+\.\d", "".join(out.get("text", "") for out in outputs["act"]))
    [summary] = tmp_path.glob("runs/*/summary.json")
    measured = json.loads(summary.read_text(encoding="utf-8"))
    assert measured["env_steps"] == STEPS
    assert measured["updates"] > 0
