"""The guide's names lead to the classes that the agent is really made of."""

from __future__ import annotations

import dataclasses
import inspect

import student_code
from dreamer_lpm import curiosity
from dreamer_lpm.agent import Agent
from dreamer_lpm.config import RunConfig
from tests.test_agent import CONFIG, SPEC

GUIDE = {"Encoder", "RSSM", "Decoder", "RewardModel", "Actor", "Critic", "ErrorPredictor", "Agent"}


def test_every_name_of_the_guide_is_there() -> None:
    assert set(student_code.__all__) == GUIDE
    assert all(inspect.isclass(getattr(student_code, name)) for name in GUIDE)


def test_the_agent_is_made_of_them() -> None:
    agent = Agent(dataclasses.replace(CONFIG, curiosity="lpm"), SPEC)
    parts = {type(module) for module in agent.modules()}
    assert {getattr(student_code, name) for name in GUIDE} <= parts


def test_the_error_predictor_is_drawn_as_in_the_guide() -> None:
    """Linear-ELU-Linear-ELU-Linear-ELU-Linear from stochastic state, recurrent state and action to a scalar."""
    agent = Agent(dataclasses.replace(CONFIG, curiosity="lpm"), SPEC)
    [predictor] = {m for m in agent.curiosity.modules() if isinstance(m, student_code.ErrorPredictor)}
    drawn = [m for m in predictor.modules() if not list(m.children())]
    assert [type(m).__name__ for m in drawn] == ["Linear", "ELU"] * 3 + ["Linear"]
    assert drawn[0].in_features == agent.world.rssm.feat_size + SPEC.size
    assert drawn[-1].out_features == 1


def test_curiosity_and_its_strength_have_the_guides_defaults() -> None:
    cfg = RunConfig()
    assert (cfg.agent.curiosity, cfg.agent.lpm_eta) == ("lpm", 1.0)
    assert cfg.agent.curiosity in curiosity.REGISTRY
    assert (cfg.env_name, cfg.tv.trigger, cfg.tv.threshold) == ("Pendulum-v1", "action", 0.75)
