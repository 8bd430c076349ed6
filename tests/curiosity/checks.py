"""What every bonus must keep, as checks to hold a real bonus, or one with a planted mistake, against.

Each takes a bonus that has learned a little (see :func:`learned`), may change it, and raises AssertionError.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from dreamer_lpm.curiosity import (
    CuriosityConfig,
    Dims,
    FitGate,
    IntrinsicReward,
    Losses,
    Transition,
    build_curiosity,
)
from dreamer_lpm.types import ActionSpec

CONFIG = CuriosityConfig(hidden=8, queue=40, rate=0.1)
FEAT, EMBED = 6, 5
REPLAYED, DREAMED = (3, 5), (4, 7)  # (B, T-1), (H, B)
CONTINUOUS, DISCRETE = ActionSpec("continuous", 2), ActionSpec("discrete", 3)


def build(name: str, spec: ActionSpec = CONTINUOUS, seed: int = 0, cfg: CuriosityConfig = CONFIG) -> IntrinsicReward:
    """A small fresh bonus of that name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_curiosity(name, cfg, Dims(FEAT, spec.size))


def transition(seed: int, spec: ActionSpec = CONTINUOUS, shape: tuple[int, int] = REPLAYED) -> Transition:
    """Random replayed steps, one in four of them across a border, with errors of many sizes."""
    rng = torch.Generator().manual_seed(seed)
    action = torch.rand(*shape, spec.size, generator=rng) * 2 - 1
    if spec.is_discrete:
        action = torch.nn.functional.one_hot(action.argmax(-1), spec.size).float()
    target = torch.rand(*shape, 64, 64, 3, generator=rng)
    wrong = torch.rand(*shape, 1, 1, 1, generator=rng)
    return Transition(
        feat=torch.randn(*shape, FEAT, generator=rng),
        action=action,
        next_feat=torch.randn(*shape, FEAT, generator=rng),
        mask=torch.rand(shape, generator=rng) > 0.25,
        target=target,
        predicted=target + wrong * (torch.rand(*shape, 64, 64, 3, generator=rng) - 0.5),
        frame=torch.rand(*shape, 64, 64, 3, generator=rng),
        kl=3 * torch.rand(shape, generator=rng),
        target_embed=torch.randn(*shape, EMBED, generator=rng),
        predicted_embed=torch.randn(*shape, EMBED, generator=rng),
        error_before=torch.rand(shape, generator=rng),
        lag=torch.full(shape, 0.5),
    )


def dream(seed: int, spec: ActionSpec = CONTINUOUS) -> Transition:
    """Imagined steps: nothing is seen, and nothing ends."""
    return replace(transition(seed, spec, DREAMED).unseen(), mask=torch.ones(DREAMED, dtype=torch.bool))


def everywhere(t: Transition, change: Callable[[Tensor], Tensor]) -> Transition:
    """The transition with every tensor it has changed in that way."""
    return replace(t, **{f.name: change(x) for f in fields(t) if (x := getattr(t, f.name)) is not None})


def learn(bonus: IntrinsicReward, t: Transition, rate: float = 0.01) -> Losses:
    """One step of plain gradient descent (no optimizer whose state would have to be carried along)."""
    losses = bonus.loss(t)
    moved = [p for p in bonus.parameters() if p.requires_grad]
    if moved:
        total = torch.stack(list(losses.values())).sum()
        for p, grad in zip(moved, torch.autograd.grad(total, moved, allow_unused=True), strict=True):
            if grad is not None:
                p.data.sub_(rate * grad.clamp(-1, 1))
    return losses


def learned(bonus: IntrinsicReward, spec: ActionSpec = CONTINUOUS) -> IntrinsicReward:
    """The bonus after some updates, its gates open: one that pays something."""
    for seed in range(20):
        if seed == 10:
            for part in bonus.modules():
                if isinstance(part, FitGate):
                    part.opened.fill_(1)
        learn(bonus, transition(seed, spec))
    return bonus


