"""Codec: sizes, and that what is top left in the picture is top left everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreamer_lpm.presets import PRESETS
from dreamer_lpm.world import Decoder, Encoder
from dreamer_lpm.world.codec import Stages, as_products

STAGES = sorted({cfg.agent.world.stages for cfg in PRESETS.values()})
every_stages = pytest.mark.parametrize("stages", STAGES, ids=lambda s: f"{len(s)} convolutions")


def codec(stages: Stages, feat_size: int = 5, depth: int = 2, size: int = 64) -> tuple[Encoder, Decoder]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(depth, stages, size), Decoder(feat_size, depth, stages, size)


@every_stages
@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_sizes(stages: Stages, size: int, lead: tuple[int, ...]) -> None:
    encoder, decoder = codec(stages, size=size)
    embed = encoder(torch.zeros(*lead, size, size, 3, dtype=torch.uint8))
    assert embed.shape == (*lead, encoder.size)
    picture = decoder(torch.zeros(*lead, 5))
    assert picture.shape == (*lead, size, size, 3)
    assert picture.dtype == torch.float32


@every_stages
def test_every_picture_of_a_batch_is_its_own(stages: Stages) -> None:
    """Batched equals one by one, in order; nothing leaks between pictures."""
    encoder, decoder = codec(stages)
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 3, 64, 64, 3), generator=g, dtype=torch.uint8)
    feat = torch.randn(2, 3, 5, generator=g)
    for b in range(2):
        for t in range(3):
            torch.testing.assert_close(encoder(frames)[b, t], encoder(frames[b, t]), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(decoder(feat)[b, t], decoder(feat[b, t]), rtol=1e-4, atol=1e-5)


def spot(row: int, column: int) -> Tensor:
    """A grey picture with one bright 16x16 block; (row, column) counts blocks."""
    frame = torch.full((64, 64, 3), 128, dtype=torch.uint8)
    frame[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 255
    return frame


@every_stages
@pytest.mark.parametrize("transposed", [False, True], ids=["ours", "mutant"])
def test_encoder_keeps_places(stages: Stages, transposed: bool) -> None:
    """The cells of the embedding, (h, w, C), that answer to a bright block lie where the block is."""
    encoder, _ = codec(stages)
    side = 64
    for _, stride, _ in stages:
        side //= stride
    row, column = 0, 3
    frame = spot(row, column).transpose(0, 1) if transposed else spot(row, column)
    change = (encoder(frame) - encoder(torch.full_like(frame, 128))).detach().reshape(side, side, -1).abs().sum(-1)
    assert bool(change[row, column] > 0 and change[column, row] == 0) != transposed


@every_stages
def test_decoder_keeps_places(stages: Stages) -> None:
    """Each cell of the stem, (h, w, C), paints the block of the picture where it is, and at most a seam around it."""
    _, decoder = codec(stages, feat_size=1)
    side, _, channels = decoder.shape
    block = 64 // side
    for row, column in ((0, 0), (0, side - 1), (1, 2)):
        with torch.no_grad():
            decoder.stem.weight.zero_()
            decoder.stem.bias.zero_()
            cells = decoder.stem.weight.view(side, side, channels)
            cells[row, column] = torch.linspace(-1, 1, channels)
            change = (decoder(torch.ones(1)) - decoder(torch.zeros(1))).abs().sum(-1)
        painted = change.nonzero()
        seam = block // 2
        low, high = painted.min(0).values, painted.max(0).values
        home = torch.tensor([row, column]) * block
        assert (low <= home).all()
        assert (high >= home + block - 1).all()
        assert (low >= home - seam).all()
        assert (high <= home + block - 1 + seam).all()


@every_stages
@pytest.mark.parametrize("count", [3, 37])
def test_error_is_that_of_the_pictures_and_so_is_its_gradient(stages: Stages, count: int) -> None:
    """Never put together, some frames at a time: still |picture - frame / 255|^2, each weighed."""
    _, decoder = codec(stages)
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, 64, 64, 3), generator=g, dtype=torch.uint8)
    feat, weight = torch.randn(count, 5, generator=g), torch.rand(count, generator=g)
    inputs = [feat.requires_grad_(), *decoder.parameters()]
    want = (decoder(feat) - frames.float() / 255).square().sum((-3, -2, -1))
    got = decoder.error(feat, decoder.fold(frames))
    torch.testing.assert_close(got, want)
    gradients = (torch.autograd.grad((x * weight).sum(), inputs) for x in (got, want))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_decoder_learns_corners_and_colours_as_they_are() -> None:
    """Four pictures, each with another corner lit in another colour: overfitted, each is where and what it was."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
    corners = [(0, 0), (0, 24), (24, 0), (24, 24)]
    frames = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    for frame, colour, (row, column) in zip(frames, colours, corners, strict=True):
        frame[row : row + 8, column : column + 8] = colour
    _, decoder = codec(STAGES[-1], feat_size=4, depth=16, size=32)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(80):
        loss = (decoder(torch.eye(4)) - frames.float() / 255).square().sum((-3, -2, -1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    back = decoder(torch.eye(4)).detach()
    for i, (row, column) in enumerate(corners):
        seen = back[i, row : row + 8, column : column + 8].mean((0, 1))
        torch.testing.assert_close(seen, colours[i].float() / 255, rtol=0, atol=0.1)
    assert (back - frames.float() / 255).square().mean() < 0.002


@every_stages
def test_a_convolution_as_a_product_is_the_convolution(stages: Stages) -> None:
    encoder, decoder = codec(stages)
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    feat = torch.randn(3, decoder.stem.in_features, generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(2):
        out = (encoder(frames), decoder(feat), decoder.error(feat, decoder.fold(frames)))
        weights = [*encoder.parameters(), *decoder.parameters()]
        found.append([*out, *torch.autograd.grad(sum(x.mean() for x in out), weights)])
        as_products(encoder)
        as_products(decoder)
    for conv, product in zip(*found, strict=True):
        torch.testing.assert_close(product, conv, rtol=1e-3, atol=1e-4)
