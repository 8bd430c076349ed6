"""The TV before an agent of another library."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "sb3_noisy_tv.py"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("stable_baselines3")
    shares = runpy.run_path(str(EXAMPLE))["main"](64)
    assert shares.keys() == {"real", "sham", "chance"}
    assert shares["chance"] == pytest.approx(1 / 3)
    assert 0 < shares["real"] < 1
    assert 0 < shares["sham"] < 1
    said = capsys.readouterr().out
    assert said.startswith("A TV shows static over the full frame")
    assert f"sham   {shares['sham']:.0%}" in said
