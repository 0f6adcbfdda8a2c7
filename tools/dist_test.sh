#!/usr/bin/env bash
# Test on several GPUs, or on several processes of a machine without any.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

[[ $# -ge 3 && $3 =~ ^[1-9][0-9]*$ ]] || die "usage: $0 CONFIG CHECKPOINT NUM_GPUS [ARGUMENT OF test.py ...]
NUM_GPUS is the number of processes on this machine. Of several machines, run it on each, with NNODES, NODE_RANK,
MASTER_ADDR and PORT set. PORT alone fixes the port on one machine; PYTHON chooses the interpreter."

run_processes "$3" "$root/tools/test.py" "$1" "$2" "${@:4}"
