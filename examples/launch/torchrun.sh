#!/usr/bin/env bash
# One run over several machines, by torchrun alone. Start it on each of them, with the same words:
#
#   HEAD=node-0 NODES=2 examples/launch/torchrun.sh RECIPE [--KEY VALUE]…
#
# HEAD names one of the machines, where all others reach it. The run directory (--output) must be the same for all
# machines, on a disk that they share; so must the Hugging Face cache (HF_HOME), or be filled on each beforehand.
#
#   NODES       machines                                  (1)
#   GPUS        processes on each, one for a GPU          (what nvidia-smi counts; 1 without one)
#   PORT        a free port of HEAD                       (29500)
#   RUN_ID      tells runs on the same HEAD apart         (aapa)
#   RESTARTS    times that all ranks start again from the last checkpoint when one of them dies   (0)
#   LOCAL_ADDR  this machine's address, where its own name does not lead to it
#
# To stop: SIGTERM to one torchrun (with RESTARTS, to all of them). All ranks finish their step, save, and exit; starting
# again with the same words goes on from there.
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: HEAD=… NODES=… $0 RECIPE [--KEY VALUE]…" >&2
    exit 2
fi
: "${NODES:=1}" "${HEAD:=localhost}" "${PORT:=29500}" "${RUN_ID:=aapa}" "${RESTARTS:=0}"
: "${GPUS:=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}"
[ "$GPUS" -gt 0 ] || GPUS=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# After SIGTERM ranks have as long to save, in seconds; torchrun's own patience is 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-540}"

exec torchrun --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts "$RESTARTS" \
    --rdzv-backend c10d --rdzv-id "$RUN_ID" --rdzv-endpoint "$HEAD:$PORT" \
    ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"} --no-python aapa train "$@"
