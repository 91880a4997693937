#!/bin/bash
# A run on a Slurm machine:  sbatch --nodes=4 --gpus-per-node=4 cluster/slurm.sh classify --input ... --output ...
# One Ray node a machine; the verb runs beside the head. Preempted and queued again, it goes on with what is missing.
#SBATCH --job-name=deepshadows
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch [options] cluster/slurm.sh VERB [flags]" >&2
    exit 2
fi

# Other users share the network: nobody joins without this job's token. The folder must be one that all nodes see.
# It goes by the job and its start, so that what a start that Slurm killed has left is cleared away by the next one.
umask 077
job="${DEEPSHADOWS_SCRATCH:-$HOME}/deepshadows-job-${SLURM_CLUSTER_NAME:-slurm}-$SLURM_JOB_ID"
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then rm -rf "$job"-*; fi
scratch=$(mktemp -d "$job-XXXXXX")
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun does not take it over from sbatch
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$scratch/token" RAY_USAGE_STATS_ENABLED=0
python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 10000))
options=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)

# No `ray stop` anywhere: it would end every Ray of this user on the machine. The steps are ended instead.
trap 'rm -rf "$scratch" || true; kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT
srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --node-ip-address="$address" --port="$port" \
    --include-dashboard=false "${options[@]}" >&2 &
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    # shellcheck disable=SC2016 # the shell on each node takes its own arguments
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        bash -c 'until ray start --address="$0" "$@"; do sleep 2; done' "$address:$port" "${options[@]}" >&2 &
fi

# Wait for every node: scorers are placed on what is there when the verb begins.
python - "$address:$port" "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + 300
while True:
    try:
        ray.init(address=address, log_to_driver=False)
        break
    except (ConnectionError, RuntimeError, ValueError):
        if time.monotonic() > deadline:
            sys.exit(f"no Ray head at {address} within 300 s")
        time.sleep(2)
while sum(node["Alive"] for node in ray.nodes()) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"fewer than {wanted} nodes joined within 300 s")
    time.sleep(1)
PYTHON

python -m deepshadows "$@" --address "$address:$port"
