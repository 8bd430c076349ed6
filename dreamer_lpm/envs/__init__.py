"""Environments as the agent sees them: 64x64 pictures in, actions in [-1, 1] or one of n out. No torch in here."""

from __future__ import annotations

from dreamer_lpm.envs.checks import check_env
from dreamer_lpm.envs.coverage import GRIDS, Axis, Grid, grid_of
from dreamer_lpm.envs.factory import SUITES, EnvConfig, Suite, make_env, repeat_of, tv_chance
from dreamer_lpm.envs.vector import Envs, Row, episode_seed
from dreamer_lpm.envs.wrappers import action_spec

__all__ = [
    "GRIDS",
    "SUITES",
    "Axis",
    "EnvConfig",
    "Envs",
    "Grid",
    "Row",
    "Suite",
    "action_spec",
    "check_env",
    "episode_seed",
    "grid_of",
    "make_env",
    "repeat_of",
    "tv_chance",
]
