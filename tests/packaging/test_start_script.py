"""start.sh against a `docker` that only writes down how it was called."""

import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

FAKE_DOCKER = """#!/bin/sh
echo "docker $*" >> "$CALLS"
case "$1 $2" in
  "compose version") exit "${COMPOSE_VERSION_CODE:-0}" ;;
  "compose ps") echo "${RUNNING:-}" ;;
  "compose build") exit "${BUILD_CODE:-0}" ;;
  "compose up") echo "as ${LPM_UID}:${LPM_GID}, profiles ${COMPOSE_PROFILES:-none}" >> "$CALLS"; exit "${UP_CODE:-0}" ;;
  "compose exec") [ -z "${SAY_RUNS:-}" ] || echo "runs are in $LPM_RUNS" >> "$CALLS"; exit "${EXEC_CODE:-0}" ;;
  "info --format") echo "${RUNTIMES:-{\\"runc\\":{\\}\\}}" ;;
  "info ") [ -z "$INFO_ERROR" ] || { echo "$INFO_ERROR" >&2; exit 1; } ;;
esac
"""
NVIDIA = '{"nvidia":{"path":"nvidia-container-runtime"},"runc":{"path":"runc"}}'


@dataclass(frozen=True)
class Outcome:
    code: int
    errors: str
    calls: list[str]


Start = Callable[..., Outcome]


def executable(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder to be the whole PATH: what start.sh needs of the system, and a fake docker."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "dirname", "id", "mkdir"):
        found = shutil.which(name)
        assert found, f"{name} is missing on this machine"
        (folder / name).symlink_to(found)
    executable(folder / "docker", FAKE_DOCKER)
    executable(folder / "chown", '#!/bin/sh\necho "chown $*" >> "$CALLS"\n')
    return folder


@pytest.fixture
def start(tools: Path, tmp_path: Path, root: Path) -> Start:
    """Runs a copy of start.sh; ``gpu`` puts a working nvidia-smi on the PATH, keywords become environment variables."""
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    shutil.copy(root / "start.sh", checkout)
    calls = tmp_path / "calls"

    def run(*arguments: str, gpu: bool = False, terminal: bool = False, **environment: str) -> Outcome:
        calls.write_text("", encoding="utf-8")
        if gpu:
            executable(tools / "nvidia-smi", "#!/bin/sh\n")
        primary, secondary = pty.openpty()
        try:
            done = subprocess.run(
                [checkout / "start.sh", *arguments],
                cwd=tmp_path,
                env={"PATH": str(tools), "CALLS": str(calls), **environment},
                stdin=secondary if terminal else subprocess.DEVNULL,
                stdout=secondary if terminal else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                timeout=30,
            )
        finally:
            os.close(primary)
            os.close(secondary)
        return Outcome(done.returncode, done.stderr, calls.read_text(encoding="utf-8").splitlines())

    return run


def test_docker_missing(start: Start, tools: Path) -> None:
    (tools / "docker").unlink()
    outcome = start()
    assert outcome.code == 3
    assert "Docker is not installed" in outcome.errors
    assert "make demo" in outcome.errors


def test_compose_plugin_missing(start: Start) -> None:
    outcome = start(COMPOSE_VERSION_CODE="1")
    assert outcome.code == 4
    assert "compose plugin" in outcome.errors


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("Cannot connect to the Docker daemon", "Docker is not running"),
        ("permission denied while trying to connect", "usermod -aG docker"),
    ],
)
def test_daemon_out_of_reach(start: Start, error: str, advice: str) -> None:
    outcome = start(INFO_ERROR=error)
    assert outcome.code == 5
    assert advice in outcome.errors
    assert not [call for call in outcome.calls if "build" in call]


def test_cpu_where_there_is_no_gpu(start: Start) -> None:
    outcome = start()
    assert outcome.code == 0
    assert "using the CPU" in outcome.errors
    assert outcome.calls[-4:] == [
        "docker compose build lpm",
        "docker compose up --detach lpm",
        f"as {os.getuid()}:{os.getgid()}, profiles none",
        "docker compose exec -T lpm bash",
    ]


