"""The example of a bonus of one's own: it keeps what every bonus must keep, and an agent trains with it."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.train import train
from tests.curiosity import checks
from tests.tiny_run import WITH_TV

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_a_bonus.py"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    kept = dict(REGISTRY)
    runpy.run_path(str(EXAMPLE))
    assert REGISTRY.keys() - kept.keys() == {"change"}
    yield
    del REGISTRY["change"]


def test_the_example_keeps_the_contract() -> None:
    bonus = checks.learned(checks.build("change"))
    assert bonus.reward(checks.dream(0)).any()
    checks.check_asking_changes_nothing(copy.deepcopy(bonus))
    checks.check_steps_stand_alone(copy.deepcopy(bonus))
    checks.check_borders_teach_nothing(copy.deepcopy(bonus))
    checks.check_state_is_all(lambda: checks.build("change", seed=1), copy.deepcopy(bonus))
    checks.check_losses(copy.deepcopy(bonus))


def test_an_agent_trains_with_the_example(tmp_path: Path) -> None:
    agent = replace(WITH_TV.agent, curiosity="lpm_dual+0.1*change")
    report = train(replace(WITH_TV, steps=80, agent=agent), tmp_path)
    assert report.summary["curiosity"] == "lpm_dual+0.1*change"
    assert report.summary["updates"] > 0
