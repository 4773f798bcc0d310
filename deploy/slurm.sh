#!/usr/bin/env bash
# delta-tune on Slurm: start Ray's head node on the job's first node and workers on the others, run one study, stop Ray.
#
# Edit first
#   The #SBATCH lines, for your nodes: partition, account, GPUs, CPUs, time. The job takes whole nodes, so that no other
#   Ray runs on them. All nodes must share the home directory, the checkout with its environment, --data and --out.
#   If nodes have several networks, set HEAD_IP below to the first node's address in the network that connects them.
#
# Run, in the root of the checkout, with its environment activated (pip install -e ".[cluster]")
#   sbatch deploy/slurm.sh --data /shared/photos --model resnet50 --num-trials 64 --out /shared/results \
#       --name photos
#   tail -f delta-tune-JOBID.log
#   scancel --batch --signal=INT JOBID    # like Ctrl-C; Slurm also does this three minutes before the time limit
# Arguments of slurm.sh are passed to launch.py. To continue an interrupted study, add --resume to the same command.

#SBATCH --job-name=delta-tune
#SBATCH --output=%x-%j.log
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --no-kill
#SBATCH --signal=B:INT@180

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
host="${HEAD_IP:-$(hostname -I | cut -d ' ' -f 1)}"
port="${HEAD_PORT:-6379}"
started=()

finish() {
    trap '' INT TERM
    kill "${started[@]}" 2> /dev/null || true # some may have ended already
    wait "${started[@]}" || true
    if command -v nvidia-cuda-mps-control > /dev/null; then echo quit | nvidia-cuda-mps-control || true; fi
    rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
    rm -f "$RAY_AUTH_TOKEN_PATH"
}

# NVIDIA's MPS daemon lets trials share a GPU without turns. Each node's is the job's own.
export CUDA_MPS_PIPE_DIRECTORY="/tmp/nvidia-mps-$SLURM_JOB_ID" CUDA_MPS_LOG_DIRECTORY="/tmp/nvidia-mps-$SLURM_JOB_ID"
# shellcheck disable=SC2016 # expanded on each node
start_mps='mkdir -p "$CUDA_MPS_PIPE_DIRECTORY"; ! command -v nvidia-cuda-mps-control || nvidia-cuda-mps-control -d || true'

# All nodes read the token from a file that only its owner can read. It appears on no command line and in no log.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/delta-tune-$SLURM_JOB_ID.token"
trap finish EXIT
mkdir -p "$HOME/.ray"
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")

bash -c "$start_mps"
ray start --head --node-ip-address="$host" --port="$port" --num-cpus="$SLURM_CPUS_PER_TASK" \
    --include-dashboard=false --disable-usage-stats --block &
started+=($!)
until (: > "/dev/tcp/$host/$port") 2> /dev/null; do
    kill -0 "${started[0]}" # ends the script if the head did not start
    sleep 0.2
done

if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --relative=1 --nodes="$others" --ntasks="$others" --cpus-per-task="$SLURM_CPUS_PER_TASK" --no-kill \
        bash -c "$start_mps"'; exec "$0" "$@"' \
        ray start --address="$host:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
    started+=($!)
    timeout 120 python -c "
import time, ray
ray.init('$host:$port', log_to_driver=False)
while sum(node['Alive'] for node in ray.nodes()) < $SLURM_JOB_NUM_NODES:
    time.sleep(1)
" || echo "slurm.sh: not all nodes joined within two minutes; the study starts on those that did" >&2
fi

set -m # otherwise a background command ignores SIGINT
python launch.py --address "$host:$port" "$@" &
study=$!
trap 'kill -INT "$study"' INT
status=0
wait "$study" || status=$?
while kill -0 "$study" 2> /dev/null; do # the signal ended `wait`, not the study
    status=0
    wait "$study" || status=$?
done
exit "$status"