def test_a_container_that_is_up_is_entered_as_it_is(start: Start) -> None:
    """A run may be going on in it."""
    outcome = start(RUNNING="0123abcd")
    assert outcome.calls[-2:] == ["docker compose ps --status running --quiet lpm", "docker compose exec -T lpm bash"]
    assert not [call for call in outcome.calls if " build " in call or " up " in call]


def test_gpu_where_driver_and_runtime_are_there(start: Start) -> None:
    outcome = start(gpu=True, RUNTIMES=NVIDIA)
    assert outcome.code == 0
    assert "using the GPU" in outcome.errors
    assert outcome.calls[-4:] == [
        "docker compose build lpm-gpu",
        "docker compose up --detach lpm-gpu",
        f"as {os.getuid()}:{os.getgid()}, profiles gpu",
        "docker compose exec -T lpm-gpu bash",
    ]


def test_driver_without_runtime_means_cpu(start: Start) -> None:
    assert start(gpu=True).calls[-1] == "docker compose exec -T lpm bash"


def test_runtime_without_driver_means_cpu(start: Start) -> None:
    assert start(RUNTIMES=NVIDIA).calls[-1] == "docker compose exec -T lpm bash"


def test_cpu_on_request(start: Start) -> None:
    assert start("--cpu", gpu=True, RUNTIMES=NVIDIA).calls[-1] == "docker compose exec -T lpm bash"


def test_gpu_on_request_says_what_is_missing(start: Start) -> None:
    without_driver = start("--gpu", RUNTIMES=NVIDIA)
    assert without_driver.code == 6
    assert "NVIDIA driver" in without_driver.errors
    without_runtime = start("--gpu", gpu=True)
    assert without_runtime.code == 6
    assert "NVIDIA Container Toolkit" in without_runtime.errors
    assert not [call for call in without_runtime.calls if "build" in call]
    assert start("--gpu", gpu=True, RUNTIMES=NVIDIA).code == 0


def test_command_after_the_dashes_and_its_exit_code(start: Start) -> None:
    outcome = start("--cpu", "--", "python3", "train_lpm.py", "--steps", "10", EXEC_CODE="41")
    assert outcome.calls[-1] == "docker compose exec -T lpm python3 train_lpm.py --steps 10"
    assert outcome.code == 41


def test_terminal_is_handed_through(start: Start) -> None:
    assert start(terminal=True).calls[-1] == "docker compose exec lpm bash"


def test_folders_are_made_before_docker_would_make_them_as_root(start: Start, tmp_path: Path) -> None:
    start(LPM_RUNS=str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere").is_dir()
    assert (tmp_path / "a checkout" / "videos").is_dir()
    assert (tmp_path / "a checkout" / "data").is_dir()
    assert not (tmp_path / "a checkout" / "runs").exists()


def test_a_folder_by_its_name_is_no_volume_of_docker(start: Start, tmp_path: Path) -> None:
    outcome = start(LPM_RUNS="out", SAY_RUNS="1")
    assert f"runs are in {tmp_path / 'a checkout' / 'out'}" in outcome.calls


def test_under_sudo_files_belong_to_the_person_behind_it(start: Start) -> None:
    outcome = start(SUDO_UID="4242", SUDO_GID="4343")
    assert "chown 4242:4343 runs videos data" in outcome.calls
    assert "as 4242:4343, profiles none" in outcome.calls


@pytest.mark.parametrize(
    ("variable", "words"), [("BUILD_CODE", "could not be built"), ("UP_CODE", "could not be started")]
)
def test_docker_fails_on_the_way(start: Start, variable: str, words: str) -> None:
    outcome = start(**{variable: "17"})
    assert outcome.code == 7
    assert words in outcome.errors
    assert not [call for call in outcome.calls if "exec" in call]


def test_stop_takes_down_both_services(start: Start) -> None:
    assert start("--stop").calls[-1] == "docker compose --profile gpu down"


def test_help_needs_no_docker(start: Start, tools: Path) -> None:
    (tools / "docker").unlink()
    assert start("--help").code == 0


def test_unknown_option(start: Start) -> None:
    outcome = start("--tpu")
    assert outcome.code == 2
    assert "'--tpu'" in outcome.errors
    assert not outcome.calls
