"""The noise gate: closes on a kind of frame that stays unpredictable, and on nothing where all frames are alike."""

import math

import pytest
import torch

from dreamer_lpm.world.gate import NoiseGate, two_groups
from tests.world.tiny import generator, learned, random_batch, tiny_world

DETER = 8


def trained(log_errors: tuple[float, float], scatter: float, updates: int = 300) -> tuple[NoiseGate, torch.Tensor]:
    """A gate that has met two kinds of states (half each, told apart by the first unit) with these mean log errors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = NoiseGate(DETER, 32)
    g = generator()
    optimizer = torch.optim.Adam(gate.parameters(), 3e-3)
    deter = torch.randn(4, 16, DETER, generator=g)
    deter[..., 0] = 1.0
    deter[:2, :, 0] = -1.0
    mean = torch.where(deter[..., 0] > 0, log_errors[1], log_errors[0])
    first = torch.zeros(4, 16, dtype=torch.bool)
    for _ in range(updates):
        loss = gate.loss(deter, mean + scatter * torch.randn(4, 16, generator=g), first).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return gate, gate.look(deter)


def test_two_groups_finds_the_two_levels() -> None:
    values = torch.cat([torch.full((30,), -6.0), torch.full((10,), -2.0)])
    low, high, scatter = two_groups(values[torch.randperm(40, generator=generator())])
    assert (low.item(), high.item()) == pytest.approx((-6.0, -2.0), abs=1e-3)
    assert scatter.item() == pytest.approx(0.0, abs=1e-2)


def test_a_normal_distribution_cut_in_two_has_the_contrast_that_the_gate_assumes() -> None:
    low, high, scatter = two_groups(torch.randn(200_000, generator=generator()))
    # Each half of a standard normal: mean sqrt(2/pi), standard deviation sqrt(1 - 2/pi).
    expected = math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)
    assert ((high - low) / scatter).item() == pytest.approx(expected, rel=0.02)
    assert expected < NoiseGate.contrast


def test_closes_on_the_kind_that_stays_unpredictable_alone() -> None:
    gate, look = trained((-7.0, -2.5), scatter=0.3)
    assert gate.active == 1
    assert look[:2].min() > 0.99
    assert look[2:].max() < 0.01


@pytest.mark.parametrize("log_errors", [(-7.0, -7.0), (-7.0, -6.5)])
def test_looks_at_everything_where_frames_are_alike(log_errors: tuple[float, float]) -> None:
    gate, look = trained(log_errors, scatter=0.3)
    assert gate.active == 0
    assert (look == 1).all()


def test_frames_that_open_an_episode_are_no_evidence_and_always_looked_at() -> None:
    gate = NoiseGate(DETER, 32)
    deter = torch.randn(2, 8, DETER, generator=generator())
    first = torch.zeros(2, 8, dtype=torch.bool)
    first[:, 0] = True
    with torch.no_grad():
        gate.net[-1].weight.zero_()
        gate.net[-1].bias.fill_(-7.0)
    gate.loss(deter, torch.full((2, 8), -7.0), first)
    assert gate.active == 0
    world = tiny_world()
    assert world.rssm.gate is not None
    world.rssm.gate.active.fill_(1.0)
    world.rssm.gate.threshold.fill_(-1e9)  # decline everything
    batch = random_batch()
    look = learned(world, batch)[0].look
    assert (look[batch.is_first] == 1).all()
    assert (look[~batch.is_first] < 1e-6).all()


def test_what_is_not_looked_at_leaves_no_trace_in_the_latent() -> None:
    """With the gate closed the state is the same whatever the picture showed: the TV cannot enter it."""
    world = tiny_world()
    assert world.rssm.gate is not None
    world.rssm.gate.active.fill_(1.0)
    world.rssm.gate.threshold.fill_(-1e9)
    batch = random_batch()
    batch = batch._replace(is_first=torch.zeros_like(batch.is_first))
    other = batch._replace(obs=255 - batch.obs)
    (one, losses), (two, _) = (learned(world, b) for b in (batch, other))
    assert torch.equal(one.latents.stoch, two.latents.stoch)
    torch.testing.assert_close(one.latents.deter, two.latents.deter, rtol=0, atol=1e-6)
    assert losses["recon"].max() < 1e-3
    world.rssm.gate.active.zero_()  # and open, it does
    one, two = (learned(world, b)[0] for b in (batch, other))
    assert not torch.allclose(one.latents.deter, two.latents.deter, atol=1e-6)


def test_the_gates_error_trains_the_gate_alone() -> None:
    world = tiny_world()
    loss = learned(world, random_batch())[1]["gate"].mean()
    names = [n for n, p in world.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for p in world.parameters() if p.requires_grad], allow_unused=True)
    assert {n for n, g in zip(names, gradients, strict=True) if g is not None and g.abs().max() > 0} == {
        n for n in names if n.startswith("rssm.gate.") and "net" in n
    }


def knowing_gate() -> NoiseGate:
    """A gate whose expectation is the first unit of the state."""
    gate = NoiseGate(DETER, 8)
    gate.net = torch.nn.Sequential(torch.nn.Linear(DETER, 1, bias=False))
    with torch.no_grad():
        gate.net[0].weight.copy_(torch.eye(DETER)[:1])
    return gate


def told(errors: torch.Tensor) -> torch.Tensor:
    """States (..., DETER) that say in their first unit what error is to be expected."""
    return torch.nn.functional.pad(errors.unsqueeze(-1), (0, DETER - 1))


def scattered(mean: float, std: float, seed: int = 0) -> torch.Tensor:
    return mean + std * torch.randn(8, 32, generator=generator(seed))


@pytest.mark.parametrize("seed", range(5))
def test_two_groups_are_those_of_the_best_split_of_all(seed: int) -> None:
    """Otsu's: the split with the least variance within, found here by trying every one."""
    g = generator(seed)
    sizes = torch.randint(2, 40, (2,), generator=g).tolist()
    values = torch.cat(
        [m + s * torch.randn(n, generator=g).double() for m, s, n in zip((-5, -1), (0.5, 1), sizes, strict=True)]
    )
    x = values.sort().values
    splits = [(x[:k], x[k:]) for k in range(1, len(x))]
    first, second = min(splits, key=lambda s: sum(float(p.var(correction=0)) * len(p) for p in s))
    low, high, scatter = two_groups(values)
    torch.testing.assert_close(low, first.mean())
    torch.testing.assert_close(high, second.mean())
    torch.testing.assert_close(scatter, first.std(correction=0) + second.std(correction=0))


