# Shared by dist_train.sh, dist_test.sh, slurm_train.sh and slurm_test.sh; not run by itself.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The interpreter: $PYTHON, else that of an active environment, else the repository's .venv, else python3.
python=${PYTHON:-}
if [[ -z $python ]]; then
    python=python3
    conda=${CONDA_DEFAULT_ENV:-base}  # conda's base is active by default, and nobody's choice
    if [[ -z ${VIRTUAL_ENV:-} && $conda == base && -x $root/.venv/bin/python ]]; then
        python=$root/.venv/bin/python
    fi
fi

die() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# run_processes NUMBER SCRIPT [ARGUMENT...]: run a script in several processes, by torchrun. Of the arguments,
# --max-restarts is torchrun's, wherever it stands.
run_processes() {
    local number=$1 script=$2 nodes=${NNODES:-1} place restarts='' arguments=() launcher=(-m torch.distributed.run)
    shift 2
    while [[ $# -gt 0 ]]; do
        case $1 in
            --max-restarts | --max_restarts) restarts=${2:-none} && shift ;;
            --max-restarts=* | --max_restarts=*) restarts=${1#*=} ;;
            *) arguments+=("$1") ;;
        esac
        shift $(($# > 0))
    done
    [[ -z $restarts || $restarts =~ ^[0-9]+$ ]] || die "--max-restarts $restarts: say how often, as in --max-restarts 3."
    [[ -z $restarts || $nodes == 1 ]] ||
        die "--max-restarts restarts the processes of one machine. With NNODES=$nodes start all of them again, with --resume."
    set -- ${arguments[@]+"${arguments[@]}"}
    if [[ $nodes != 1 ]]; then
        [[ -n ${NODE_RANK:-} && -n ${MASTER_ADDR:-} ]] ||
            die "NNODES=$nodes needs NODE_RANK, from 0 on, and MASTER_ADDR, the address of node 0 (and PORT, if 29500 is taken there)."
        launcher=("$root/tools/meeting.py")  # calls torchrun when all machines are there
        place=(--nnodes="$nodes" --node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="${PORT:-29500}")
    elif [[ -n ${PORT:-} && -n $restarts ]]; then
        # The id tells this run's checkpoints from those of others; --standalone makes one up, too.
        place=(--rdzv-backend=c10d --rdzv-endpoint="${MASTER_ADDR:-127.0.0.1}:$PORT" --rdzv-id="$$-$RANDOM-$(date +%s)")
    elif [[ -n ${PORT:-} ]]; then
        place=(--nnodes=1 --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="$PORT")
    else
        place=(--standalone)  # takes a free port
    fi
    if [[ -n $restarts ]]; then
        place+=(--max-restarts="$restarts")
        # Restarted processes would find the addresses of dead ones in the store that is shared by default.
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    fi
    [[ ${script##*/} == train.py ]] || exec "$python" "${launcher[@]}" "${place[@]}" \
        --nproc-per-node="$number" "$script" "$@" --launcher pytorch
    train_and_tell "${launcher[@]}" "${place[@]}" --nproc-per-node="$number" "$script" "$@" --launcher pytorch
}

# train_and_tell ARGUMENT OF PYTHON...: a training that this shell tells to end. SIGUSR1 would end torchrun, which
# lets its processes live for 30 seconds after a SIGTERM, and returns 1 whatever their exit code is.
train_and_tell() {
    local code
    SWINV2_MM_SHARED=$(mktemp -d)
    export SWINV2_MM_SHARED
    trap 'rm -rf "$SWINV2_MM_SHARED"' EXIT
    trap 'tell 10' USR1
    trap 'tell 15' TERM
    trap : INT  # torchrun has it from the terminal, and ends its processes
    (trap '' USR1 && exec "$python" "$@") &
    torchrun=$!
    while true; do
        code=0 && wait "$torchrun" || code=$?
        # Above 128 it may be a trap that ended the wait.
        [[ $code -gt 128 ]] && kill -0 "$torchrun" 2>/dev/null || break
    done
    [[ ! -e $SWINV2_MM_SHARED/requeue ]] || code=75
    exit "$code"
}

# tell NUMBER: pass on a signal. After the first, processes save and end; the second ends them at once.
tell() {
    if [[ -e $SWINV2_MM_SHARED/told ]]; then
        kill -TERM "$torchrun" 2>/dev/null || true
    else
        echo "$1" >"$SWINV2_MM_SHARED/told"
    fi
}

# run_tasks PARTITION JOB SCRIPT [ARGUMENT...]: the same through Slurm's srun.
run_tasks() {
    local partition=$1 job=$2 script=$3 gpus=${GPUS:-8} per_node
    shift 3
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    # SRUN_ARGS holds several arguments in one variable: it is split on purpose.
    # shellcheck disable=SC2086
    exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
        --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
        "$python" -u "$script" "$@" --launcher slurm
}
