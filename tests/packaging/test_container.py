"""Dockerfile and docker-compose.yml say what pyproject.toml says, and the container mounts what a run writes."""

import fnmatch
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

Instruction = tuple[str, str]  # ("RUN", "pip install ...")


@pytest.fixture(scope="module")
def dockerfile(root: Path) -> list[Instruction]:
    text = re.sub(r"(?m)^#.*\n", "", (root / "Dockerfile").read_text(encoding="utf-8"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


@pytest.fixture(scope="module")
def arguments(dockerfile: list[Instruction]) -> dict[str, str]:
    """ARG name -> default."""
    return dict(rest.split("=", 1) for word, rest in dockerfile if word == "ARG")


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((root / "docker-compose.yml").read_text(encoding="utf-8"))
    return parsed


def commands(dockerfile: list[Instruction]) -> list[tuple[int, list[str]]]:
    """(number of the instruction, words) of every command in the RUN lines."""
    return [
        (number, shlex.split(command))
        for number, (word, rest) in enumerate(dockerfile)
        if word == "RUN"
        for command in rest.split("&&")
    ]


def pip_installs(dockerfile: list[Instruction]) -> list[tuple[int, list[str]]]:
    return [(number, words[2:]) for number, words in commands(dockerfile) if words[:2] == ["pip", "install"]]


def copies(dockerfile: list[Instruction]) -> list[tuple[int, list[str]]]:
    """(number of the instruction, sources) of every COPY."""
    return [
        (number, [part for part in rest.split() if not part.startswith("--")][:-1])
        for number, (word, rest) in enumerate(dockerfile)
        if word == "COPY"
    ]


def test_python_is_pinned_by_digest_and_of_a_version_that_the_project_allows(
    dockerfile: list[Instruction], project: dict[str, Any]
) -> None:
    word, image = dockerfile[0]
    version = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-[a-z]+@sha256:[0-9a-f]{64}", image)
    assert word == "FROM"
    assert version, image
    assert version[1] in SpecifierSet(project["project"]["requires-python"])


def test_torch_step_installs_what_pyproject_requires(
    dockerfile: list[Instruction], project: dict[str, Any], root: Path
) -> None:
    [script] = [words for _, words in commands(dockerfile) if words[:2] == ["python", "-c"]]
    printed = subprocess.run([sys.executable, *script[1:3]], cwd=root, capture_output=True, text=True, check=True)
    [torch] = [line for line in project["project"]["dependencies"] if Requirement(line).name == "torch"]
    assert printed.stdout.strip() == torch

    [from_index, package] = [words for _, words in pip_installs(dockerfile)]
    assert script[3:] == [">", from_index[-1]]
    assert from_index == ["--index-url", "${TORCH_INDEX}", "--requirement", "/tmp/torch.txt"]
    assert package == ["--editable", ".[${EXTRAS}]"]


def test_extras_exist(arguments: dict[str, str], project: dict[str, Any]) -> None:
    assert set(arguments["EXTRAS"].split(",")) <= project["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize("name", ["Dockerfile", "docker-compose.yml", "start.sh", "Makefile"])
def test_no_file_restates_a_version_of_a_dependency(name: str, root: Path, project: dict[str, Any]) -> None:
    text = (root / name).read_text(encoding="utf-8")
    listed = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    names = "|".join(re.escape(Requirement(line).name) for group in listed for line in group)
    assert not re.search(rf"(?i)\b({names})(\[[\w,-]*\])?\s*(==|>=|<=|~=|<|>)\s*\d", text)


def test_slow_layers_depend_on_the_installers_input_alone(
    dockerfile: list[Instruction], project: dict[str, Any]
) -> None:
    needed = {"pyproject.toml", project["tool"]["hatch"]["version"]["path"], *project["project"]["license-files"]}
    if "readme" in project["project"]:
        needed.add(project["project"]["readme"])
    last_install = pip_installs(dockerfile)[-1][0]
    before = {source for number, sources in copies(dockerfile) if number < last_install for source in sources}
    after = {source for number, sources in copies(dockerfile) if number > last_install for source in sources}
    assert before == needed
    assert after == {"."}


def test_dockerignore_keeps_what_is_copied_by_name(dockerfile: list[Instruction], root: Path) -> None:
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = [line for line in lines if line and not line.startswith("#")]
    named = {source for _, sources in copies(dockerfile) for source in sources} - {"."}
    assert not [(name, pattern) for name in named for pattern in ignored if fnmatch.fnmatch(name, pattern)]
    assert {".git", ".venv", "runs", "videos", "data"} <= set(ignored)


def test_container_does_not_run_as_root(dockerfile: list[Instruction], arguments: dict[str, str]) -> None:
    [user] = [rest for word, rest in dockerfile if word == "USER"]
    assert user == "${UID}:${GID}"
    assert int(arguments["UID"]) > 0
    assert int(arguments["GID"]) > 0


def test_nothing_is_piped_from_the_net_into_a_shell(dockerfile: list[Instruction]) -> None:
    assert not [words for _, words in commands(dockerfile) if {"curl", "wget"} & set(words)]
    assert not [rest for word, rest in dockerfile if word == "ADD"]


def test_compose_file_follows_the_compose_specification(root: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    checked = subprocess.run(check, cwd=root, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("service", ["lpm", "lpm-gpu"])
def test_services_mount_what_a_run_reads_and_writes(service: str, compose: dict[str, Any]) -> None:
    mounts = dict(reversed(volume.rsplit(":", 1)) for volume in compose["services"][service]["volumes"])
    assert mounts == {
        "/app": ".",
        "/app/runs": "${LPM_RUNS:-./runs}",
        "/app/videos": "${LPM_VIDEOS:-./videos}",
        "/app/data": "${LPM_DATA:-./data}",
    }


def test_pictures_are_cached_in_the_mounted_data_folder(dockerfile: list[Instruction]) -> None:
    settings = dict(setting.split("=", 1) for word, rest in dockerfile if word == "ENV" for setting in rest.split())
    assert settings["DREAMER_LPM_DATA"] == "/app/data"


@pytest.mark.parametrize("service", ["lpm", "lpm-gpu"])
def test_services_build_with_arguments_that_the_dockerfile_knows(
    service: str, compose: dict[str, Any], arguments: dict[str, str]
) -> None:
    build = compose["services"][service]["build"]
    assert build["context"] == "."
    assert build["args"].keys() <= arguments.keys()


def test_cpu_is_the_default_and_the_gpu_service_reserves_devices(
    compose: dict[str, Any], arguments: dict[str, str]
) -> None:
    cpu, gpu = compose["services"]["lpm"], compose["services"]["lpm-gpu"]
    assert cpu["build"]["args"]["TORCH_INDEX"] == arguments["TORCH_INDEX"]
    assert arguments["TORCH_INDEX"].endswith("/cpu")
    assert "deploy" not in cpu
    assert "profiles" not in cpu

    assert re.search(r"/cu\d+\}$", gpu["build"]["args"]["TORCH_INDEX"])
    assert gpu["image"] != cpu["image"]
    assert gpu["profiles"] == ["gpu"]
    [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


@pytest.mark.parametrize("service", ["lpm", "lpm-gpu"])
def test_ports_are_open_to_this_machine_only(service: str, compose: dict[str, Any]) -> None:
    ports = compose["services"][service]["ports"]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


INIT = """
{command} & kept=$!
trap 'kill -TERM $kept' TERM
{python} -c '{run}' &
while kill -0 $kept 2> /dev/null; do wait $kept; done
"""
RUN = """
import pathlib, signal, time
told = []
for signum in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, lambda *_: told.append(1))
pathlib.Path("begun").touch()
while not told:
    time.sleep(0.01)
time.sleep(0.5)
pathlib.Path("saved").touch()
"""


def test_a_stop_waits_for_the_runs_in_the_container(compose: dict[str, Any], tmp_path: Path) -> None:
    """In a container's stead: a namespace of processes, with a shell as its init, which ends with what it started."""
    command = shlex.join(compose["services"]["lpm"]["command"]).replace("$$", "$")
    (tmp_path / "init").write_text(INIT.format(command=command, python=shlex.quote(sys.executable), run=RUN))
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces of processes here")
    # unshare forks; the pid that its child has out here is asked of the kernel.
    with subprocess.Popen([*alone, "bash", "init"], cwd=tmp_path) as outer:
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        [inner] = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        os.kill(int(inner), signal.SIGTERM)
        outer.wait(60)
    assert (tmp_path / "saved").exists()