@pytest.mark.parametrize(
    "errors",
    [
        scattered(-5, 0.0),
        scattered(-5, 0.5),
        scattered(-5, 3.0),
        -8 + 6 * torch.rand(8, 32, generator=generator()),
        torch.where(torch.arange(32) < 8, scattered(-5, 0.1), scattered(-5.5, 0.1)),
    ],
    ids=["equal", "normal", "wide", "uniform", "nearly alike"],
)
def test_no_shape_of_one_kind_is_taken_for_two(errors: torch.Tensor) -> None:
    gate, no_first = knowing_gate(), torch.zeros(8, 32, dtype=torch.bool)
    for _ in range(20):
        gate.loss(told(errors), errors, no_first)
    assert torch.equal(gate.look(told(errors)), torch.ones(8, 32))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_rare_or_frequent_the_unpredictable_kind_is_declined(share: float) -> None:
    noise = torch.rand(8, 32, generator=generator()) < share
    errors = torch.where(noise, scattered(-2, 0.2), scattered(-6, 0.4, seed=1))
    gate = knowing_gate()
    assert torch.equal(gate.look(told(errors)), torch.ones(8, 32)), "nothing is declined before two kinds were found"
    gate.loss(told(errors), errors, torch.zeros(8, 32, dtype=torch.bool))
    state = {key: value.clone() for key, value in gate.state_dict().items()}
    look = gate.look(told(errors))
    assert look[noise].max() < 0.01
    assert look[~noise].min() > 0.99
    assert all(torch.equal(state[key], value) for key, value in gate.state_dict().items()), "asking is not learning"


@pytest.mark.parametrize("marked", [True, False], ids=["ours", "mutant"])
def test_hard_first_frames_alone_do_not_close_the_gate(marked: bool) -> None:
    """Every reset is hard to foresee. The mutant takes it for evidence, and would stop looking at what is like it."""
    is_first = torch.zeros(8, 32, dtype=torch.bool)
    is_first[:, ::4] = True
    errors = torch.where(is_first, scattered(-2, 0.2), scattered(-6, 0.4, seed=1))
    gate = knowing_gate()
    gate.loss(told(errors), errors, is_first if marked else torch.zeros_like(is_first))
    assert bool(gate.active == 0) == marked


def test_the_threshold_stays_where_it_was_while_one_kind_is_left() -> None:
    """It would drift into the middle of that kind, and half of all frames would be declined."""
    gate, no_first = knowing_gate(), torch.zeros(8, 32, dtype=torch.bool)
    two = torch.where(torch.arange(32) < 16, scattered(-2, 0.2), scattered(-6, 0.2, seed=1))
    gate.loss(told(two), two, no_first)
    found, one = gate.threshold.clone(), scattered(-6, 0.2, seed=2)
    for _ in range(50):
        gate.loss(told(one), one, no_first)
    assert torch.equal(gate.threshold, found)
    assert gate.active == 1
    assert (gate.look(told(one)) > 0.99).all()


def test_the_threshold_follows_slowly() -> None:
    gate, no_first = knowing_gate(), torch.zeros(8, 32, dtype=torch.bool)
    for high, wanted in ((-2.0, -4.0), (0.0, -3.9)):  # halfway at first; then a tenth of the way to -3
        errors = torch.where(torch.arange(32) < 16, high, -6.0).expand(8, 32)
        gate.loss(told(errors), errors, no_first)
        assert float(gate.threshold) == pytest.approx(wanted, abs=0.01)
