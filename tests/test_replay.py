"""Replay, against an env whose pictures say which episode, step and action they belong to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamer_lpm.envs import Envs, episode_seed
from dreamer_lpm.replay import Replay
from dreamer_lpm.types import Batch, UserError
from tests.probes.counter_env import LEVELS, CounterEnv, read

CPU = torch.device("cpu")
LENGTH, NUM_ENVS, SEED = 4, 2, 7
FIELDS = {
    "obs": ((64, 64, 3), torch.uint8),
    "action": ((2,), torch.float32),
    "reward": ((), torch.float32),
    **dict.fromkeys(("is_first", "is_last", "is_terminal", "tv_on"), ((), torch.bool)),
    "deter": ((2,), torch.float32),
    "stoch": ((1,), torch.uint8),
}


@functools.cache
def played(rows: int = 60) -> list[dict[str, Tensor]]:
    """Rows of counter envs. The latent beside each says which row (deter 0) of which env (deter 1) it belongs to."""
    envs = Envs(partial(CounterEnv, length=LENGTH), NUM_ENVS, SEED)
    rng = np.random.default_rng(0)
    row, out = envs.reset_row(), []
    for number in range(rows):
        tensors = {key: torch.from_numpy(value) for key, value in row.items()}
        deter = torch.tensor([[number, env] for env in range(NUM_ENVS)], dtype=torch.float32)
        out.append({**tensors, "deter": deter, "stoch": torch.full((NUM_ENVS, 1), number % 256, dtype=torch.uint8)})
        row = envs.step((rng.integers(-LEVELS, LEVELS + 1, (NUM_ENVS, 2)) / LEVELS).astype(np.float32))
    return out


def filled(capacity: int, adds: int) -> Replay:
    replay = Replay(capacity, FIELDS, NUM_ENVS, CPU)
    for row in played()[:adds]:
        replay.add(row)
    return replay


def first_rows(batch: Batch) -> list[tuple[int, int]]:
    """(number of the first row, env) of each sequence, by the context, which belongs to the row before."""
    return [(int(number) + 1, int(env)) for number, env in batch.deter.tolist()]


def is_as_played(batch: Batch) -> bool:
    """Whether every sequence is, row for row, what one env did after the row that the context belongs to."""
    rows = played()
    length = batch.reward.shape[1]
    for b, (first, env) in enumerate(first_rows(batch)):
        if first + length > len(rows):
            return False
        for key in ("obs", "action", "reward", "is_first", "is_terminal", "tv_on"):
            want = torch.stack([row[key][env] for row in rows[first : first + length]])
            if not torch.equal(getattr(batch, key)[b], want):
                return False
        if int(batch.stoch[b, 0]) != first - 1:
            return False
    return True


@given(capacity=st.integers(2, 30), adds=st.integers(0, 60), length=st.integers(1, 12), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_sequences_are_contiguous_whatever_the_sizes(capacity: int, adds: int, length: int, seed: int) -> None:
    """In any ring, wrapped or not: consecutive rows of one env, never across the seam, after the latent before them."""
    replay = filled(capacity, adds)
    assert len(replay) == min(capacity, adds)
    if len(replay) < length + 1:
        with pytest.raises(UserError, match="raise prefill or lower seq_length"):
            replay.sample(np.random.default_rng(seed), 8, length)
        return
    batch = replay.sample(np.random.default_rng(seed), 8, length)
    assert is_as_played(batch)
    oldest = adds - len(replay)
    assert all(oldest < first <= adds - length for first, _ in first_rows(batch))


def across_the_seam(replay: Replay, length: int) -> Batch:
    """The mutant: places are slots of the ring, wherever the newest row lies."""
    start = torch.arange(replay.capacity).repeat_interleave(NUM_ENVS)
    env = torch.arange(NUM_ENVS).repeat(replay.capacity)
    return taken(replay, start, env, length, before=1)


def context_of_the_first_row(replay: Replay, length: int) -> Batch:
    """The mutant: the context is the state of the first row itself, which has already seen its picture."""
    start = torch.arange(replay.added - len(replay) + 1, replay.added - length + 1)
    return taken(replay, start, torch.zeros_like(start), length, before=0)


def taken(replay: Replay, start: Tensor, env: Tensor, length: int, before: int) -> Batch:
    rows = (start[:, None] + torch.arange(length)) % replay.capacity
    at = {key: replay.data[key][rows, env[:, None]] for key in Batch._fields[:-2]}
    context = (start - before) % replay.capacity
    return Batch(**at, deter=replay.data["deter"][context, env], stoch=replay.data["stoch"][context, env])


@pytest.mark.parametrize("mutant", [across_the_seam, context_of_the_first_row])
def test_a_wrong_replay_would_be_seen(mutant: Callable[[Replay, int], Batch]) -> None:
    replay = filled(capacity=13, adds=40)
    assert is_as_played(replay.sample(np.random.default_rng(0), 64, 5))
    assert not is_as_played(mutant(replay, 5))


def test_the_action_of_a_row_led_to_its_picture() -> None:
    """Read off the pictures alone: episode, step, reward and action agree within each row, steps count up by one."""
    batch = filled(capacity=50, adds=60).sample(np.random.default_rng(0), 16, 9)
    episodes = {env: [episode_seed(SEED, env, k) % 65536 for k in range(20)] for env in range(NUM_ENVS)}
    for b, (first, env) in enumerate(first_rows(batch)):
        for t in range(9):
            count = read(batch.obs[b, t].numpy())
            episode, step = divmod(first + t, LENGTH + 1)
            assert (count.episode, count.step) == (episodes[env][episode], step)
            assert batch.reward[b, t] == step
            assert batch.is_first[b, t] == (step == 0)
            assert batch.is_terminal[b, t] == (step == LENGTH)
            want = np.zeros(2) if count.action is None else count.action
            np.testing.assert_allclose(batch.action[b, t].numpy(), want, atol=1e-6)


def test_every_place_is_equally_likely() -> None:
    replay = filled(capacity=12, adds=20)
    batch = replay.sample(np.random.default_rng(0), 1600, 4)
    places = first_rows(batch)
    seen = {place: places.count(place) for place in set(places)}
    # 12 rows, of which the oldest gives only context: 8 starts in each of two envs.
    assert seen.keys() == {(first, env) for first in range(9, 17) for env in range(NUM_ENVS)}
    chi_square = sum((n - 100) ** 2 / 100 for n in seen.values())
    assert chi_square < 37.7, seen  # 15 degrees of freedom, p = 0.001


def test_samples_come_from_the_given_generator_alone() -> None:
    replay = filled(capacity=30, adds=30)
    before = torch.get_rng_state()
    a, b, c = (replay.sample(np.random.default_rng(seed), 8, 4) for seed in (1, 1, 2))
    assert torch.equal(a.deter, b.deter)
    assert not torch.equal(a.deter, c.deter)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_is_a_copy() -> None:
    """What learning does to a batch, it does not do to the memory."""
    replay = filled(capacity=30, adds=30)
    held = {key: value.clone() for key, value in replay.data.items()}
    batch = replay.sample(np.random.default_rng(0), 8, 4)
    for x in batch:
        x.fill_(1)
    assert all(torch.equal(replay.data[key], held[key]) for key in held)


def test_a_row_must_have_all_fields_and_no_others() -> None:
    replay = filled(capacity=5, adds=1)
    row = played()[1]
    with pytest.raises(AssertionError):
        replay.add({key: value for key, value in row.items() if key != "reward"})
    with pytest.raises(AssertionError):
        replay.add({**row, "bonus": row["reward"]})


# --- saving -----------------------------------------------------------------------------------------------------------


@given(capacity=st.integers(3, 30), saves=st.lists(st.integers(0, 60), min_size=1, max_size=4).map(sorted))
@settings(max_examples=60, deadline=None)
def test_what_was_saved_piece_by_piece_samples_equally(capacity: int, saves: list[int]) -> None:
    """Pieces saved at any moments, also when the ring went round more than once between two of them."""
    pieces: list[tuple[int, dict[str, np.ndarray]]] = []
    replay, saved = Replay(capacity, FIELDS, NUM_ENVS, CPU), 0
    for adds in saves:
        for row in played()[replay.added : adds]:
            replay.add(row)
        saved = max(saved, replay.added - len(replay))
        pieces.append((saved, replay.rows(saved)))
        saved = replay.added
    again = Replay(capacity, FIELDS, NUM_ENVS, CPU)
    for first, rows in pieces:
        if len(rows["reward"]):
            again.restore(first, rows)
    assert again.added == replay.added
    if len(replay) < 3:
        return
    a, b = (r.sample(np.random.default_rng(0), 16, 2) for r in (replay, again))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert is_as_played(b)


def test_rows_are_numbered_from_the_beginning_of_the_run() -> None:
    replay = filled(capacity=10, adds=25)
    numbers = replay.rows(20)["deter"][:, 0, 0]
    np.testing.assert_array_equal(numbers, np.arange(20, 25))
    np.testing.assert_array_equal(replay.rows(3)["deter"][:, 0, 0], np.arange(15, 25))  # the others are gone
    assert len(replay.rows(25)["reward"]) == 0


def test_rows_of_another_run_are_refused() -> None:
    rows = filled(capacity=10, adds=5).rows(0)
    other = {**FIELDS, "deter": ((3,), torch.float32)}
    with pytest.raises(UserError, match=r"'deter'.*resume with the same settings"):
        Replay(10, other, NUM_ENVS, CPU).restore(0, rows)
    with pytest.raises(UserError, match="'reward' as None"):
        Replay(10, FIELDS, NUM_ENVS, CPU).restore(0, {k: v for k, v in rows.items() if k != "reward"})
    with pytest.raises(UserError, match="resume with the same settings"):
        Replay(10, FIELDS, NUM_ENVS + 1, CPU).restore(0, rows)
