"""The linear probe: right where the truth is known, in replay and in dreams, and at home with what drifts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamer_lpm import probe as probe_module
from dreamer_lpm.agent import Agent
from dreamer_lpm.nets import categorical_kl
from dreamer_lpm.probe import TVProbe
from dreamer_lpm.types import ActionSpec
from dreamer_lpm.world import RSSM, Dream, Latent, Lesson, RSSMConfig
from tests.test_agent import CONFIG, DISCRETE
from tests.world.tiny import SPEC, codes, imagined, random_batch

CPU = torch.device("cpu")
F = 24


class Stream:
    """Features that say along one direction whether the TV is on, among noise that says nothing."""

    def __init__(self, share: float = 0.3, apart: float = 6.0) -> None:
        self.g = torch.Generator().manual_seed(1)
        self.share, self.apart = share, apart
        self.direction = torch.nn.functional.normalize(torch.randn(F, generator=self.g), dim=0)

    def draw(self, lead: tuple[int, int], share: float | None = None) -> tuple[Tensor, Tensor]:
        on = torch.rand(lead, generator=self.g) < (self.share if share is None else share)
        noise = torch.randn(*lead, F, generator=self.g) @ torch.diag(torch.linspace(0.1, 3, F))
        return 5 + noise + self.apart * on.unsqueeze(-1) * self.direction, on


def watched(stream: Stream, batches: int = 30, dream_share: float = 0.8, probe: TVProbe | None = None) -> TVProbe:
    probe = probe or TVProbe(F, CPU)
    for _ in range(batches):
        feat, on = stream.draw((8, 16))
        probe.take(feat, on, stream.draw((15, 32), dream_share)[0])
    return probe


@pytest.mark.parametrize("dream_share", [0.0, 0.1, 0.8, 1.0])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_it_finds_how_much_tv_is_in_dreams(share: float, dream_share: float) -> None:
    """Whatever the share in the replay is."""
    got = watched(Stream(share, apart=20.0), dream_share=dream_share).report()
    assert got["probe/accuracy"] > 0.97
    assert got["dream/tv_share"] == pytest.approx(dream_share, abs=0.06)


def test_it_knows_when_it_knows_nothing() -> None:
    """No difference between the classes: chance is 0.5, although nine frames in ten are of one class."""
    stream = Stream(share=0.1, apart=0.0)
    probe = TVProbe(F, CPU)
    accuracies = [watched(stream, 5, probe=probe).report()["probe/accuracy"] for _ in range(20)]
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_with_one_kind_of_frames_it_says_nothing(share: float) -> None:
    got = watched(Stream(share)).report()
    assert all(math.isnan(value) for value in got.values())
    assert all(math.isnan(value) for value in TVProbe(F, CPU).report().values())


def test_a_newest_batch_of_one_kind_tells_no_accuracy_but_a_share() -> None:
    stream = Stream(apart=20.0)
    probe = watched(stream)
    feat, on = stream.draw((8, 16), share=0.0)
    probe.take(feat, on, stream.draw((15, 32), 0.5)[0])
    got = probe.report()
    assert math.isnan(got["probe/accuracy"])
    assert got["dream/tv_share"] == pytest.approx(0.5, abs=0.1)


def test_features_that_are_no_numbers_give_none() -> None:
    probe = watched(Stream())
    nothing = torch.full((8, 16, F), math.nan)
    for _ in range(2):
        probe.take(nothing, torch.rand(8, 16) < 0.5, nothing)
    assert all(math.isnan(value) for value in probe.report().values())


def test_the_newest_batch_is_tested_before_it_is_learned() -> None:
    """Labels drawn at random can be learned by heart, and still are right half of the time on what is new."""
    g = torch.Generator().manual_seed(0)
    size = 200
    probe, accuracies = TVProbe(size, CPU), []
    for _ in range(12):
        probe.take(torch.randn(4, 16, size, generator=g), torch.rand(4, 16, generator=g) < 0.5, torch.zeros(1, 1, size))
        accuracies.append(probe.report()["probe/accuracy"])
    assert np.nanmean(accuracies) == pytest.approx(0.5, abs=0.1)
    seen = probe.replayed, probe.tv_on
    probe.take(*(x.unsqueeze(0) for x in seen), torch.zeros(1, 1, size))
    assert probe.report()["probe/accuracy"] > 0.75, "the same batch again is no longer new"


def test_it_follows_states_that_drift() -> None:
    stream = Stream(apart=20.0)
    probe = watched(stream)
    stream.direction = -stream.direction
    assert watched(stream, 1, probe=probe).report()["probe/accuracy"] < 0.6
    assert watched(stream, 150, probe=probe).report()["probe/accuracy"] > 0.97


def test_one_hot_latents_that_depend_on_each_other_and_dead_units_are_no_trouble() -> None:
    g = torch.Generator().manual_seed(0)
    probe = TVProbe(12, CPU)
    for _ in range(20):
        on = torch.rand(4, 16, generator=g) < 0.4
        classes = torch.where(
            on, torch.randint(0, 2, on.shape, generator=g), torch.randint(2, 6, on.shape, generator=g)
        )
        feat = torch.cat([torch.nn.functional.one_hot(classes, 6).float(), torch.zeros(4, 16, 6)], -1)
        probe.take(feat, on, feat)
    got = probe.report()
    assert got["probe/accuracy"] == 1.0
    assert got["dream/tv_share"] == pytest.approx(float(on.float().mean()))


def test_large_features_are_projected_and_still_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_LARGEST", 12)
    probe = watched(Stream(apart=40.0))
    assert probe.second.shape == (12, 12)
    got = probe.report()
    assert got["probe/accuracy"] > 0.95
    assert got["dream/tv_share"] == pytest.approx(0.8, abs=0.06)
    other = TVProbe(F, CPU)
    other.load_state_dict(probe.state_dict())
    assert other.report() == got, "the projection is every run's own, unsaved"


def test_what_was_saved_goes_on_to_the_bit() -> None:
    one, stream = watched(Stream()), Stream()
    saved = {key: value.clone() for key, value in one.state_dict().items()}
    other = TVProbe(F, CPU)
    other.load_state_dict(saved)
    batches = [stream.draw((8, 16)) for _ in range(4)]
    for probe in (one, other):
        for feat, on in batches:
            probe.take(feat, on, feat)
    assert one.report() == other.report()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


# --- dreams whose truth is known --------------------------------------------------------------------------------------


class Room:
    """A world model that has learned that the last action switches the TV on; observations are vectors of four."""

    def __init__(self, spec: ActionSpec, share: float, updates: int = 80) -> None:
        self.spec, self.share, self.g = spec, share, torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.rssm = RSSM(RSSMConfig(deter=32, hidden=32, stoch=4, classes=4, noise_gate=False), spec.size, 4)
            self.decoder = torch.nn.Linear(self.rssm.feat_size, 4)
        self.probe = TVProbe(self.rssm.feat_size, CPU)
        optimizer = torch.optim.Adam([*self.rssm.parameters(), *self.decoder.parameters()], lr=6e-3)
        for _ in range(updates):
            loss = self._lesson()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def actions(self, lead: tuple[int, ...], share: float) -> Tensor:
        """Presses the button in ``share`` of the steps: the last choice, or the last dimension above 0.5."""
        press = torch.rand(lead, generator=self.g) < share
        if self.spec.is_discrete:
            other = torch.randint(0, self.spec.size - 1, lead, generator=self.g)
            return torch.nn.functional.one_hot(torch.where(press, self.spec.size - 1, other), self.spec.size).float()
        action = torch.rand(*lead, self.spec.size, generator=self.g) * 2 - 1
        action[..., -1] = torch.where(press, 0.75 + 0.25 * action[..., -1], -0.25 + 0.75 * action[..., -1])
        return action

    def _lesson(self) -> Tensor:
        """Reconstruction and KL of sequences (16, 8), which the probe takes too."""
        lead = (16, 8)
        action = self.actions(lead, self.share)
        on = action[..., -1] > 0.5
        frame = torch.where(on.unsqueeze(-1), torch.randn(*lead, 4, generator=self.g), torch.tensor([2.0, 0, -2, 0]))
        first = torch.zeros(lead, dtype=torch.bool)
        first[:, 0] = True
        noise = codes(self.rssm, lead, self.g)
        latents, post, prior, _ = self.rssm.observe(self.rssm.initial((16,), CPU), action, frame, first, noise)
        with torch.no_grad():
            self.start = Latent(*(x.detach().flatten(0, 1) for x in latents))
            # A first frame does not know the action before it.
            self.probe.take(latents.feat.detach()[:, 1:], on[:, 1:], latents.feat.detach()[:, 1:])
        kl = categorical_kl(post.detach(), prior) + 0.1 * categorical_kl(post, prior.detach())
        return (self.decoder(latents.feat) - frame).square().sum(-1).mean() + kl.mean()

    @torch.no_grad()
    def dream(self, share: float, horizon: int = 8) -> tuple[Tensor, Tensor]:
        """States entered (H, B, F) under a policy that presses as often, and whether the button was pressed (H, B)."""
        actions = self.actions((horizon, len(self.start.deter)), share)
        noise = codes(self.rssm, actions.shape[:2], self.g)
        state, feats = self.start, []
        for action, n in zip(actions, noise, strict=True):
            state = imagined(self.rssm, state, action, n)
            feats.append(state.feat)
        return torch.stack(feats), actions[..., -1] > 0.5


@pytest.mark.parametrize(("spec", "share"), [(SPEC, 0.3), (DISCRETE, 0.15)])
def test_in_dreams_it_sees_the_tv_that_imagined_actions_switch_on(spec: ActionSpec, share: float) -> None:
    """Fitted to states that have seen their frame, it reads states that only imagine one."""
    room = Room(spec, share)
    detector = room.probe.fit()
    assert detector is not None
    assert room.probe.report()["probe/accuracy"] > 0.95
    for dreamed in (0.05, 0.3, 0.9):
        feat, truth = room.dream(dreamed)
        shown = detector.on(feat)
        assert (shown == truth).float().mean() > 0.9
        assert float(shown.float().mean()) == pytest.approx(float(truth.float().mean()), abs=0.06)


def test_a_probe_of_a_model_that_learned_nothing_says_so() -> None:
    assert Room(SPEC, 0.3, updates=2).probe.report()["probe/accuracy"] < 0.9


@pytest.mark.parametrize("curiosity", ["none", "lpm"])
def test_the_agent_hands_out_what_it_felt(curiosity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of the batch, and those that its dreams entered, whose start is none of theirs; without gradients."""
    agent, batch = Agent(replace(CONFIG, curiosity=curiosity), SPEC), random_batch()
    lessons, dreams = list[Lesson](), list[Dream]()
    loss, imagine = agent.world.watch, agent.world.rssm.imagine
    monkeypatch.setattr(agent.world, "watch", lambda *args: (lessons.append(loss(*args)), lessons[-1])[1])
    monkeypatch.setattr(agent.world.rssm, "imagine", lambda *args: (dreams.append(imagine(*args)), dreams[-1])[1])
    agent.update(batch)
    assert torch.equal(agent.felt.replayed, lessons[0].latents.feat)
    assert torch.equal(agent.felt.dreamed, dreams[0].feat[1:])
    assert agent.felt.dreamed.shape[:2] == dreams[0].action.shape[:2]
    assert not agent.felt.replayed.requires_grad
    assert not agent.felt.dreamed.requires_grad


def test_the_threshold_lies_halfway_however_rare_the_tv_is() -> None:
    """Halfway between the means, not where most frames are: 1.2 and 2.8 lie to either side of 2."""
    source, probe = torch.Generator().manual_seed(0), TVProbe(4, CPU)
    for _ in range(60):
        on = torch.rand(8, 16, generator=source) < 0.05
        feat = torch.randn(8, 16, 4, generator=source)
        feat[..., 0] += 4 * on
        probe.take(feat, on, feat)
    detector = probe.fit()
    assert detector is not None
    for x, shown in ((1.2, False), (2.8, True)):
        assert bool(detector.on(torch.tensor([x, 0.0, 0.0, 0.0]))) == shown
