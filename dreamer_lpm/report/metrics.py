"""The record of a run: ``metrics.jsonl`` is the truth, TensorBoard and Weights & Biases are views of it.

One JSON object per line, ``{"step": 2000, "kind": "train", "loss/recon": 12.5, ...}``, steps never falling. NaN and the
infinities are written as ``null``, which strict parsers read; ``read_metrics`` gives them back as NaN.

A checkpoint stores ``MetricsLog.position()``. A log opened with ``resume_at=`` that position forgets every later line,
here and in the views, so that no line is doubled or missing after a crash.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from dreamer_lpm.report.strict_json import dumps, loads
from dreamer_lpm.types import UserError

METRICS_FILE = "metrics.jsonl"

Row = dict[str, Any]


class Sink(Protocol):
    """A view of the log. ``line`` is the row's index in ``metrics.jsonl``, from 0."""

    def write(self, line: int, row: Row) -> None:
        """Show one more row."""

    def rewind(self, kept: Sequence[Row]) -> None:
        """Show these rows and nothing later: a resumed run goes on after them. Called before the first ``write``."""

    def close(self) -> None:
        """Nothing more will come."""


class MetricsLog:
    """Writes ``run_dir/metrics.jsonl`` line by line and hands every row to the sinks.

    ``resume_at`` is the ``position()`` of the checkpoint that the run goes on from; None starts a new log.
    Raises UserError when a new log would mix with an old one, or when the file does not reach back to ``resume_at``.
    """

    def __init__(self, run_dir: Path, sinks: Sequence[Sink] = (), *, resume_at: int | None = None) -> None:
        path = run_dir / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_at is None else _truncate(path, resume_at)
        if resume_at is None and path.exists() and path.stat().st_size > 0:
            raise UserError(f"{path} already holds a run: go on with --resume, or choose another run name.")
        self._lines = len(kept)
        self._sinks = tuple(sinks)
        self._file = path.open("ab")
        if resume_at is not None:
            for sink in self._sinks:
                sink.rewind(kept)

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Append one row: numbers, text, or lists of numbers. In the file when this returns.

        Raises ValueError if ``values`` names "step" or "kind", TypeError if a value has no place in JSON.
        """
        if not values.keys().isdisjoint(("step", "kind")):
            raise ValueError("values may not name 'step' or 'kind': they are arguments of their own")
        text = dumps({"step": step, "kind": kind, **values})
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        row = _parse(text)
        for sink in self._sinks:
            sink.write(self._lines, row)
        self._lines += 1

    def position(self) -> int:
        """Where the next line will start, in bytes. Everything before it survives a power cut."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file and every sink."""
        with suppress(OSError):  # of a line that has been refused already
            self._file.close()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_metrics(run_dir: Path) -> list[Row]:
    """All rows of ``run_dir/metrics.jsonl``, oldest first; ``null`` comes back as NaN.

    A last line that a crash cut short is left out. Raises UserError if the file is missing or damaged elsewhere.
    """
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the folder of a run, such as runs/my-run.")
    return _rows(path.read_bytes(), path)


def scalars(row: Row) -> dict[str, float]:
    """Name the row's numbers as sinks show them: ``train/loss/recon``, ``eval/tv_off/return_mean``."""
    prefix = "/".join(str(row[key]) for key in ("kind", "arm") if key in row)
    return {
        f"{prefix}/{key}": float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and key != "step"
    }


def _parse(text: str | bytes) -> Row:
    row = loads(text)
    return {key: _nan_for_null(value) for key, value in row.items()}


def _nan_for_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_nan_for_null(item) for item in value]
    return math.nan if value is None else value


def _rows(content: bytes, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):  # what follows the last newline was cut short
        if line.strip(b" "):
            try:
                rows.append(_row(line))
            except (ValueError, AttributeError) as error:
                # Not "remove": a checkpoint says how many bytes there were when it was saved.
                raise UserError(
                    f"{path} is damaged at line {number}: restore it, or put spaces in the place of that line."
                ) from error
    return rows


def _row(line: bytes) -> Row:
    row = _parse(line)
    if not (isinstance(row.get("step"), int) and isinstance(row.get("kind"), str)):
        raise ValueError("every line has a step and a kind")
    return row


