"""World model: its loss against closed forms, which gradient goes where, and what predicts without having seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, OneHotCategorical, kl_divergence

from dreamer_lpm.types import Batch
from dreamer_lpm.world import Latent, WorldModel
from tests.world.tiny import RSSM_CONFIG, WORLD_CONFIG, codes, generator, imagined, learned, random_batch, tiny_world


def observed(world: WorldModel, batch: Batch) -> tuple[Latent, Tensor, Tensor, Tensor]:
    noise = codes(world.rssm, batch.reward.shape, generator())
    return world.rssm.observe(world.start(batch), batch.action, world.encoder(batch.obs), batch.is_first, noise)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_losses_are_what_they_are_said_to_be() -> None:
    knee = 500.0
    cfg = replace(WORLD_CONFIG, free_nats=0.0, dyn_scale=0.7, rep_scale=0.2, recon_knee=knee)
    world, batch = tiny_world(cfg=cfg), random_batch()
    lesson, losses = learned(world, batch)
    want, post, prior, look = observed(world, batch)
    torch.testing.assert_close(lesson.latents.feat, want.feat)
    torch.testing.assert_close(lesson.prior, prior)
    target = batch.obs.double() / 255
    assert torch.equal(lesson.look, look)
    kl = kl_divergence(Independent(OneHotCategorical(logits=post), 1), Independent(OneHotCategorical(logits=prior), 1))
    torch.testing.assert_close(losses["dyn"], 0.7 * kl)
    torch.testing.assert_close(losses["rep"], 0.2 * kl)
    error = (world.decoder(want.feat).double() - target).square().sum((-3, -2, -1))
    torch.testing.assert_close(losses["recon"].double(), look * knee * (1 + error / knee).log(), rtol=1e-5, atol=0)
    assert world.rssm.gate is not None
    wrong = (world.predict(want) - target).square().mean((-3, -2, -1)).float()
    torch.testing.assert_close(world.foresee(batch, lesson)[0], wrong)
    left = wrong.log()
    torch.testing.assert_close(
        losses["gate"], (world.rssm.gate.expected(want.deter) - left).square(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(losses["reward"], world.reward.loss(want.feat, batch.reward))
    torch.testing.assert_close(losses["cont"], world.cont.loss(want.feat, batch.is_terminal))
    assert losses.keys() == {"recon", "dyn", "rep", "reward", "cont", "gate"}
    assert {x.shape for x in losses.values()} == {(2, 6)}


def gradient_norms(world: WorldModel, loss: Tensor) -> dict[str, float]:
    """Size of the gradient in the net of the prior and in that of the posterior."""
    nets = {"prior": world.rssm.prior_net, "posterior": world.rssm.post_out}
    world.zero_grad()
    loss.sum().backward(retain_graph=True)
    return {
        name: sum(float(p.grad.abs().sum()) for p in net.parameters() if p.grad is not None)
        for name, net in nets.items()
    }


def test_kl_balancing_teaches_each_side_by_its_own_term() -> None:
    """dyn moves the prior alone, rep the posterior alone (in one step; over several, samples join them)."""
    world, batch = tiny_world(cfg=replace(WORLD_CONFIG, free_nats=0.0)), random_batch(lead=(4, 4))
    batch = Batch(*(x[:, :1] for x in batch[:-2]), batch.deter, batch.stoch)
    losses = learned(world, batch)[1]
    dyn, rep = gradient_norms(world, losses["dyn"]), gradient_norms(world, losses["rep"])
    assert dyn["prior"] > 0 and dyn["posterior"] == 0  # noqa: PT018
    assert rep["posterior"] > 0 and rep["prior"] == 0  # noqa: PT018


def test_free_nats_cut_the_kl_and_its_gradient() -> None:
    world, batch = tiny_world(cfg=replace(WORLD_CONFIG, free_nats=50.0)), random_batch()
    losses = learned(world, batch)[1]
    assert torch.equal(losses["dyn"], torch.full((2, 6), 50.0))
    assert sum(gradient_norms(world, losses["dyn"] + losses["rep"]).values()) == 0


@pytest.mark.parametrize("name", ["recon", "reward", "cont"])
def test_every_head_shapes_the_latent(name: str) -> None:
    """Reward and continuation are learned features of the world, not read off a picture model."""
    world, batch = tiny_world(), random_batch()
    torch.nn.init.normal_(world.reward.net[-1].weight)  # type: ignore[arg-type]  # its zero start passes no gradient
    losses = learned(world, batch)[1]
    world.zero_grad()
    losses[name].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in world.encoder.parameters())


def test_only_the_termination_flag_teaches_an_end() -> None:
    """``is_terminal`` alone: where a time limit cut the episode it is false, and the value there is bootstrapped."""
    world, batch = tiny_world(), random_batch()
    going_on = batch._replace(is_terminal=torch.zeros_like(batch.is_terminal))
    a, b = (learned(world, x)[1] for x in (batch, going_on))
    changed = a["cont"] != b["cont"]
    assert torch.equal(changed, batch.is_terminal)
    assert all(torch.equal(a[k], b[k]) for k in a if k != "cont")


def test_losses_never_read_the_tv() -> None:
    world, batch = tiny_world(), random_batch()
    flipped = batch._replace(tv_on=~batch.tv_on)
    a, b = (learned(world, x)[1] for x in (batch, flipped))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_start_is_the_latent_that_the_replay_stored() -> None:
    world, batch = tiny_world(), random_batch()
    start = world.start(batch)
    assert torch.equal(start.deter, batch.deter)
    one_hot = start.stoch.unflatten(-1, (RSSM_CONFIG.stoch, RSSM_CONFIG.classes))
    assert torch.equal(one_hot.sum(-1), torch.ones(2, RSSM_CONFIG.stoch))
    assert torch.equal(one_hot.argmax(-1), batch.stoch.long())


# --- the prediction ---------------------------------------------------------------------------------------------------

Predict = Callable[[WorldModel, Latent], Tensor]


def reconstruction(world: WorldModel, latents: Latent) -> Tensor:
    """The mutant: decodes the posterior, which has already seen the frame."""
    return world.decoder(latents.feat).detach()


def mean_of_the_prior(world: WorldModel, latents: Latent) -> Tensor:
    """The mutant: decodes the prior's probabilities, a point that is no latent."""
    mean = world.rssm.prior(latents.deter).exp().flatten(-2)
    return world.decoder(Latent(latents.deter, mean).feat).detach()


