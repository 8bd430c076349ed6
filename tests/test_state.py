"""What a run's state holds, and that its parts are what the settings say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import torch

from dreamer_lpm.config import RunConfig
from dreamer_lpm.noisy_tv import load_images
from dreamer_lpm.state import State, Sums
from tests.tiny_run import TINY, WITH_TV


@contextmanager
def begun(cfg: RunConfig) -> Iterator[State]:
    state = State(cfg, load_images("static")[0] if cfg.noisy_tv else None)
    with closing(state.envs):
        yield state


def test_every_part_has_a_seed_of_its_own() -> None:
    with begun(TINY) as state, begun(replace(TINY, seed=TINY.seed + 1)) as other:
        assert len({state.envs.seed, state.agent.generator.initial_seed(), TINY.seed}) == 3
        assert state.agent.generator.initial_seed() != other.agent.generator.initial_seed()


def test_the_capacity_is_of_all_envs_together() -> None:
    with begun(replace(WITH_TV, num_envs=4, replay_capacity=100, steps=10_000)) as state:
        assert state.replay.capacity * 4 == 100


def test_a_row_holds_the_state_that_has_seen_it() -> None:
    """So that what a sequence begins with is the state right before its second row."""
    with begun(TINY) as state:
        state.row = state.envs.reset_row()
        for _ in range(5):
            state.observe("random")
            newest, latent = state.replay.added - 1, state.carry.latent
            classes = latent.stoch.unflatten(-1, (TINY.agent.world.rssm.stoch, -1)).argmax(-1)
            assert torch.equal(state.replay.data["deter"][newest], latent.deter)
            assert torch.equal(state.replay.data["stoch"][newest].long(), classes)
            state.row = state.envs.step(state.action())


def test_a_mean_is_over_the_updates_that_gave_a_number() -> None:
    sums = Sums()
    for x in (1.0, math.nan, 4.0):
        sums.add({"some": torch.tensor(x), "none": torch.tensor(math.nan)})
    means = sums.means()
    assert means["some"] == 2.5
    assert math.isnan(means["none"])
    sums.add({"some": torch.tensor(3.0), "none": torch.tensor(3.0)})
    assert sums.means() == {"some": 3.0, "none": 3.0}