def equal_states(a: IntrinsicReward, b: IntrinsicReward) -> bool:
    """Bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def check_asking_changes_nothing(bonus: IntrinsicReward, spec: ActionSpec = CONTINUOUS) -> None:
    """Rule "asking is not learning": the same answer twice, state, arguments and the global generator untouched."""
    before, random = copy.deepcopy(bonus), torch.random.get_rng_state()
    t = dream(100, spec)
    kept = copy.deepcopy(t)
    first, second = bonus.reward(t), bonus.reward(t)
    assert torch.equal(first, second), "asked twice, it gave two answers"
    assert equal_states(before, bonus), "asking changed its state"
    assert torch.equal(random, torch.random.get_rng_state()), "asking drew from the global generator"
    assert torch.equal(t.feat, kept.feat), "asking changed the features it was given"
    assert torch.equal(t.action, kept.action), "asking changed the actions it was given"
    assert torch.equal(t.next_feat, kept.next_feat), "asking changed the next features it was given"
    assert not first.requires_grad, "the actor's loss could reach its parameters"


def check_steps_stand_alone(bonus: IntrinsicReward, spec: ActionSpec = CONTINUOUS) -> None:
    """A step is paid the same whatever steps lie beside it, in (B, T-1) as in (H, B)."""
    for t in (transition(101, spec).unseen(), dream(102, spec)):
        paid = bonus.reward(t)
        assert paid.shape == t.mask.shape, (paid.shape, t.mask.shape)
        assert paid.dtype == torch.float32, paid.dtype
        assert paid.isfinite().all(), paid
        for i in range(t.mask.shape[0]):
            for j in range(t.mask.shape[1]):
                alone = everywhere(t, lambda x, i=i, j=j: x[i : i + 1, j : j + 1])  # type: ignore[misc]
                torch.testing.assert_close(bonus.reward(alone)[0, 0], paid[i, j], rtol=1e-4, atol=1e-5)


def check_borders_teach_nothing(bonus: IntrinsicReward, spec: ActionSpec = CONTINUOUS) -> None:
    """Whatever stands where an episode ended, losses, parameters and payments stay the same bits."""
    twin = copy.deepcopy(bonus)
    for seed in range(200, 210):
        t = transition(seed, spec)
        assert not t.mask.all()
        losses, spoilt = learn(bonus, t), learn(twin, _with_garbage_at_borders(t))
        assert losses.keys() == spoilt.keys()
        assert all(torch.equal(losses[k], spoilt[k]) for k in losses), (losses, spoilt)
    for (name, p), q in zip(bonus.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), f"{name} learned from a border"
    assert torch.equal(bonus.reward(dream(211, spec)), twin.reward(dream(211, spec))), "it pays for a border"


def _with_garbage_at_borders(t: Transition) -> Transition:
    def spoil(x: Tensor) -> Tensor:
        border = ~t.mask.reshape(t.mask.shape + (1,) * (x.dim() - 2))
        return torch.where(border, 100 * x + 7, x)

    return replace(everywhere(t, spoil), mask=t.mask)


def check_state_is_all(
    fresh: Callable[[], IntrinsicReward], bonus: IntrinsicReward, spec: ActionSpec = CONTINUOUS
) -> None:
    """Saved and loaded into a bonus with other initial weights, it goes on with the same bits."""
    file = io.BytesIO()
    torch.save(bonus.state_dict(), file)
    file.seek(0)
    twin = fresh()
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(bonus.reward(dream(300, spec)), twin.reward(dream(300, spec))), "loaded, it pays otherwise"
    for seed in range(301, 306):
        losses, others = learn(bonus, transition(seed, spec)), learn(twin, transition(seed, spec))
        assert all(torch.equal(losses[k], others[k]) for k in losses), "loaded, it learns otherwise"
    assert equal_states(bonus, twin), "loaded, it ends elsewhere"


def check_losses(bonus: IntrinsicReward, spec: ActionSpec = CONTINUOUS) -> None:
    """Finite scalars that need no global generator, also where a batch holds nothing but borders."""
    random = torch.random.get_rng_state()
    t = transition(400, spec)
    for batch in (t, replace(t, mask=torch.zeros_like(t.mask))):
        for name, loss in learn(bonus, batch).items():
            assert loss.shape == (), (name, loss.shape)
            assert loss.isfinite(), (name, loss)
    assert torch.equal(random, torch.random.get_rng_state()), "learning drew from the global generator"
    assert all(x.isfinite().all() for x in bonus.state_dict().values() if x.is_floating_point())
