"""Two small finished runs, made once; tests copy them before they do harm."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import dreamer_lpm.train as train_module
from dreamer_lpm.train import train
from tests.tiny_run import TINY

RUN = replace(TINY, steps=100, eval_every=40, checkpoint_every=30)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and videos have tests of their own."""
    monkeypatch.setattr(train_module, "plot_run", lambda run_dir: run_dir / "curves.png")
    monkeypatch.setattr(train_module, "episode_video", lambda path, trace, watch: [watch() for _ in range(5)] and path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """``RUN``, and the same with another seed. Checkpoints at 90 and 100, evaluations at 40, 80 and 100."""
    folders = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "plot_run", lambda run_dir: run_dir / "curves.png")
        patch.setattr(train_module, "episode_video", lambda path, trace, watch: [watch() for _ in range(5)] and path)
        for seed in (0, 1):
            folders.append(tmp_path_factory.mktemp("runs") / f"seed{seed}")
            train(replace(RUN, seed=seed), folders[-1])
    return folders[0], folders[1]


@pytest.fixture
def run_dir(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run, to do harm to."""
    return Path(shutil.copytree(finished[0], tmp_path / "mine"))
