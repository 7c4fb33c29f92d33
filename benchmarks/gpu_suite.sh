#!/usr/bin/env bash
# Everything that a GPU is needed for, in one call: correctness first, then the benchmarks, as JSON lines.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: benchmarks/gpu_suite.sh [--dry-run] [--only PART] [--wheels FOLDER] [OUTPUT]
       benchmarks/gpu_suite.sh --download FOLDER [--python-version VERSION]

Runs the correctness tests and the benchmarks on a GPU. A part that fails does not stop the others; the exit status says
that there was one.

  OUTPUT                    folder of the results (default benchmarks/results/<commit>)
  --dry-run                 small shapes on whatever device there is, to see that the suite itself works; the results go
                            to a temporary folder where no OUTPUT is given
  --only PART               correctness, head or operations
  --wheels FOLDER           install peers from the wheels of a folder, for this run only
  --download FOLDER         fetch those wheels, where there is a network, and do nothing else
  --python-version VERSION  of the machine with the GPU, for --download (default 3.12)

The environment variable PYTHON names the interpreter (default python3), NVCC the CUDA compiler (default: nvcc where it is
on the PATH). Peers that are not installed are left out.
TEXT
}

wrong() {
    echo "gpu_suite: $1 (--help says more)" >&2
    exit 2
}

# Paths are the caller's; everything runs from the root of the repository.
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

dry='' only='' wheels='' download='' version=3.12 output=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit ;;
    --dry-run) dry=--smoke ;;
    --only | --wheels | --download | --python-version)
        if [ -z "${2:-}" ] || [ "${2#-}" != "$2" ]; then wrong "$1: expected a value after it"; fi
        case $1 in
        --only) only=$2 ;;
        --wheels) wheels=$(absolute "$2") ;;
        --download) download=$(absolute "$2") ;;
        --python-version) version=$2 ;;
        esac
        shift
        ;;
    -*) wrong "expected an option that exists, got $1" ;;
    *)
        [ -z "$output" ] || wrong "expected one OUTPUT, got $output and $1"
        output=$(absolute "$1")
        ;;
    esac
    shift
done
case $only in '' | correctness | head | operations) ;; *) wrong "--only: expected correctness, head or operations, got $only" ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
command -v "$python" >/dev/null || wrong "PYTHON: expected an interpreter, got $python"

if [ -n "$download" ]; then
    # Without requirements, which are torch, Triton and what a machine with transformers has. Where quack says that it
    # lacks nvidia-cutlass-dsl-libs-cu13 (90 MB), add it.
    peers=(liger-kernel trl==1.16.0 cut-cross-entropy quack-kernels nvidia-cutlass-dsl nvidia-cutlass-dsl-libs-base
        'apache-tvm-ffi<0.2' torch-c-dlpack-ext)
    platforms=()
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do
        platforms+=(--platform "${tag}_x86_64")
    done
    "$python" -m pip download --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        "${platforms[@]}" -d "$download" "${peers[@]}"
    du -sh "$download"
    exit
fi

gpu=$("$python" -c 'import torch; print("yes" if torch.cuda.is_available() else "")') ||
    wrong "PYTHON: expected an interpreter with torch, got $python"
if [ -z "$dry" ] && [ -z "$gpu" ]; then wrong "expected a CUDA device, got none; try --dry-run"; fi

if [ -n "$wheels" ]; then
    compgen -G "$wheels/*.whl" >/dev/null || wrong "--wheels: expected a folder with wheels, got $wheels"
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

if [ -z "$output" ] && [ -n "$dry" ]; then
    output=$(mktemp -d)
elif [ -z "$output" ]; then
    output=$PWD/benchmarks/results/$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
fi
if ! mkdir -p "$output" 2>/dev/null || ! [ -w "$output" ]; then
    wrong "OUTPUT: expected a folder that can be written, got $output"
fi

"$python" -c 'import json, platform, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "gpu": gpu}))' | tee "$output/machine.json"

wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }

failed=()
# run NAME COMMAND...: goes on where it fails.
run() {
    echo "==> $1"
    "${@:2}" || failed+=("$1")
}

tests() { "$python" -m pytest tests/triton tests/kernels tests/method ${dry:+-q} 2>&1 | tee "$output/tests.log"; }

# The operation in CUDA C++ has one test, which is skipped where it was not compiled: said here, so that it is not missed.
compile_cuda() {
    local skipped='the test of segment_sentences in CUDA C++ is SKIPPED:'
    if [ -z "$gpu" ]; then
        echo "$skipped there is no GPU"
    elif [ -n "${NVCC:-}" ] || command -v nvcc >/dev/null; then
        "$python" -m aapa.kernels.native.cuda
    else
        "$python" -c "from aapa.kernels.native.cuda import missing
if missing(): print('$skipped no nvcc on the PATH, none named by NVCC, and none compiled before')"
    fi
}

if wanted correctness; then
    run 'CUDA C++' compile_cuda
    "$python" -c 'from aapa.kernels.native import missing
if missing(): print("the tests of the C++ operations are SKIPPED:", missing())'
    run correctness tests
fi
if wanted head; then
    run 'the head against peers' "$python" -m benchmarks.kernels.gpu_head $dry --output "$output/gpu_head.jsonl"
fi
if wanted operations; then
    for file in benchmarks/kernels/bench_*.py; do
        name=$(basename "$file" .py)
        run "$name" "$python" -m "benchmarks.kernels.$name" $dry --output "$output/$name.jsonl"
    done
fi
echo "==> $output"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'gpu_suite: failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