def predicts_before_it_sees(predict: Predict) -> bool:
    """Whether the prediction of a frame depends on the frames before it and not on the frame itself."""
    world, batch = tiny_world(), random_batch()
    changed = batch._replace(obs=batch.obs.clone())
    changed.obs[:, 4] = 255 - changed.obs[:, 4]
    a, b = (predict(world, observed(world, x)[0]) for x in (batch, changed))
    assert torch.equal(a[:, :4], b[:, :4])
    assert not torch.equal(a[:, 5], b[:, 5]), "what was seen must inform the next prediction"
    return torch.equal(a[:, 4], b[:, 4])


def decodes_a_codeword(predict: Predict) -> bool:
    """Whether the decoder is asked only for one-hot latents, the only ones it was trained on."""
    world = tiny_world()
    latents = observed(world, random_batch())[0]
    asked: list[Tensor] = []
    world.decoder.register_forward_pre_hook(lambda module, args: asked.append(args[0]))
    predict(world, latents)
    stoch = asked[0][..., RSSM_CONFIG.deter :].unflatten(-1, (RSSM_CONFIG.stoch, RSSM_CONFIG.classes))
    return torch.equal(stoch.sort(-1).values, torch.eye(RSSM_CONFIG.classes)[-1].expand_as(stoch))


@pytest.mark.parametrize(
    ("predict", "blind", "codeword"),
    [(WorldModel.predict, True, True), (reconstruction, False, True), (mean_of_the_prior, True, False)],
    ids=["ours", "reconstruction", "mean"],
)
def test_prediction_is_a_codeword_chosen_before_the_frame_was_seen(
    predict: Predict, blind: bool, codeword: bool
) -> None:
    assert predicts_before_it_sees(predict) == blind
    assert decodes_a_codeword(predict) == codeword


def test_prediction_is_the_decoded_mode_of_the_prior_and_trains_nothing() -> None:
    world = tiny_world()
    latents, _, prior, _ = observed(world, random_batch())
    mode = torch.nn.functional.one_hot(prior.argmax(-1), RSSM_CONFIG.classes).flatten(-2).float()
    predicted = world.predict(latents)
    torch.testing.assert_close(predicted, world.decoder(Latent(latents.deter, mode).feat))
    assert not predicted.requires_grad


# --- the dream --------------------------------------------------------------------------------------------------------


def test_each_dreamt_state_follows_from_the_one_before_by_the_action_taken_in_it() -> None:
    world = tiny_world()
    start = world.start(random_batch(lead=(3, 4)))
    asked: list[Tensor] = []

    def policy(feat: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(feat)
        sampled = feat[:, :2] * 3
        return sampled.clamp(-1, 1), sampled

    dream = world.rssm.imagine(start, policy, codes(world.rssm, (5, 3), generator(1)), torch.zeros(5, 3, 2))
    assert dream.feat.shape == (6, 3, world.rssm.feat_size)
    assert dream.action.shape == dream.sampled.shape == (5, 3, 2)
    assert not dream.feat.requires_grad
    assert torch.equal(dream.feat[0], start.feat)
    assert torch.equal(torch.stack(asked), dream.feat[:-1]), "an action is chosen in the state it is taken in"
    assert torch.equal(dream.action, dream.sampled.clamp(-1, 1))
    state, noise = start, codes(world.rssm, (5, 3), generator(1))
    for h in range(5):
        state = imagined(world.rssm, state, dream.action[h], noise[h])
        torch.testing.assert_close(dream.feat[h + 1], state.feat)


def test_a_fresh_posterior_tells_pictures_apart() -> None:
    """Codes that differ between frames from the first update on: learning takes off that much sooner."""
    world, batch = tiny_world(), random_batch(lead=(4, 6))
    lesson = world.watch(batch, codes(world.rssm, batch.reward.shape, generator()))
    assert lesson.post.exp().amax(-1).mean() > 0.6
