#!/usr/bin/env bash
# Builds the image, starts the container and enters it. ./start.sh --help says the rest.
set -euo pipefail

# What this script leaves with, apart from the exit code of the command that ran inside.
readonly USAGE=2 NO_DOCKER=3 NO_COMPOSE=4 NO_DAEMON=5 NO_GPU=6 NOT_BUILT=7

help() {
  cat << 'TEXT'
Usage: ./start.sh [--cpu | --gpu | --stop] [-- COMMAND...]

Builds the Dreamer-LPM image, starts its container and opens a shell in it, or runs COMMAND there:

  ./start.sh
  ./start.sh -- python3 train_lpm.py --steps 10000 --noisy-tv

The GPU is used where nvidia-smi works and Docker has the NVIDIA runtime, the CPU elsewhere.
The container stays up afterwards, so the same command enters it again, as it is: to build it anew, --stop it first.
Results lie in runs/ and videos/.

  --cpu    use the CPU, even where there is a GPU
  --gpu    use the GPU, or say what is missing for it
  --stop   stop and remove the container; runs in it are saved
  --help   this text

Environment: LPM_RUNS, LPM_VIDEOS, LPM_DATA (folders to use instead of ./runs, ./videos, ./data),
LPM_TENSORBOARD_PORT (6006), LPM_TORCH_INDEX (where the GPU image gets torch from), WANDB_API_KEY, WANDB_MODE.

Exit codes: that of COMMAND, or 2 wrong option, 3 Docker missing, 4 its compose plugin missing, 5 its daemon
not running or not allowed, 6 no GPU to be used, 7 the image could not be built or the container not started.
TEXT
}

fail() { # fail CODE MESSAGE
  echo "start.sh: $2" >&2
  exit "$1"
}

require_docker() {
  local answer
  command -v docker > /dev/null ||
    fail "$NO_DOCKER" "Docker is not installed: see https://docs.docker.com/get-docker/, or do without it: make demo"
  docker compose version > /dev/null 2>&1 ||
    fail "$NO_COMPOSE" "Docker has no compose plugin: see https://docs.docker.com/compose/install/, or do without Docker: make demo"
  if ! answer=$(docker info 2>&1); then
    case "$answer" in
      *"permission denied"*) fail "$NO_DAEMON" "you may not use Docker: run 'sudo usermod -aG docker $(id -un)', then log out and in again" ;;
      *) fail "$NO_DAEMON" "Docker is not running: start Docker Desktop, or run 'sudo systemctl start docker'" ;;
    esac
  fi
}

# Prints what is missing for a GPU; nothing where all is there.
gpu_obstacle() {
  if ! nvidia-smi > /dev/null 2>&1; then
    echo "nvidia-smi does not work here: install the NVIDIA driver"
  elif [[ "$(docker info --format '{{json .Runtimes}}')" != *nvidia* ]]; then
    echo "Docker has no NVIDIA runtime: install the NVIDIA Container Toolkit and restart Docker"
  fi
}

# Prints the compose service for the device that was asked for.
choose_service() {
  local obstacle=""
  [[ "$1" == cpu ]] || obstacle=$(gpu_obstacle)
  case "$1:$obstacle" in
    gpu:?*) fail "$NO_GPU" "no GPU to be used: $obstacle, or choose --cpu" ;;
    auto: | gpu:) echo lpm-gpu ;;
    *) echo lpm ;;
  esac
}

# Folders that Docker makes for a mount belong to root; these are made by the caller, whose numbers the container's
# user gets. Under sudo that is the person behind it; for root itself it is root, who alone could write there.
prepare_folders() {
  export LPM_UID="${SUDO_UID:-$(id -u)}" LPM_GID="${SUDO_GID:-$(id -g)}"
  local folders=("${LPM_RUNS:-runs}" "${LPM_VIDEOS:-videos}" "${LPM_DATA:-data}")
  mkdir -p "${folders[@]}"
  # Whole paths: compose takes a name without a slash for a volume of its own.
  LPM_RUNS=$(cd "${folders[0]}" > /dev/null && pwd)
  LPM_VIDEOS=$(cd "${folders[1]}" > /dev/null && pwd)
  LPM_DATA=$(cd "${folders[2]}" > /dev/null && pwd)
  export LPM_RUNS LPM_VIDEOS LPM_DATA
  if [[ -n "${SUDO_UID:-}" ]]; then
    chown "$LPM_UID:$LPM_GID" "${folders[@]}"
  fi
}

main() {
  local device=auto service exec_options=()
  while (($#)); do
    case "$1" in
      --cpu | --gpu | --stop) device="${1#--}" ;;
      --help | -h)
        help
        exit 0
        ;;
      --)
        shift
        break
        ;;
      *) fail "$USAGE" "unknown option '$1': ./start.sh --help lists them; a command to run goes after --" ;;
    esac
    shift
  done

  cd "$(dirname "${BASH_SOURCE[0]}")"
  require_docker
  if [[ "$device" == stop ]]; then
    exec docker compose --profile gpu down
  fi

  service=$(choose_service "$device")
  [[ "$service" != lpm-gpu ]] || export COMPOSE_PROFILES=gpu
  echo "start.sh: using the $([[ "$service" == lpm-gpu ]] && echo GPU || echo CPU)" >&2
  prepare_folders
  # One that is up may have a run in it, which `up` would end where an edit has made another image.
  if [[ -z "$(docker compose ps --status running --quiet "$service")" ]]; then
    docker compose build "$service" || fail "$NOT_BUILT" "the image could not be built: the lines above say why"
    docker compose up --detach "$service" || fail "$NOT_BUILT" "the container could not be started: the lines above say why (is a port taken, try ./start.sh --stop or LPM_TENSORBOARD_PORT=6007)"
  fi

  # A terminal is wanted only where there is one, so that this works in a pipe and from cron too.
  [[ -t 0 && -t 1 ]] || exec_options=(-T)
  (($#)) || set -- bash
  exec docker compose exec ${exec_options[@]+"${exec_options[@]}"} "$service" "$@"
}

main "$@"
