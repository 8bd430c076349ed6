"""The command line: ``dreamer-lpm train``, ``eval``, ``export``, ``compare``, ``report``, ``bench`` and ``doctor``.

``train_lpm.py`` is ``train`` under the guide's name. Only the command that is asked for is imported: ``report`` needs
no torch.
"""

from __future__ import annotations

import importlib
import io
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import cast

from dreamer_lpm.noisy_tv import NoisyTVError
from dreamer_lpm.types import MISTAKE, UserError, is_the_machines, printable

Command = Callable[[list[str]], int]
COMMANDS = {
    "train": "dreamer_lpm.commands:train_command",
    "eval": "dreamer_lpm.commands:eval_command",
    "export": "dreamer_lpm.commands:export_command",
    "compare": "dreamer_lpm.compare:main",
    "report": "dreamer_lpm.report.command:main",
    "bench": "dreamer_lpm.bench:main",
    "doctor": "dreamer_lpm.doctor:main",
}
USAGE = """usage: dreamer-lpm {train,eval,export,compare,report,bench,doctor} [OPTIONS]

  train    learn, in front of the Noisy TV or without it (options: dreamer-lpm train --help)
  eval     play with a trained agent:  dreamer-lpm eval agent_lpm.pth --episodes 10
  export   an agent to share, without pickle:  dreamer-lpm export agent_lpm.pth --out agent
  compare  methods x TV settings x seeds, and who the TV captures (options: dreamer-lpm compare --help)
  report   draw the page of a run or a comparison again:  dreamer-lpm report runs/my-run
  bench    time an update on this machine, or a whole training, alone or against a peer
  doctor   is a run whole, and what can be resumed:  dreamer-lpm doctor runs/my-run;  alone: this machine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``dreamer-lpm``; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] in COMMANDS:
        return _guard(lambda rest: _command(args[0])(rest), args[1:])
    if args and not args[0].startswith("-"):
        print(f"error: unknown command {args[0]!r}", file=sys.stderr)
    if args == ["--version"]:
        print(version("dreamer-lpm"))
        return 0
    print(USAGE, end="", file=sys.stdout if args in (["--help"], ["-h"]) else sys.stderr)
    return 0 if args in (["--help"], ["-h"]) else 2


def train_lpm(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``train_lpm.py``: ``train``, which also leaves the agent and the video where it was started."""

    def guide(args: list[str]) -> int:
        from dreamer_lpm.commands import train_command

        return train_command(args, guide=True)

    return _guard(guide, list(sys.argv[1:] if argv is None else argv))


def _command(name: str) -> Command:
    module, function = COMMANDS[name].split(":")
    return cast(Command, getattr(importlib.import_module(module), function))


def _guard(command: Command, args: list[str]) -> int:
    """Run a command. A user's mistake becomes one line and status 2, a fault of the machine's one line and status 1, a
    stop the shell's 128 + signal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a name that it has no letters for, it prints the codes
            stream.reconfigure(errors="backslashreplace")
    if "" not in sys.path:
        sys.path.append("")  # an env of one's own is found where one stands; last, to hide nothing
    try:
        return command(args)
    except BrokenPipeError:  # | head
        importlib.import_module("dreamer_lpm.report.terminal").print_to_nobody()
        return 0
    except (UserError, NoisyTVError, OSError) as error:
        print("error:", printable(" ".join(str(error).split())), file=sys.stderr)
        return 1 if is_the_machines(error) else MISTAKE
    except _out_of_memory():
        return _too_large()
    except RuntimeError as error:  # torch's for the memory of a CPU
        if "can't allocate memory" not in str(error):
            raise
        return _too_large()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _too_large() -> int:
    print("error: Out of memory; lower batch_size or seq_length, or choose a smaller preset.", file=sys.stderr)
    return MISTAKE


def _out_of_memory() -> tuple[type[BaseException], ...]:
    """What running out of memory looks like, in Python and, if a command has loaded it, in torch."""
    torch = sys.modules.get("torch")
    return (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
