#!/usr/bin/env bash
# Train as a Slurm job: GPUS in all (default 8), GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

[[ $# -ge 4 ]] || die "usage: [GPUS=8] [SRUN_ARGS=...] $0 PARTITION JOB_NAME CONFIG WORK_DIR [ARGUMENT OF train.py ...]"

run_tasks "$1" "$2" "$root/tools/train.py" "$3" --work-dir "$4" "${@:5}"
