#!/usr/bin/env bash
# Everything that a GPU is needed for, in one call: correctness first, then the benchmarks, as JSON lines.
#
#   benchmarks/gpu_suite.sh [--dry-run] [--wheels FOLDER] [--only correctness|head|operations] [OUTPUT]
#   benchmarks/gpu_suite.sh --download FOLDER
#
# --dry-run takes small shapes on whatever device there is, to see that the suite itself works. OUTPUT is a folder, by
# default benchmarks/results/<commit>. PYTHON names the interpreter.
#
# Peers are compared with where they are installed. A machine without a network gets them as wheels: --download FOLDER
# fetches them where there is one, --wheels FOLDER installs them beside the suite, for its own run only.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
# For Python 3.12; without requirements, which are torch, Triton and what a machine with transformers has. Where quack
# says that it lacks nvidia-cutlass-dsl-libs-cu13 (90 MB), add it.
peers=(liger-kernel trl==1.16.0 cut-cross-entropy quack-kernels nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-base
    'apache-tvm-ffi<0.2' torch-c-dlpack-ext)

if [ "${1:-}" = --download ]; then
    platforms=()
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${tag}_x86_64")
    done
    "$python" -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" -d "$2" "${peers[@]}"
    du -sh "$2"
    exit
fi

dry=
if [ "${1:-}" = --dry-run ]; then
    dry=--smoke
    shift
fi
if [ "${1:-}" = --wheels ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    shift 2
fi
only=
if [ "${1:-}" = --only ]; then
    only=$2
    shift 2
fi
output=${1:-benchmarks/results/$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
mkdir -p "$output"

if [ -z "$dry" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_suite: expected a CUDA device, got none (try --dry-run)" >&2
    exit 2
fi

"$python" -c 'import json, platform, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "gpu": gpu}))' | tee "$output/machine.json"

wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }

if wanted correctness; then
    echo "==> correctness"
    "$python" -m pytest tests/triton tests/kernels tests/method ${dry:+-x -q} 2>&1 | tee "$output/tests.log"
fi
if wanted head; then
    echo "==> the head against peers"
    "$python" -m benchmarks.kernels.gpu_head $dry --output "$output/gpu_head.jsonl"
fi
if wanted operations; then
    for file in benchmarks/kernels/bench_*.py; do
        name=$(basename "$file" .py)
        echo "==> $name"
        "$python" -m "benchmarks.kernels.$name" $dry --output "$output/$name.jsonl"
    done
fi
echo "==> $output"