def _legible(line: bytes) -> bytes:
    """The line, or as many spaces where nobody can read it."""
    try:
        _row(line)
    except (ValueError, AttributeError):
        return b" " * len(line)
    return line


def _truncate(path: Path, position: int) -> list[Row]:
    """Cut ``path`` at byte ``position`` and return the rows before it; lines that nobody can read become blank."""
    content = path.read_bytes() if path.exists() else b""
    if len(content) < position:
        raise UserError(
            f"{path} ends before its checkpoint ({len(content)} of {position} bytes): restore it, or start a new run."
        )
    if position > 0 and content[position - 1 : position] != b"\n":
        raise UserError(f"{path} does not belong to this checkpoint: restore it, or start a new run.")
    kept = b"\n".join(_legible(line) for line in content[:position].split(b"\n"))
    if kept != content:
        with path.open("r+b") as file:
            file.write(kept)
            file.truncate()
    return _rows(kept, path)


class TensorBoardSink:
    """TensorBoard event files in ``run_dir/tensorboard``, by TensorBoard's own writer, without torch or tensorflow."""

    def __init__(self, run_dir: Path) -> None:
        # Here and not above: reading metrics and drawing curves must not pay for this import.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._session, self._summary = Event, SessionLog, Summary
        self._writer = EventFileWriter(str(run_dir / "tensorboard"))

    def write(self, line: int, row: Row) -> None:
        """Show the row's numbers at its env step; flushed, so that a crash leaves no hole."""
        self._add(row)
        self._writer.flush()

    def rewind(self, kept: Sequence[Row]) -> None:
        """Make TensorBoard drop every point from the last kept step on, then repeat the kept rows of that very step."""
        step = kept[-1]["step"] if kept else 0
        start = self._session(status=self._session.START)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, session_log=start))
        for row in kept:
            if row["step"] >= step:
                self._add(row)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _add(self, row: Row) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row).items()]
        event = self._event(wall_time=time.time(), step=row["step"], summary=self._summary(value=values))
        self._writer.add_event(event)


class WandbSink:
    """A Weights & Biases run. ``env_step`` is the x axis; W&B's own step is the line number in ``metrics.jsonl``.

    ``mode`` None means what W&B's own settings (``WANDB_MODE``) say. ``directory`` gets the ``wandb/`` folder.
    ``resume_id`` is the ``run_id`` of the run to go on with: online, the rows that W&B already has are skipped and the
    missing ones sent. Offline, two local runs of one id would overwrite each other when synced, so a resumed run gets a
    new id and repeats the whole history: the newest one is complete.
    Raises UserError if wandb is not installed or cannot start.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None = None,
        run_name: str | None = None,
        config: Mapping[str, Any] | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        directory: Path,
        resume_id: str | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("W&B is not installed: pip install wandb, or leave --wandb out.") from error
        online = (mode or wandb.setup().settings.mode) == "online"
        resume = online and resume_id is not None
        try:
            self._run = wandb.init(
                project=project,
                entity=entity,
                name=run_name,
                config=dict(config or {}),
                mode=mode,
                dir=str(directory),
                reinit="create_new",  # a run of our own, whatever else this process logs
                settings=wandb.Settings(console="off"),  # W&B's capture of stdout would garble the live progress
                id=resume_id if resume else None,
                resume="allow" if resume else None,
            )
        except wandb.errors.Error as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"W&B could not start ({reason}): run `wandb login`, or set WANDB_MODE=offline to log to disk only."
            ) from error
        self._first = self._run.step
        self._run.define_metric("env_step")
        self._run.define_metric("*", step_metric="env_step")

    @property
    def run_id(self) -> str:
        """What to pass as ``resume_id`` when the run goes on."""
        return str(self._run.id)

    def write(self, line: int, row: Row) -> None:
        """Send the row's numbers, unless W&B has this line from before the crash."""
        if line >= self._first:
            self._run.log({"env_step": row["step"], **scalars(row)}, step=line)

    def rewind(self, kept: Sequence[Row]) -> None:
        """Send those of the kept rows that W&B has not seen."""
        for line, row in enumerate(kept):
            self.write(line, row)

    def close(self) -> None:
        """Finish the run, uploading what is left."""
        self._run.finish()
