"""Actor, critic and returns: closed forms, and policies that can reach all that the env allows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from dreamer_lpm.behavior import Actor, Behavior, BehaviorConfig, Critic, ReturnRange, lambda_return
from dreamer_lpm.types import ActionSpec

CONFIG = BehaviorConfig(hidden=16, layers=1)
CONTINUOUS, DISCRETE = ActionSpec("continuous", 2), ActionSpec("discrete", 3)
F = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(actor: Actor, feat: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    return actor.sample(feat, actor.noise(torch.rand(*feat.shape[:-1], actor.spec.size, generator=generator(seed))))


def features(*lead: int, seed: int = 0) -> Tensor:
    return torch.randn(*lead, F, generator=generator(seed))


def seeded_behavior(spec: ActionSpec, cfg: BehaviorConfig = CONFIG) -> Behavior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Behavior(cfg, F, spec)


# --- lambda-return ----------------------------------------------------------------------------------------------------

H, B = 6, 3
LambdaReturn = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def dream() -> tuple[Tensor, Tensor, Tensor]:
    g = generator()
    reward, value = (torch.randn(n, B, generator=g, dtype=torch.float64) for n in (H, H + 1))
    discount = 0.99 * torch.rand(H, B, generator=g, dtype=torch.float64)
    discount[2, 1] = 0.0
    return reward, discount, value


def n_step_mixture(reward: Tensor, discount: Tensor, value: Tensor, lam: float) -> Tensor:
    """The definition: the n-step returns weighted by (1 - lam) lam^(n-1), what is left of the weight on the longest."""
    out = torch.zeros(H, B, dtype=torch.float64)
    for h in range(H):
        for b in range(B):
            total, weight = 0.0, 1.0
            for n in range(1, H - h + 1):
                n_step, through = 0.0, 1.0
                for k in range(h, h + n):
                    n_step += through * float(reward[k, b])
                    through *= float(discount[k, b])
                n_step += through * float(value[h + n, b])
                share = weight * (1 - lam) if n < H - h else weight
                total += share * n_step
                weight *= lam
            out[h, b] = total
    return out


def wrong_value(reward: Tensor, discount: Tensor, value: Tensor, lam: float) -> Tensor:
    """The mutant: bootstraps from the state acted in, not from the one entered."""
    return lambda_return(reward, discount, torch.cat([value[:1], value[:-1]]), lam)


def discounted_reward(reward: Tensor, discount: Tensor, value: Tensor, lam: float) -> Tensor:
    """The mutant: the reward on entering a terminal state is lost."""
    return lambda_return(reward * discount, discount, value, lam)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_lambda_return_is_the_mixture_of_n_step_returns(lam: float) -> None:
    reward, discount, value = dream()
    torch.testing.assert_close(
        lambda_return(reward, discount, value, lam), n_step_mixture(reward, discount, value, lam)
    )


@pytest.mark.parametrize("mutant", [wrong_value, discounted_reward])
def test_a_wrong_lambda_return_would_be_seen(mutant: LambdaReturn) -> None:
    reward, discount, value = dream()
    want = n_step_mixture(reward, discount, value, 0.95)
    assert (mutant(reward, discount, value, 0.95) - want).abs().max() > 0.1


def test_lambda_return_special_cases() -> None:
    reward, discount, value = dream()
    one_step = lambda_return(reward, discount, value, 0.0)
    torch.testing.assert_close(one_step, reward + discount * value[1:])
    undiscounted = lambda_return(reward, torch.ones_like(discount), value, 1.0)
    torch.testing.assert_close(undiscounted, reward.flip(0).cumsum(0).flip(0) + value[-1])
    assert torch.equal(one_step[2, 1], reward[2, 1]), "behind an end there is nothing"
    changed = value.clone()
    changed[3:, 1] += 100
    for lam in (0.0, 0.9, 1.0):
        before, after = (lambda_return(reward, discount, v, lam)[:3, 1] for v in (value, changed))
        assert torch.equal(before, after), "nor does anything behind it reach back"


def test_lambda_return_rejects_misaligned_shapes() -> None:
    reward, discount, value = dream()
    with pytest.raises(AssertionError):
        lambda_return(reward, discount, value[:-1], 0.95)


# --- the return range -------------------------------------------------------------------------------------------------


def test_return_range_is_the_debiased_moving_average_of_percentiles() -> None:
    rate, low, high = 0.1, 0.0, 0.0
    ranges = ReturnRange(rate)
    for k in range(1, 8):
        returns = torch.randn(5, 40, generator=generator(k)) * 10 + k
        ranges.update(returns)
        ordered = returns.double().flatten().sort().values
        for q, name in ((0.05, "low"), (0.95, "high")):
            place = q * (len(ordered) - 1)
            below = math.floor(place)
            end = float(ordered[below] + (place - below) * (ordered[below + 1] - ordered[below]))
            if name == "low":
                low += rate * (end - low)
            else:
                high += rate * (end - high)
        fill = 1 - (1 - rate) ** k
        torch.testing.assert_close(float(ranges.low), low / fill, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(float(ranges.high), high / fill, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(float(ranges.scale), (high - low) / fill, rtol=1e-4, atol=1e-4)


def test_small_returns_are_not_blown_up_and_outliers_do_not_count() -> None:
    ranges = ReturnRange(0.02)
    ranges.update(torch.full((100,), 5.0))
    assert float(ranges.scale) == 1.0
    outliers = ReturnRange(0.02)
    returns = torch.linspace(0, 10, 1000)
    returns[:10] = 1e6
    outliers.update(returns)
    assert 8 < float(outliers.scale) < 12


# --- the actor --------------------------------------------------------------------------------------------------------


def test_continuous_log_prob_and_entropy_are_those_of_the_normal() -> None:
    actor = seeded_behavior(CONTINUOUS).actor
    feat, sampled = features(4, 6), 3 * torch.randn(4, 6, 2, generator=generator(1))
    mean, raw = actor.net(feat).chunk(2, -1)
    std = CONFIG.min_std + (CONFIG.max_std - CONFIG.min_std) * torch.sigmoid(raw)
    want = Independent(Normal(torch.tanh(mean), std), 1)
    log_prob, entropy = actor.log_prob_and_entropy(feat, sampled)
    torch.testing.assert_close(log_prob, want.log_prob(sampled))
    torch.testing.assert_close(entropy, want.entropy())
    torch.testing.assert_close(actor.mode(feat), want.mean)


def test_discrete_log_prob_and_entropy_are_those_of_the_categorical() -> None:
    actor = seeded_behavior(DISCRETE).actor
    torch.nn.init.normal_(actor.net[-1].weight)  # type: ignore[arg-type]
    feat = features(4, 6)
    probs = (1 - CONFIG.unimix) * torch.softmax(actor.net(feat), -1) + CONFIG.unimix / 3
    want = Categorical(probs=probs)
    choice = want.sample()
    log_prob, entropy = actor.log_prob_and_entropy(feat, torch.nn.functional.one_hot(choice, 3).float())
    torch.testing.assert_close(log_prob, want.log_prob(choice), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy, want.entropy(), rtol=1e-4, atol=1e-5)
    assert torch.equal(actor.mode(feat).argmax(-1), probs.argmax(-1))


def test_discrete_samples_are_one_hot_and_as_frequent_as_the_policy_says() -> None:
    actor = seeded_behavior(DISCRETE).actor
    torch.nn.init.normal_(actor.net[-1].weight)  # type: ignore[arg-type]
    feat = features(1).expand(20_000, F)
    executed, sampled = sample(actor, feat)
    assert torch.equal(executed, sampled)
    assert torch.equal(executed.sum(-1), torch.ones(20_000))
    assert torch.equal(executed.max(-1).values, torch.ones(20_000))
    each = torch.eye(3)
    probs = actor.log_prob_and_entropy(feat[:3], each)[0].exp()
    assert ((executed.mean(0) - probs) / (probs * (1 - probs) / 20_000).sqrt()).abs().max() < 4


class Squashed(Actor):
    """The mutant: samples pass through tanh, so they stay inside (-1, 1)."""

    def sample(self, feat: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        _, sampled = super().sample(feat, noise)
        return 0.999 * torch.tanh(sampled), sampled


class Narrow(Actor):
    """The mutant: actions in (-1, 1) for an env that spans twice that, as if torque 2 were never asked for."""

    def sample(self, feat: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        _, sampled = super().sample(feat, noise)
        return sampled.clamp(-1, 1) / 2, sampled


@pytest.mark.parametrize(
    ("kind", "reaches"), [(Actor, True), (Squashed, False), (Narrow, False)], ids=["ours", "squashed", "narrow"]
)
def test_an_untaught_actor_reaches_both_ends_of_every_dimension_and_no_further(
    kind: type[Actor], reaches: bool
) -> None:
    torch.manual_seed(0)
    actor = kind(CONFIG, F, CONTINUOUS)
    executed, sampled = sample(actor, features(1000))
    assert ((executed.amin(0) == -1) & (executed.amax(0) == 1)).all() == reaches
    if reaches:
        assert torch.equal(executed, sampled.clamp(-1, 1))
        assert 0.1 < float((executed.abs() < 1).float().mean()) < 0.95, "and it explores what lies between"


def test_an_untaught_actor_begins_in_the_middle() -> None:
    assert seeded_behavior(CONTINUOUS).actor.mode(features(100)).abs().max() < 0.3
    _, entropy = seeded_behavior(DISCRETE).actor.log_prob_and_entropy(features(100), torch.eye(3)[[0] * 100])
    assert entropy.min() > 0.95 * math.log(3)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_the_mode_is_deterministic_and_samples_come_from_the_generator_alone(spec: ActionSpec) -> None:
    actor, feat = seeded_behavior(spec).actor, features(50)
    before = torch.get_rng_state()
    assert torch.equal(actor.mode(feat), actor.mode(feat))
    a, b, c = (sample(actor, feat, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


# --- the critic -------------------------------------------------------------------------------------------------------


def test_an_untaught_critic_expects_exactly_nothing() -> None:
    assert torch.equal(Critic(CONFIG, F)(features(7)), torch.zeros(7))


def test_the_slow_critic_follows_at_its_rate_and_is_not_trained() -> None:
    torch.manual_seed(0)
    critic = Critic(CONFIG, F)
    critic.loss(features(7), torch.ones(7)).mean().backward()
    assert all(p.grad is None for p in critic.slow.parameters())
    with torch.no_grad():
        for p in critic.net.parameters():
            p.add_(1.0)
    before = [p.clone() for p in critic.slow.parameters()]
    critic.follow()
    for old, slow, fast in zip(before, critic.slow.parameters(), critic.net.parameters(), strict=True):
        torch.testing.assert_close(slow, old + CONFIG.slow_rate * (fast.detach() - old))


def test_critic_loss_pulls_to_the_returns_and_to_the_slow_copy() -> None:
    torch.manual_seed(0)
    critic = Critic(CONFIG, F)
    with torch.no_grad():
        torch.nn.init.normal_(critic.net[-1].weight)  # type: ignore[arg-type]
        torch.nn.init.normal_(critic.slow[-1].weight)  # type: ignore[arg-type]
    feat, returns = features(7), torch.linspace(-9, 9, 7)
    log_probs = torch.log_softmax(critic.net(feat), -1)
    slow = critic.dist.mean(critic.slow(feat))
    want = -((critic.dist.encode(returns) + critic.dist.encode(slow)) * log_probs).sum(-1)
    torch.testing.assert_close(critic.loss(feat, returns), want)


# --- the joint loss ---------------------------------------------------------------------------------------------------


class Dreamt:
    """A dream of 4 steps and 5 trajectories for a behavior whose critic is not untaught."""

    def __init__(self, spec: ActionSpec) -> None:
        self.behavior = seeded_behavior(spec)
        torch.nn.init.normal_(self.behavior.critic.net[-1].weight, generator=generator())  # type: ignore[arg-type]
        self.feat = features(5, 5)
        self.sampled = sample(self.behavior.actor, self.feat[:-1], 1)[1]
        self.reward = torch.randn(4, 5, generator=generator(2))
        self.cont = torch.ones(4, 5)
        self.alive = torch.ones(5, dtype=torch.bool)

    def loss(self) -> dict[str, Tensor]:
        return self.behavior.loss(self.feat, self.sampled, self.reward, self.cont, self.alive)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_loss_is_reinforce_on_normalised_advantages(spec: ActionSpec) -> None:
    x = Dreamt(spec)
    x.cont = torch.rand(4, 5, generator=generator(3))
    x.alive[4] = False
    losses = x.loss()
    behavior = x.behavior
    with torch.no_grad():
        value = behavior.critic(x.feat)
        returns = lambda_return(x.reward, CONFIG.gamma * x.cont, value, CONFIG.lam)
        ends = torch.quantile(returns, torch.tensor([0.05, 0.95]))
        advantage = (returns - value[:-1]) / (ends[1] - ends[0]).clamp(min=1)
        weight = torch.ones(4, 5)
        for h in range(1, 4):
            weight[h] = weight[h - 1] * x.cont[h - 1]
        weight[:, 4] = 0
    log_prob, entropy = behavior.actor.log_prob_and_entropy(x.feat[:-1], x.sampled)
    torch.testing.assert_close(losses["actor"], -weight * (log_prob * advantage + CONFIG.entropy * entropy))
    torch.testing.assert_close(losses["critic"], weight * behavior.critic.loss(x.feat[:-1], returns))


def test_states_behind_an_end_teach_nothing() -> None:
    x = Dreamt(DISCRETE)
    x.cont[1, 2] = 0.0  # state 2 of trajectory 2 is terminal
    x.alive[4] = False
    for loss in x.loss().values():
        alive = loss != 0
        assert not alive[:, 4].any()
        assert alive[:2, 2].all()
        assert not alive[2:, 2].any()
        assert alive[:, [0, 1, 3]].all()


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_each_loss_trains_its_own_part_alone(name: str) -> None:
    x = Dreamt(CONTINUOUS)
    x.feat.requires_grad_()
    x.reward.requires_grad_()
    loss = x.loss()[name].mean()
    # The feature may ask for a gradient (in training it is dreamt without one); the reward must not be learned here.
    loss.backward()
    assert x.reward.grad is None
    trained = {"actor": x.behavior.actor, "critic": x.behavior.critic.net}
    for part, net in trained.items():
        assert all((p.grad is not None and bool(p.grad.any())) == (part == name) for p in net.parameters()), part


def test_the_optimizer_moves_all_but_the_slow_critic() -> None:
    behavior = seeded_behavior(CONTINUOUS)
    slow = {id(p) for p in behavior.critic.slow.parameters()}
    assert {id(p) for p in behavior.parameters() if p.requires_grad} == {id(p) for p in behavior.parameters()} - slow


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_randomness_is_one_at_the_most_random_and_nothing_at_the_least(spec: ActionSpec) -> None:
    behavior = Behavior(CONFIG, F, spec)
    last = behavior.actor.net[-1]

    def randomness() -> float:
        feat = torch.zeros(3, 2, F)
        sampled, one = behavior.actor.sample(feat[:-1], torch.zeros(2, 2, spec.size))[1], torch.ones(2, 2)
        behavior.loss(feat, sampled, one, one, torch.ones(2, dtype=torch.bool))
        return float(behavior.randomness)

    last.weight.data.zero_()
    last.bias.data.zero_()
    if not spec.is_discrete:
        last.bias.data[spec.size :] = 50.0
    assert randomness() == pytest.approx(1.0, abs=1e-3)
    if spec.is_discrete:
        last.bias.data[0] = 100.0
    else:
        last.bias.data[spec.size :] = -50.0
    assert randomness() == pytest.approx(0.0, abs=1e-3)
