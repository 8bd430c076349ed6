"""metrics.jsonl is the truth: exact over resume, strict JSON; TensorBoard and W&B show the same."""

import json
import math
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.summary.writer import event_file_writer

from dreamer_lpm.report.metrics import METRICS_FILE, MetricsLog, Row, TensorBoardSink, WandbSink, read_metrics, scalars
from dreamer_lpm.types import UserError


class Recorder:
    """A sink that remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def write(self, line: int, row: Row) -> None:
        self.heard.append(("write", (line, row["step"])))

    def rewind(self, kept: Sequence[Row]) -> None:
        self.heard.append(("rewind", [row["step"] for row in kept]))

    def close(self) -> None:
        self.heard.append(("close", None))


@pytest.fixture(autouse=True)
def count_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files of one second are read by name, which ends in a count over the process: its 100 sorts before 99."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def write_steps(log: MetricsLog, *steps: int) -> None:
    for step in steps:
        log.write(step, "train", {"loss/recon": step / 10})


def test_rows_come_back_as_written_and_are_there_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "new") as log:
        log.write(10, "eval", {"arm": "tv_off", "return_mean": -1.5, "returns": [-1, -2.0], "length": 7})
        rows = read_metrics(tmp_path / "new")  # before close: a crash must not take the row along
    assert rows == [
        {"step": 10, "kind": "eval", "arm": "tv_off", "return_mean": -1.5, "returns": [-1, -2.0], "length": 7}
    ]


def test_nan_is_null_on_disk_and_nan_for_the_reader(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(1, "train", {"a": math.inf, "b": [math.nan, 1.0]})
    assert json.loads((tmp_path / METRICS_FILE).read_text()) == {
        "step": 1,
        "kind": "train",
        "a": None,
        "b": [None, 1.0],
    }
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["a"])
    assert math.isnan(row["b"][0])
    assert row["b"][1] == 1.0


@pytest.mark.parametrize("key", ["step", "kind"])
def test_values_cannot_overwrite_step_or_kind(tmp_path: Path, key: str) -> None:
    with MetricsLog(tmp_path) as log:
        with pytest.raises(ValueError, match="may not name"):
            log.write(1, "train", {key: 2})
        assert log.position() == 0


def test_a_value_that_is_no_json_leaves_no_half_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        with pytest.raises(TypeError):
            log.write(1, "train", {"x": object()})
        write_steps(log, 2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [2]


@pytest.mark.parametrize("crash", [b"", b'{"step": 40, "ki', b'{"step": 40, "kind": "train"}', b"\x00\x00\x00"])
def test_resumed_file_equals_the_uninterrupted_one(tmp_path: Path, crash: bytes) -> None:
    with MetricsLog(tmp_path / "whole") as log:
        write_steps(log, 10, 20, 20, 30, 40)

    with MetricsLog(tmp_path / "cut") as log:
        write_steps(log, 10, 20)
        position = log.position()
        write_steps(log, 20, 30)  # after the checkpoint; one row at the checkpoint's own step
    with (tmp_path / "cut" / METRICS_FILE).open("ab") as file:
        file.write(crash)
    with MetricsLog(tmp_path / "cut", resume_at=position) as log:
        assert log.position() == position
        write_steps(log, 20, 30, 40)

    assert (tmp_path / "cut" / METRICS_FILE).read_bytes() == (tmp_path / "whole" / METRICS_FILE).read_bytes()


def test_resume_before_the_first_row(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        start = log.position()
        write_steps(log, 10)
    with MetricsLog(tmp_path, resume_at=start) as log:
        write_steps(log, 10)
    assert [row["step"] for row in read_metrics(tmp_path)] == [10]


def test_sinks_hear_lines_rewind_and_close(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    with MetricsLog(tmp_path, [first]) as log:
        write_steps(log, 10, 20)
        position = log.position()
        write_steps(log, 30)
    with MetricsLog(tmp_path, [second], resume_at=position) as log:
        write_steps(log, 30)
    assert first.heard == [("write", (0, 10)), ("write", (1, 20)), ("write", (2, 30)), ("close", None)]
    assert second.heard == [("rewind", [10, 20]), ("write", (2, 30)), ("close", None)]


def test_a_new_log_never_mixes_with_an_old_one(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        write_steps(log, 10)
    with pytest.raises(UserError, match="--resume"):
        MetricsLog(tmp_path)
    assert len(read_metrics(tmp_path)) == 1


def test_a_log_shorter_than_its_checkpoint_is_refused_untouched(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        write_steps(log, 10)
        end = log.position()
    with pytest.raises(UserError, match="ends before its checkpoint"):
        MetricsLog(tmp_path, resume_at=end + 1)
    with pytest.raises(UserError, match="does not belong"):
        MetricsLog(tmp_path, resume_at=end - 3)
    with pytest.raises(UserError, match="ends before its checkpoint"):
        MetricsLog(tmp_path / "gone", resume_at=end)
    assert (tmp_path / METRICS_FILE).stat().st_size == end


@pytest.mark.parametrize("harm", [(b'"kind"', b"'kind'"), (b"\n", b" "), (b"{", b"\r")])
def test_a_line_that_nobody_can_read_does_not_stop_a_run(tmp_path: Path, harm: tuple[bytes, bytes]) -> None:
    with MetricsLog(tmp_path) as log:
        write_steps(log, 10, 20, 30)
        position = log.position()
        write_steps(log, 40)
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes().replace(*harm, 1))
    with pytest.raises(UserError, match="damaged at line 1: restore it, or put spaces in the place of that line"):
        read_metrics(tmp_path)
    with MetricsLog(tmp_path, resume_at=position) as log:
        assert log.position() == position, "the checkpoint counts bytes"
        write_steps(log, 50)
    assert [row["step"] for row in read_metrics(tmp_path)][-2:] == [30, 50]


def test_what_a_full_disk_refused_is_not_refused_again_at_the_end(tmp_path: Path) -> None:
    """The second error would take the place of the first, which says what to do, and leave the sinks open."""
    (tmp_path / METRICS_FILE).symlink_to("/dev/full")
    sink = Recorder()
    log = MetricsLog(tmp_path, [sink])
    with pytest.raises(OSError, match="No space left"):
        write_steps(log, 10)
    log.close()
    assert sink.heard == [("close", None)]


def test_reader_forgives_only_a_cut_last_line(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(b'{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    path.write_bytes(b'{"step": 1, "ki\n{"step": 2, "kind": "train"}\n')
    with pytest.raises(UserError, match="damaged at line 1"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(tmp_path / "nowhere")


@pytest.mark.parametrize("line", ['{"step": 2}', '{"kind": "train"}', '{"step": null, "kind": "train"}', "{}", "[]"])
def test_a_line_without_a_step_or_a_kind_is_damage(line: str, tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "kind": "train"}\n' + line + "\n")
    with pytest.raises(UserError, match="damaged at line 2"):
        read_metrics(tmp_path)


def test_scalars_tell_the_arms_apart_and_leave_out_what_is_no_number() -> None:
    row = {"step": 5, "kind": "eval", "arm": "tv_off", "return_mean": -2, "returns": [-2]}
    assert scalars(row) == {"eval/tv_off/return_mean": -2.0}
    assert scalars({"step": 5, "kind": "train", "loss/kl": 0.5}) == {"train/loss/kl": 0.5}


# --- TensorBoard ---


def tensorboard_points(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    if tag in accumulator.Tags()["scalars"]:
        return [(point.step, point.value) for point in accumulator.Scalars(tag)]
    return [(point.step, float(point.tensor_proto.float_val[0])) for point in accumulator.Tensors(tag)]


def test_tensorboard_reads_the_rows_back(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, [TensorBoardSink(tmp_path)]) as log:
        write_steps(log, 10, 20)
        log.write(20, "eval", {"arm": "tv_off", "return_mean": -2.0, "returns": [1.0]})
        assert tensorboard_points(tmp_path, "train/loss/recon") == [(10, 1.0), (20, 2.0)]  # flushed before the close
    assert tensorboard_points(tmp_path, "eval/tv_off/return_mean") == [(20, -2.0)]


def test_tensorboard_shows_a_resumed_run_without_doubles_or_holes(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, [TensorBoardSink(tmp_path)]) as log:
        write_steps(log, 10, 20)
        position = log.position()
        log.write(20, "train", {"loss/recon": 99.0})  # lost with the crash, as are the next two
        log.write(30, "train", {"loss/recon": 99.0})
        log.write(40, "train", {"loss/recon": 99.0})
    with MetricsLog(tmp_path, [TensorBoardSink(tmp_path)], resume_at=position) as log:
        write_steps(log, 30)
    assert tensorboard_points(tmp_path, "train/loss/recon") == [(10, 1.0), (20, 2.0), (30, 3.0)]


def test_tensorboard_forgets_everything_when_resumed_from_the_start(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, [TensorBoardSink(tmp_path)]) as log:
        log.write(10, "train", {"loss/recon": 99.0})
    with MetricsLog(tmp_path, [TensorBoardSink(tmp_path)], resume_at=0) as log:
        write_steps(log, 10)
    assert tensorboard_points(tmp_path, "train/loss/recon") == [(10, 1.0)]


def test_torch_and_tensorflow_stay_out(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "import dreamer_lpm.report.plots, dreamer_lpm.report.video, dreamer_lpm.report.summary\n"
        "import dreamer_lpm.report.progress\n"
        "from dreamer_lpm.report.metrics import TensorBoardSink\n"
        "TensorBoardSink(Path(sys.argv[1])).close()\n"
        "assert not {'torch', 'tensorflow', 'wandb'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)


# --- Weights & Biases ---


def wandb_history(directory: Path, run_id: str) -> list[dict[str, Any]]:
    """The history rows of a finished offline run, once W&B's own process has written the last record."""
    (path,) = directory.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
    deadline = time.monotonic() + 60
    while not (records := wandb_records(path.read_bytes())) or not records[-1].HasField("exit"):
        assert time.monotonic() < deadline, f"W&B did not finish {path}"
        time.sleep(0.02)
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def wandb_records(content: bytes) -> list[Any]:
    """Parse W&B's transaction log: blocks of 32 KiB, every piece of a record behind a 7-byte header."""
    from wandb.proto.wandb_internal_pb2 import Record

    def whole() -> Iterator[bytes]:
        at, parts = 7, b""
        while at + 7 <= len(content):
            if 32768 - at % 32768 < 7:  # no header fits: the block's end is padding
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", content[at : at + 7])
            parts += content[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or last part
                yield parts
                parts = b""

    return [Record.FromString(data) for data in whole()]


@pytest.fixture
def quiet_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for folder in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(folder, str(tmp_path / "wandb-home"))


@pytest.mark.usefixtures("quiet_wandb")
def test_wandb_offline_writes_runs_that_hold_the_whole_history(tmp_path: Path) -> None:
    def sink(resume_id: str | None = None) -> WandbSink:
        return WandbSink(
            project="p", run_name="r", config={"seed": 1}, mode="offline", directory=tmp_path, resume_id=resume_id
        )

    first = sink()
    with MetricsLog(tmp_path, [first]) as log:
        log.write(10, "train", {"loss/recon": 1.0})
        log.write(10, "eval", {"arm": "tv_off", "return_mean": -2.0})
        position = log.position()
        log.write(20, "train", {"loss/recon": 99.0})
    assert [row["env_step"] for row in wandb_history(tmp_path, first.run_id)] == [10, 10, 20]

    second = sink(resume_id=first.run_id)
    with MetricsLog(tmp_path, [second], resume_at=position) as log:
        log.write(20, "train", {"loss/recon": 2.0})
    assert second.run_id != first.run_id  # synced under one id, the second would overwrite the first
    history = wandb_history(tmp_path, second.run_id)
    assert [(row["_step"], row["env_step"]) for row in history] == [(0, 10), (1, 10), (2, 20)]
    assert history[0]["train/loss/recon"] == 1.0
    assert history[1]["eval/tv_off/return_mean"] == -2.0
    assert history[2]["train/loss/recon"] == 2.0


def test_wandb_online_resumes_by_id_and_sends_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, float]] = []
    begun: dict[str, Any] = {}
    run = SimpleNamespace(
        id="abc",
        step=1,  # the service has line 0
        define_metric=lambda *_, **__: None,
        log=lambda values, step: sent.append((step, values["env_step"])),
        finish=lambda: None,
    )
    service = SimpleNamespace(
        init=lambda **arguments: begun.update(arguments) or run,
        Settings=lambda **settings: settings,
        setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode="online")),
        errors=SimpleNamespace(Error=RuntimeError),
    )
    monkeypatch.setitem(sys.modules, "wandb", service)
    with MetricsLog(tmp_path) as log:
        write_steps(log, 10, 20)
        position = log.position()
    with MetricsLog(tmp_path, [WandbSink(project="p", directory=tmp_path, resume_id="abc")], resume_at=position) as log:
        write_steps(log, 30)
    assert (begun["id"], begun["resume"]) == ("abc", "allow")
    assert sent == [(1, 20), (2, 30)]


def test_wandb_missing_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb, or leave"):
        WandbSink(project="p", directory=tmp_path)


@pytest.mark.usefixtures("quiet_wandb")
def test_wandb_without_a_login_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    with pytest.raises(UserError, match="wandb login"):
        WandbSink(project="p", directory=tmp_path, mode="online")


def test_what_is_before_the_position_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    with MetricsLog(tmp_path) as log:
        log.write(1, "train", {"a": 1.0})
        assert not synced
        log.position()
        assert synced
