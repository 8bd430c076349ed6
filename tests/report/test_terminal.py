"""A console that loses its reader goes silent, and whoever writes to it goes on."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreamer_lpm.report.terminal import Terminal
from dreamer_lpm.types import printable

ROOT = Path(__file__).parents[2]


class Gone(io.StringIO):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "Input/output error")]
)
def test_who_writes_goes_on(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    pointed = []
    monkeypatch.setattr(os, "dup2", lambda *ends: pointed.append(ends))
    terminal = Terminal(file=Gone(error))
    for word in ("lost", "never written"):
        terminal.print(word)
    assert terminal.quiet
    assert len(pointed) == 1


SPEAKS = """
from dreamer_lpm.report.progress import Progress
with Progress(3, title="run") as progress:
    for step in range(3):
        input()
        progress.say("x" * 100)
print("y" * 100, flush=True)
open("done", "w").close()
"""


def test_a_pipe_without_a_reader_ends_no_run(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", SPEAKS], cwd=tmp_path, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert "x" in process.stdout.readline()
    process.stdout.close()
    process.communicate("\n\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "done").exists()


def test_words_of_any_language_are_printed_and_what_steers_a_terminal_is_spelt() -> None:
    assert printable("é 振り子 ° 😀 a\u3000b\u202f%\tc\n") == "é 振り子 ° 😀 a\u3000b\u202f%\tc\n"
    assert printable("\x1b[2J\x07\x85\u202e\ud800") == r"\x1b[2J\x07\x85\u202e\ud800"
