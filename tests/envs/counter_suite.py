"""A suite of its own, as an extension would add one: ``counter/9`` is a CounterEnv of nine steps."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from tests.probes.counter_env import CounterEnv


class CounterSuite:
    """Ids are ``counter/`` and the number of steps."""

    def default_action_repeat(self, env_id: str) -> int:
        return 1

    def make(self, env_id: str, time_limit: int | None) -> gym.Env[Any, Any]:
        return CounterEnv(length=time_limit or int(env_id.removeprefix("counter/")))


SUITE = CounterSuite()
