#!/usr/bin/env bash
# Test as a Slurm job: GPUS in all (default 8), GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

[[ $# -ge 4 ]] || die "usage: [GPUS=8] [SRUN_ARGS=...] $0 PARTITION JOB_NAME CONFIG CHECKPOINT [ARGUMENT OF test.py ...]"

run_tasks "$1" "$2" "$root/tools/test.py" "$3" "$4" "${@:5}"
