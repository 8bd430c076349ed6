"""Agents that learn as one, compared with each of them alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.flock import Flock, alike
from dreamer_lpm.noisy_tv import load_images
from dreamer_lpm.state import State
from tests.recorded import Recorded
from tests.test_capture import everything
from tests.tiny_run import TINY, WITH_TV

STEPS, RANDOM, MEMBERS = 20, 10, 3


@pytest.fixture(autouse=True)
def no_slow_path() -> Iterator[None]:
    """An op that torch can only do member by member is an error."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)
    yield
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)


def begun(cfg: RunConfig, seed: int) -> State:
    state = State(replace(cfg, seed=seed), load_images("static", None)[0])
    state.guard._waits = True
    state.row = state.envs.reset_row()
    return state


def step(states: list[State], i: int, flock: Flock | None) -> None:
    policy = "random" if i < RANDOM else "sample"
    for leader in [flock] if flock else states:
        leader.observe(policy)  # type: ignore[arg-type]
        if i > RANDOM:
            leader.learn()
    for state in states:
        state.row = state.envs.step(state.action())


def played(cfg: RunConfig, *, together: bool, recorded: bool = False) -> list[State]:
    states = [begun(cfg, seed) for seed in range(MEMBERS)]
    flock = None
    for i in range(STEPS):
        if together and i == 3:
            flock = Flock(states)
            if recorded:
                flock._observe["sample"] = Recorded(flock._bind("sample"))  # type: ignore[assignment]
                flock._update = Recorded(flock._learn)  # type: ignore[assignment]
        if together and i == STEPS - 3 and flock:
            flock.dissolve()
            flock = None
        step(states, i, flock)
    return states


def assert_close(together: list[State], alone: list[State], atol: float = 2e-4) -> None:
    for a, b in zip(together, alone, strict=True):
        one, other = everything(a), everything(b)
        assert one.keys() == other.keys()
        for key, x in one.items():
            torch.testing.assert_close(x, other[key], rtol=2e-3, atol=atol, equal_nan=True, msg=key)
        assert a.tally.updates == b.tally.updates
        assert torch.equal(a.agent.generator.get_state(), b.agent.generator.get_state())
        assert a.rng.bit_generator.state == b.rng.bit_generator.state


@pytest.mark.parametrize("curiosity", REGISTRY)
def test_members_learn_what_they_would_learn_alone(curiosity: str) -> None:
    cfg = replace(WITH_TV, agent=replace(TINY.agent, curiosity=curiosity))
    # Which member of lpm_optimistic's ensemble learns what hangs on an action's last bits; ama divides its bonus by
    # what is at first the difference of two near numbers.
    atol = 2e-2 if curiosity in ("ama", "lpm_optimistic") else 2e-4
    assert_close(played(cfg, together=True), played(cfg, together=False), atol)


@pytest.mark.parametrize("change", [{"env_name": "Pendulum-v1"}, {"num_envs": 2}, {"noisy_tv": False}])
def test_in_every_kind_of_run(change: dict[str, object]) -> None:
    cfg = replace(WITH_TV, **change)  # type: ignore[arg-type]
    assert_close(played(cfg, together=True), played(cfg, together=False))


@pytest.mark.parametrize("curiosity", ["lpm", "lpm_dual", "lpm_paired"])
def test_it_can_be_recorded(curiosity: str) -> None:
    cfg = replace(WITH_TV, agent=replace(TINY.agent, curiosity=curiosity))
    assert_close(played(cfg, together=True, recorded=True), played(cfg, together=False))


def test_a_flock_that_is_dissolved_keeps_nothing() -> None:
    """Its stacks are half a device's memory, and the next one's come to lie beside them."""
    states = [begun(TINY, seed) for seed in range(2)]
    flock = Flock(states)
    for i in range(STEPS):
        step(states, i, flock)
    held = [weakref.ref(flock), weakref.ref(flock._parts["replay"]["obs"]), weakref.ref(flock._optimizer)]
    gc.disable()
    try:
        flock.dissolve()
        del flock
        after = Flock(states)
        step(states, STEPS, after)
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


def test_what_is_on_disk_and_at_wandb_is_remembered() -> None:
    """Else every member writes its whole replay anew, and a resumed run is another one for W&B."""
    states = [begun(TINY, seed) for seed in range(2)]
    for state in states:
        state.saved_rows, state.pieces, state.wandb_id = 7, {Path("replay/rows"): "sha"}, "id"
    Flock(states).dissolve()
    assert [(s.saved_rows, s.pieces, s.wandb_id) for s in states] == [(7, {Path("replay/rows"): "sha"}, "id")] * 2


def test_who_can_be_one() -> None:
    """Seed and weights of the reward may differ; what is computed, and how, may not."""
    one = begun(TINY, 0)
    assert alike(one, begun(replace(TINY, agent=replace(TINY.agent, lpm_eta=2.0, extrinsic=0.0)), 1))
    for change in ({"compile": True}, {"batch_size": TINY.batch_size + 1}, {"agent": replace(TINY.agent, sight=0.1)}):
        assert not alike(one, begun(replace(TINY, **change), 0)), change  # type: ignore[arg-type]
