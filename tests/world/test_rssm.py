"""RSSM: filtering a sequence is filtering step by step, a border cuts memory, and gradients pass through samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dreamer_lpm.world import RSSM, Latent, RSSMConfig
from tests.world.tiny import RSSM_CONFIG, codes, generator, imagined

B, T, A, E = 3, 5, 2, 7


def make_rssm(blocks: int = 1, cfg: RSSMConfig = RSSM_CONFIG) -> RSSM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RSSM(RSSMConfig(cfg.deter, cfg.hidden, cfg.stoch, cfg.classes, blocks), A, E)


class Inputs:
    """Random inputs of :meth:`RSSM.observe`, with borders at the start of one sequence and in the middle of another."""

    def __init__(self, rssm: RSSM) -> None:
        g = generator(1)
        self.start = Latent(
            torch.randn(B, rssm.cfg.deter, generator=g),
            rssm.sample(torch.zeros(B, rssm.cfg.stoch, rssm.cfg.classes), codes(rssm, (B,), g)),
        )
        self.action = torch.rand(B, T, A, generator=g) * 2 - 1
        self.embed = torch.randn(B, T, E, generator=g)
        self.is_first = torch.zeros(B, T, dtype=torch.bool)
        self.is_first[0, 0] = self.is_first[1, 2] = True
        self.noise = codes(rssm, (B, T), g)

    def observe(self, rssm: RSSM) -> tuple[Latent, Tensor, Tensor, Tensor]:
        return rssm.observe(self.start, self.action, self.embed, self.is_first, self.noise)


def half_asleep(rssm: RSSM) -> RSSM:
    """With a gate that looks at some frames and declines others."""
    assert rssm.gate is not None
    latents, *_ = Inputs(rssm).observe(rssm)
    rssm.gate.threshold.copy_(rssm.gate.expected(latents.deter).detach().median())
    rssm.gate.active.fill_(1.0)
    return rssm


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("blocks", [1, 4])
def test_observe_equals_observe_step_by_step(blocks: int, gated: bool) -> None:
    """Training sees what acting saw: one pass with projections hoisted out of the loop equals single steps."""
    rssm = half_asleep(make_rssm(blocks)) if gated else make_rssm(blocks)
    x = Inputs(rssm)
    latents, post, prior, look = x.observe(rssm)
    state = x.start
    for t in range(T):
        state = rssm.observe_step(state, x.action[:, t], x.embed[:, t], x.is_first[:, t], x.noise[:, t])
        torch.testing.assert_close(latents.deter[:, t], state.deter)
        torch.testing.assert_close(latents.stoch[:, t], state.stoch)
        torch.testing.assert_close(prior[:, t], rssm.prior(state.deter))
        w = look[:, t, None, None]
        mixed = w * rssm.posterior(state.deter, rssm.post_embed(x.embed[:, t])).exp() + (1 - w) * prior[:, t].exp()
        torch.testing.assert_close(post[:, t].exp(), mixed)
    assert bool((look < 1).any()) == gated
    assert torch.equal(look[x.is_first], torch.ones(2)), "what a reset shows is always looked at"


def plainly(x: Inputs, rssm: RSSM) -> tuple[Latent, Tensor, Tensor, Tensor]:
    """``observe``, step by step, with the gradient left to autograd."""
    keep = (~x.is_first).float().unsqueeze(-1)
    states, seen = [x.start], []
    for t in range(T):
        before = Latent(*(part * keep[:, t] for part in states[-1]))
        deter = rssm.core(before, rssm.in_action(x.action[:, t] * keep[:, t]))
        seen.append(rssm.see(deter, rssm.post_embed(x.embed[:, t]), x.is_first[:, t]))
        states.append(Latent(deter, rssm.sample(seen[-1][0], x.noise[:, t])))
    latents = Latent(*(torch.stack(part, 1) for part in zip(*states[1:], strict=True)))
    return latents, *(torch.stack(part, 1) for part in zip(*seen, strict=True))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("blocks", [1, 4])
def test_the_gradient_that_is_written_out_is_autograds(blocks: int, gated: bool) -> None:
    """Of every output, into every weight and every picture and action, against the plain loop."""
    rssm = half_asleep(make_rssm(blocks)) if gated else make_rssm(blocks)
    x = Inputs(rssm)
    x.embed.requires_grad_()
    x.action.requires_grad_()
    learned = {name: p for name, p in rssm.named_parameters() if not name.startswith("gate")}
    g = generator(2)

    def gradients(out: Tensor, weight: Tensor) -> list[Tensor | None]:
        inputs = [x.embed, x.action, *learned.values()]
        return list(torch.autograd.grad((out * weight).sum(), inputs, retain_graph=True, allow_unused=True))

    outs = []
    for latents, post, prior, look in (x.observe(rssm), plainly(x, rssm)):
        outs.append((latents.deter, latents.stoch, post, prior))
        assert not look.requires_grad
    reached = set[str]()
    for fast, plain in zip(*outs, strict=True):
        torch.testing.assert_close(fast, plain)
        weight = torch.randn(fast.shape, generator=g)
        for name, a, b in zip(
            ["embed", "action", *learned], gradients(fast, weight), gradients(plain, weight), strict=True
        ):
            if b is not None:
                assert a is not None
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-7)
                reached.add(name)
    assert reached == {"embed", "action", *learned}


@pytest.mark.parametrize("blocks", [1, 4])
def test_several_agents_filter_as_one(blocks: int) -> None:
    """Inside of vmap, with a gate that declines: what each finds alone, and each one's gradients."""
    rssms = [half_asleep(make_rssm(blocks)) for _ in range(2)]
    with torch.no_grad():
        rssms[1].in_stoch.weight.mul_(3)
        rssms[1].post_deter.weight.neg_()
    x = Inputs(rssms[0])
    gone = torch.randn(B, T, rssms[0].feat_size, generator=generator(2))

    def score(latents: Latent, post: Tensor, prior: Tensor, look: Tensor) -> tuple[Tensor, Tensor]:
        return (latents.feat * gone).sum() + (post.exp() * prior).square().sum(), look

    class Observing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rssm = rssms[0]

        def forward(self) -> tuple[Tensor, Tensor]:
            return score(*x.observe(self.rssm))

    alone = [score(*x.observe(rssm)) for rssm in rssms]
    gradients = [
        torch.autograd.grad(found, [p for p in rssm.parameters() if p.requires_grad], allow_unused=True)
        for (found, _), rssm in zip(alone, rssms, strict=True)
    ]
    held = {
        name: torch.stack([rssm.state_dict()[name] for rssm in rssms]).requires_grad_(not name.startswith("gate"))
        for name in rssms[0].state_dict()
    }
    rssms[0].together = True
    module = Observing()
    scores, looks = vmap(lambda w: functional_call(module, {f"rssm.{k}": v for k, v in w.items()}, ()))(held)
    scores.sum().backward()
    assert (looks < 1).any()
    for i, (found, look) in enumerate(alone):
        torch.testing.assert_close(scores[i], found)
        torch.testing.assert_close(looks[i], look)
        for (name, _), wanted in zip(rssms[i].named_parameters(), gradients[i], strict=True):
            if wanted is not None:
                grad = held[name].grad
                assert grad is not None
                torch.testing.assert_close(grad[i], wanted, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_dream_is_imagined_step_by_step(blocks: int) -> None:
    rssm = make_rssm(blocks)
    x = Inputs(rssm)
    noise, policy_noise = x.noise.transpose(0, 1), torch.randn(T, B, A, generator=generator(3))

    def policy(feat: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return (feat[:, :A] + noise).clamp(-1, 1), feat[:, :A] + noise

    with torch.no_grad():
        feats, actions, sampled = rssm.imagine(x.start, policy, noise, policy_noise)
        state = x.start
        for h in range(T):
            torch.testing.assert_close(feats[h], state.feat)
            wanted = policy(state.feat, policy_noise[h])
            torch.testing.assert_close((actions[h], sampled[h]), wanted)
            state = imagined(rssm, state, wanted[0], noise[h])
        torch.testing.assert_close(feats[T], state.feat)


@pytest.mark.parametrize("gated", [False, True])
def test_log_probabilities_are_normalised(gated: bool) -> None:
    rssm = half_asleep(make_rssm()) if gated else make_rssm()
    for log_probs in Inputs(rssm).observe(rssm)[1:3]:
        assert log_probs.shape == (B, T, rssm.cfg.stoch, rssm.cfg.classes)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(B, T, rssm.cfg.stoch))


def cuts_memory(observe: Callable[[RSSM, Inputs], Latent]) -> bool:
    """Whether nothing before a border, nor the action at it, reaches the states from the border on."""
    rssm = make_rssm()
    x, y = Inputs(rssm), Inputs(rssm)
    y.start = Latent(y.start.deter + 1, y.start.stoch.roll(1, -1))
    y.action[:, :3] += 0.5
    y.embed[:, :2] += 1.0
    a, b = observe(rssm, x), observe(rssm, y)
    assert not torch.equal(a.deter[2, 2:], b.deter[2, 2:]), "without a border the past must matter"
    return torch.equal(a.deter[1, 2:], b.deter[1, 2:]) and torch.equal(a.stoch[1, 2:], b.stoch[1, 2:])


def deaf_to_borders(rssm: RSSM, x: Inputs) -> Latent:
    """The mutant: a border is treated as a transition."""
    x.is_first = torch.zeros_like(x.is_first)
    return x.observe(rssm)[0]


def border_keeps_action(rssm: RSSM, x: Inputs) -> Latent:
    """The mutant: state is cut at a border, but the action of the old episode's end still enters."""
    state, states = x.start, []
    for t in range(T):
        keep = (~x.is_first[:, t]).float().unsqueeze(-1)
        deter = rssm.core(Latent(state.deter * keep, state.stoch * keep), rssm.in_action(x.action[:, t]))
        post = rssm.posterior(deter, rssm.post_embed(x.embed[:, t]))
        state = Latent(deter, rssm.sample(post, x.noise[:, t]))
        states.append(state)
    return Latent(torch.stack([s.deter for s in states], 1), torch.stack([s.stoch for s in states], 1))


def test_is_first_cuts_memory() -> None:
    assert cuts_memory(lambda rssm, x: x.observe(rssm)[0])
    assert not cuts_memory(deaf_to_borders)
    assert not cuts_memory(border_keeps_action)


def test_a_border_begins_like_an_episode() -> None:
    """The state at a border is the one that the zero state and the zero action lead to."""
    rssm = make_rssm()
    x = Inputs(rssm)
    latents, *_ = x.observe(rssm)
    zero = rssm.initial((1,), torch.device("cpu"))
    begun = rssm.observe_step(
        zero, torch.zeros(1, A), x.embed[1:2, 2], torch.zeros(1, dtype=torch.bool), x.noise[1:2, 2]
    )
    torch.testing.assert_close(latents.deter[1:2, 2], begun.deter)
    torch.testing.assert_close(latents.stoch[1:2, 2], begun.stoch)


def test_the_future_does_not_reach_back() -> None:
    rssm = make_rssm()
    x, y = Inputs(rssm), Inputs(rssm)
    y.embed[:, 3:] += 1.0
    y.action[:, 3:] += 0.5
    (a, _, prior_a, _), (b, _, prior_b, _) = x.observe(rssm), y.observe(rssm)
    assert torch.equal(a.feat[:, :3], b.feat[:, :3])
    assert torch.equal(prior_a[:, :3], prior_b[:, :3])
    assert not torch.equal(a.feat[2, 3], b.feat[2, 3])


def test_the_prior_of_a_step_knows_the_action_but_not_the_picture() -> None:
    rssm = make_rssm()
    x, y, z = Inputs(rssm), Inputs(rssm), Inputs(rssm)
    y.embed[:, -1] += 1.0
    z.action[:, -1] += 0.5
    (_, post_x, prior_x, _), (_, post_y, prior_y, _), (_, _, prior_z, _) = (i.observe(rssm) for i in (x, y, z))
    assert torch.equal(prior_x, prior_y)
    assert not torch.equal(post_x[:, -1], post_y[:, -1])
    assert not torch.equal(prior_x[:, -1], prior_z[:, -1])


def test_gradients_pass_through_samples_and_through_time() -> None:
    """The last state answers for the first picture, though only samples, straight-through, lie between."""
    rssm = make_rssm()
    x = Inputs(rssm)
    x.embed.requires_grad_()
    latents, *_ = x.observe(rssm)
    (gradient,) = torch.autograd.grad(latents.deter[:, -1].square().sum(), x.embed)
    reached = gradient.abs().sum(-1) > 0
    assert reached[2, :4].all()
    assert not reached[2, 4], "the last picture enters the last sample, not the last deter"
    assert not reached[1, :2].any(), "no gradient crosses a border"
    assert reached[1, 2:4].all()


def test_a_step_of_a_dream_is_observe_step_with_the_prior_in_place_of_the_posterior() -> None:
    rssm = make_rssm()
    x = Inputs(rssm)
    no_border = torch.zeros(B, dtype=torch.bool)
    dreamt = imagined(rssm, x.start, x.action[:, 0], x.noise[:, 0])
    seen = rssm.observe_step(x.start, x.action[:, 0], x.embed[:, 0], no_border, x.noise[:, 0])
    torch.testing.assert_close(dreamt.deter, seen.deter)
    torch.testing.assert_close(dreamt.stoch, rssm.sample(rssm.prior(seen.deter), x.noise[:, 0]))
    assert torch.equal(
        imagined(rssm, x.start, x.action[:, 0], None).stoch.unflatten(-1, (4, 4)).argmax(-1),
        rssm.prior(seen.deter).argmax(-1),
    )


def test_recurrent_state_stays_within_one() -> None:
    """deter is a convex combination of its past and a tanh, so it cannot blow up over long sequences."""
    rssm = make_rssm()
    with torch.no_grad():
        for p in rssm.parameters():
            p.mul_(20)
    state = rssm.initial((4,), torch.device("cpu"))
    g = generator()
    for _ in range(50):
        state = imagined(rssm, state, torch.randn(4, A, generator=g), codes(rssm, (4,), g))
    assert state.deter.abs().max() <= 1


def gates_stay_in_their_block(core: Callable[[RSSM, Latent, Tensor], Tensor], blocks: int) -> bool:
    """Whether every unit's gates depend on the recurrent state of its own block, all of it, and on no other block."""
    rssm = make_rssm(blocks)
    rssm.core_norm = nn.Identity()  # type: ignore[assignment]  # it couples all units, which is not the question
    x = Inputs(rssm)
    action_in = rssm.in_action(x.action[0, 0])
    jacobian = torch.autograd.functional.jacobian(
        lambda deter: core(rssm, Latent(deter, x.start.stoch[0]), action_in), x.start.deter[0]
    )
    width = rssm.cfg.deter // blocks
    inside = torch.block_diag(*[torch.ones(width, width)] * blocks).bool()
    return bool(((jacobian != 0) == inside).all())


def core_split_across_blocks(rssm: RSSM, prev: Latent, action_in: Tensor) -> Tensor:
    """The mutant: the core's outputs are cut in three as a whole, so a unit's candidate comes from a foreign block."""
    x = nn.functional.silu(rssm.in_norm(rssm.in_stoch(prev.stoch) + action_in))
    reset, candidate, update = rssm.core_norm(rssm.core_in(x) + rssm.core_rec(prev.deter)).chunk(3, -1)
    update = torch.sigmoid(update - 1)
    return update * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - update) * prev.deter


def test_each_block_of_the_core_recurs_on_itself() -> None:
    assert gates_stay_in_their_block(RSSM.core, 1)
    assert gates_stay_in_their_block(core_split_across_blocks, 1), "with one block there is nothing to mix up"
    assert not gates_stay_in_their_block(core_split_across_blocks, 4)
    assert gates_stay_in_their_block(RSSM.core, 4)
