"""What is compiled computes what it was compiled from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.func import vmap

from dreamer_lpm import fusing
from dreamer_lpm.config import settled
from dreamer_lpm.fusing import cannot_fuse, fuse, in_front
from dreamer_lpm.types import UserError
from dreamer_lpm.world import codec, filtering
from dreamer_lpm.world.codec import _ChannelNorm, _Conv, as_products
from tests.test_flock import assert_close, played
from tests.tiny_run import TINY, WITH_TV

# torch's own, about itself, which it hides where warnings are no errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled as far as the graphs of forward and backward, but run op by op: kernels would take a minute to build."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    for made in (fusing.fused, filtering._made):
        made.cache_clear()
    yield
    for made in (fusing.fused, filtering._made):
        made.cache_clear()
    torch.compiler.reset()


def test_a_run_learns_the_same() -> None:
    fused, plain = (played(replace(WITH_TV, compile=how), together=False)[:1] for how in (True, False))
    assert fused[0].agent.fused
    assert not plain[0].agent.fused
    assert_close(fused, plain)


@pytest.mark.parametrize("curiosity", ["none", "lpm"])
def test_a_flock_learns_the_same(curiosity: str) -> None:
    cfg = replace(WITH_TV, agent=replace(TINY.agent, curiosity=curiosity))
    fused = played(replace(cfg, compile=True), together=True)
    assert fused[0].agent.world.rssm.fused
    assert_close(fused, played(cfg, together=False))


@pytest.mark.parametrize("many", [False, True])
def test_a_layer_and_its_gradients_are_the_same(many: bool) -> None:
    """A convolution over 3x3 cells and the norm behind it, of one agent and of three."""
    layers = torch.nn.Sequential(_Conv(4, 6, 3), _ChannelNorm(6))
    as_products(layers)
    shape = (3, 2, 4, 5, 5) if many else (2, 4, 5, 5)
    x, weight = torch.randn(shape), torch.randn(*shape[:-3], 6, 5, 5)
    found = []
    for _ in range(2):
        seen = x.clone().requires_grad_()
        out = (vmap(layers) if many else layers)(seen)
        layers.zero_grad()
        (out * weight).sum().backward()
        found.append([out.detach(), seen.grad, *(p.grad for p in layers.parameters())])
        fuse(layers)
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain)
    assert codec._ChannelNorm.fused is False, "only these layers"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--compile is for CUDA devices, not for 'cpu'; leave it out"):
        settled(replace(TINY, device="cpu", compile=True))
    cuda = torch.device("cuda")
    monkeypatch.setattr(fusing, "find_spec", lambda name: None)
    assert "triton" in cannot_fuse(cuda)
    monkeypatch.setattr(fusing, "find_spec", lambda name: name)
    monkeypatch.setattr(fusing.shutil, "which", lambda name: None)
    assert "compiler" in cannot_fuse(cuda)
    monkeypatch.setattr(fusing.shutil, "which", lambda name: name)
    assert not cannot_fuse(cuda)


def test_the_batch_comes_to_the_front() -> None:
    inputs = (torch.zeros(4, 3, 2), torch.zeros(5), "as it is")
    batched, alone, word = in_front(SimpleNamespace(batch_size=3), (1, None, None), inputs)
    assert (batched.shape, alone.shape, word) == ((3, 4, 2), (3, 5), "as it is")
