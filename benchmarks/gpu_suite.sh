#!/usr/bin/env bash
# Everything that a GPU is needed for, in one call: correctness first, then the benchmarks, as JSON lines.
#
#   benchmarks/gpu_suite.sh [--dry-run] [OUTPUT]
#
# --dry-run takes small shapes on whatever device there is, to see that the suite itself works. OUTPUT is a folder, by
# default benchmarks/results/<commit>. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
dry=
if [ "${1:-}" = --dry-run ]; then
    dry=--smoke
    shift
fi
output=${1:-benchmarks/results/$(git rev-parse --short HEAD)}
mkdir -p "$output"

if [ -z "$dry" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_suite: expected a CUDA device, got none (try --dry-run)" >&2
    exit 2
fi

"$python" -c 'import json, platform, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "gpu": gpu}))' | tee "$output/machine.json"

echo "==> correctness"
"$python" -m pytest tests/kernels tests/method ${dry:+-x -q} 2>&1 | tee "$output/tests.log"

echo "==> benchmarks"
for file in benchmarks/kernels/bench_*.py; do
    name=$(basename "$file" .py)
    "$python" -m "benchmarks.kernels.$name" $dry --output "$output/$name.jsonl"
done
echo "==> $output"
