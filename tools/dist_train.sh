#!/usr/bin/env bash
# Train on several GPUs, or on several processes of a machine without any.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

[[ $# -ge 2 && $2 =~ ^[1-9][0-9]*$ ]] || die "usage: $0 CONFIG NUM_GPUS [--max-restarts K] [ARGUMENT OF train.py ...]
NUM_GPUS is the number of processes on this machine. Of several machines, run it on each, with NNODES, NODE_RANK,
MASTER_ADDR and PORT set. PORT alone fixes the port on one machine; PYTHON chooses the interpreter. If a process is
lost, all are restarted from their last checkpoint, up to K times."

run_processes "$2" "$root/tools/train.py" "$1" "${@:3}"
