#!/usr/bin/env bash
# What a CUDA card does with this library, in under ten minutes: bash benchmarks/gpu.sh [FOLDER]
#
# Parity with a CPU and no waiting (tests/gpu), seconds an update at every preset and for several agents that learn as
# one, and the pixel Pendulum with 1 and with 16 seeds. Leaves JSON and logs in FOLDER (default: benchmarks/results/gpu),
# with the card's name in them; needs the dev extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${1:-benchmarks/results/gpu}
runs=$(mktemp -d)
trap 'rm -rf "$runs"' EXIT
mkdir -p "$out"
export PYTHONUNBUFFERED=1

"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "There is no CUDA device here.")'
"$python" -m pytest tests/gpu tests/curiosity/test_contract.py -k gpu 2>&1 | tee "$out/tests.log"
# What it has measured when its time is up is written down.
timeout 240 "$python" benchmarks/gpu.py --out "$out/update.json" --precisions bf16 tf32 || [ $? -eq 124 ]

pendulum=(--steps 10000 --fast-render --eval-every 0 --runs "$runs" --device cuda)
"$python" -m dreamer_lpm train "${pendulum[@]}" --run-name one
"$python" -m dreamer_lpm train "${pendulum[@]}" --run-name many --seeds 0..15 --no-pictures --checkpoint-every 0
"$python" - "$runs" "$out/pendulum.json" <<'PY'
import json, sys
from pathlib import Path

import torch

runs, out = map(Path, sys.argv[1:])
wanted = ("seed", "env_steps", "updates", "wall_seconds", "eval_return_mean", "precision", "versions", "git_revision")
rows = {p.parent.name: json.loads(p.read_text()) for p in sorted(runs.glob("*/summary.json"))}
found = {name: {key: row[key] for key in wanted} for name, row in rows.items()}
out.write_text(json.dumps({"card": torch.cuda.get_device_name(), "runs": found}, indent=1) + "\n")
print(*(f"{name}: {r['eval_return_mean']:.0f} after {r['wall_seconds']:.0f} s" for name, r in found.items()), sep="\n")
PY
