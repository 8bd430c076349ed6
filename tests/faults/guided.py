"""Hostile bytes for the parsers, found by following which lines they reach. Needs atheris (`pip install atheris`).

    python -m tests.faults.guided --runs 10000 --out benchmarks/results/faults/guided.json

Each target is a process with libFuzzer in it, which mutates bytes towards lines of ours, of PyYAML, of tomllib and of
tarfile that it has not seen, and ends at the first exception other than UserError and NoisyTVError, at 5 s for one
input, and at 2 GB. ``hostile.py`` does not need atheris, has more targets, and knows what the files look like.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TARGETS = ("config", "archive", "manifest")
DONE = re.compile(r"Done (\d+) runs in (\d+) second")
REACHED = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


def config(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """The first byte picks the kind of file."""
    settings = importlib.import_module("dreamer_lpm.settings")
    train = importlib.import_module("dreamer_lpm.train")

    def read(data: bytes) -> None:
        path = folder / f"config.{('yaml', 'toml', 'json')[data[0] % 3] if data else 'yaml'}"
        path.write_bytes(data[1:])
        settings.from_plain(train.RunConfig, settings.read_file(path)).env()

    yaml = b"\x00steps: 10\ntv: {when: 'x > 1', trigger: state}\nworld: {rssm: {deter: 16}}\nlpm_eta: .5\n"
    toml = b'\x01steps = 10\n[world]\ndepth = 2\n[tv]\ntrigger = "remote"\n'
    return [yaml, toml, b'\x02{"steps": 10, "world": {"depth": 2}, "tv_images": "static"}'], read


def archive(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """The bytes are those within the gzip, which would hide from libFuzzer what it changes."""
    tarfile = importlib.import_module("tarfile")
    cifar10 = importlib.import_module("dreamer_lpm.noisy_tv.cifar10")

    def read(data: bytes) -> None:
        path = folder / cifar10.ARCHIVE_NAME
        path.write_bytes(gzip.compress(data, 1))
        cifar10.read_archive(path)

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.size = cifar10.RECORD
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    return [file.getvalue()], read


def manifest(folder: Path) -> tuple[list[bytes], Callable[[bytes], None]]:
    """The bytes stand in the manifest as they are, and, where they are JSON, once more with a seal that fits."""
    checkpoint = importlib.import_module("dreamer_lpm.checkpoint")
    sealed = importlib.import_module("dreamer_lpm.report.strict_json").sealed
    importlib.import_module("tests.faults.victim").save_step(folder, 10)
    path = checkpoint.checkpoints(folder)[0] / "manifest.json"
    true = json.loads(path.read_bytes())
    del true["sha256"]

    def load(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(checkpoint.UserError):  # as it should, most of the time
            checkpoint.load_newest(folder, "run")
        try:
            again = json.loads(data)
        except (ValueError, RecursionError):
            return
        if isinstance(again, dict):
            path.write_text(json.dumps(sealed(again)))
            checkpoint.load_newest(folder, "run")

    return [json.dumps(true).encode()], load


def fuzz(name: str, runs: int, folder: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    # What libFuzzer follows must be imported anew, so nothing of ours is imported above.
    watched = ["dreamer_lpm.settings", "dreamer_lpm.noisy_tv.cifar10", "dreamer_lpm.checkpoint", "dreamer_lpm.train"]
    with atheris.instrument_imports(include=[*watched, "yaml", "tomllib", "tarfile", "dreamer_lpm.noisy_tv.spec"]):
        from dreamer_lpm.noisy_tv import NoisyTVError
        from dreamer_lpm.types import UserError

        seeds, use = globals()[name](folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            use(data)
        except (UserError, NoisyTVError) as error:
            if "\n" in str(error):
                raise

    limits = [f"-runs={runs}", "-timeout=5", "-rss_limit_mb=2048", "-max_len=8192", "-seed=1"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
    atheris.Fuzz()


def run(name: str, runs: int) -> dict[str, Any]:
    """One target in a process of its own, and what libFuzzer said of it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.faults.guided", "--runs", str(runs), "--inside", name, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    ended, reached = DONE.search(done.stderr), REACHED.findall(done.stderr)
    if done.returncode or ended is None or not reached:
        return {"wrong": (done.stdout + done.stderr)[-3000:]}
    edges, features, kept = map(int, reached[-1])
    return {"runs": int(ended[1]), "seconds": int(ended[2]), "edges": edges, "features": features, "kept": kept,
            "edges_at_first": int(reached[0][0])}  # fmt: skip


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Hostile bytes for the parsers, guided by coverage.")
    parser.add_argument("--runs", type=int, default=1000, help="for each target")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        fuzz(options.inside[0], options.runs, Path(options.inside[1]))
    found = {name: run(name, options.runs) for name in TARGETS}
    said = {"command": " ".join(["python -m tests.faults.guided", *sys.argv[1:]]), "targets": found}
    text = json.dumps(said, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    sys.exit(any("wrong" in one for one in found.values()))


if __name__ == "__main__":
    main()
