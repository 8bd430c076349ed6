"""Whether everything that a run does on a device can be recorded once and replayed: tried on the CPU, op by op."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from dreamer_lpm.capture import WARM_UP, Captured, Download, upload
from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.noisy_tv import load_images
from dreamer_lpm.state import State, Sums
from tests.recorded import Recorded
from tests.tiny_run import TINY, WITH_TV

CPU = torch.device("cpu")
STEPS, RANDOM = 26, 10


def played(cfg: RunConfig, *, recorded: bool) -> State:
    """A run of a few steps and updates, with observing and learning replayed from recordings, or as they are."""
    state = State(cfg, load_images("static", None)[0])
    state.guard._waits = True  # as on a device
    if recorded:
        state._observe["sample"] = Recorded(partial(state._see, "sample"))  # type: ignore[assignment]
        state._update = Recorded(state._learn)  # type: ignore[assignment]
    state.row = state.envs.reset_row()
    for i in range(STEPS):
        state.observe("random" if i < RANDOM else "sample")
        if i > RANDOM:
            state.learn()
        state.row = state.envs.step(state.action())
    return state


def everything(state: State) -> dict[str, torch.Tensor]:
    moments = state.agent.optimizer.state_dict()["state"]
    return {
        **state.agent.state_dict(),
        **{f"moment {i} {k}": v for i, held in moments.items() for k, v in held.items()},
        **{f"replay {k}": v[: len(state.replay)] for k, v in state.replay.data.items()},
        **(state.probe.state_dict() if state.probe else {}),
        **state.sums.state_dict(),
        "action": state.carry.action,
    }


def assert_same(a: State, b: State) -> None:
    one, other = everything(a), everything(b)
    assert one.keys() == other.keys()
    different = [k for k in one if not torch.equal(one[k].nan_to_num(), other[k].nan_to_num())]
    assert not different, different


@pytest.mark.parametrize("curiosity", [*REGISTRY, "lpm_dual+0.5*disagreement"])
def test_a_replayed_run_equals_the_run_in_every_bit(curiosity: str) -> None:
    cfg = replace(WITH_TV, agent=replace(TINY.agent, curiosity=curiosity))
    assert_same(played(cfg, recorded=False), played(cfg, recorded=True))


@pytest.mark.parametrize("change", [{"env_name": "Pendulum-v1"}, {"precision": "bf16"}, {"num_envs": 3}])
def test_so_does_every_kind_of_run(change: dict[str, object]) -> None:
    cfg = replace(WITH_TV, **change)  # type: ignore[arg-type]
    assert_same(played(cfg, recorded=False), played(cfg, recorded=True))


def test_what_a_graph_forbids_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def moving(self: Sums, metrics: dict[str, torch.Tensor]) -> None:
        self._names = list(metrics)
        pairs = torch.stack([torch.stack(list(metrics.values())).float(), torch.ones(len(metrics))])
        self._pairs = pairs if self._pairs is None else self._pairs + pairs  # a new place each time

    monkeypatch.setattr(Sums, "add", moving)
    with pytest.raises(AssertionError, match="loss/recon"):
        assert_same(played(WITH_TV, recorded=False), played(WITH_TV, recorded=True))

    looks = Recorded(lambda x: x * 2 if x.sum() > 0 else x)
    for _ in range(WARM_UP):
        looks(x=torch.ones(2))
    with pytest.raises(RuntimeError, match="look at a value"):
        looks(x=torch.ones(2))


def test_on_a_cpu_nothing_is_recorded() -> None:
    seen: list[torch.Tensor] = []
    double = Captured(lambda x: (seen.append(x), x * 2)[1], CPU)
    given = [torch.full((2,), float(i)) for i in range(WARM_UP + 3)]
    assert all(torch.equal(double(x=x), x * 2) for x in given)
    assert all(a is b for a, b in zip(seen, given, strict=True))
    assert upload(given[0], CPU) is given[0]


def test_what_was_downloaded_is_a_copy() -> None:
    way, action = Download(CPU), torch.ones(1, 2)
    way.start(action)
    got = way.numpy()
    action.zero_()
    assert got.tolist() == [[1.0, 1.0]]
