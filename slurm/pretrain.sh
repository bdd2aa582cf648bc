#!/usr/bin/env bash
#
# Pretrain, or continue a run whose folder is there already.
#
#   sbatch [sbatch's options] slurm/pretrain.sh CONFIG [key=value ...]   as a Slurm job
#   bash slurm/pretrain.sh CONFIG [key=value ...]                        on this machine
#
# Environment:
#   BIGTRAIN_NPROC    processes a node; default: one a GPU, without a GPU what one copy of the model takes
#   BIGTRAIN_PYTHON   the Python to use; default: .venv/bin/python beside this folder, else python3
#
#SBATCH --job-name=pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120
#
# One task a node: the launcher, which starts and watches the node's processes.
# USR1@120: two minutes before the time limit Slurm signals the job's steps (not this script, which it would only
# with "B:"), so launchers and workers hear it at first hand. They write a checkpoint and end with 75, and this
# script puts the job back into the queue. Make it longer if a checkpoint takes longer.
# append: a job that runs again goes on writing to the same file.
#
# What a site must add, here or as options of sbatch:
##SBATCH --account=... --partition=... --time=24:00:00
##SBATCH --gpus-per-node=8 --exclusive --mem=0       (whole nodes)
##SBATCH --gpus-per-node=2 --cpus-per-task=16 --mem=128G       (a part of one)
# and before sbatch, whose environment travels along, or below in a copy of this file:
#   module load ...; export NCCL_SOCKET_IFNAME=... (the fast network's interface)

set -euo pipefail

if [ $# -eq 0 ]; then
  sed -n '3,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

# The project's folder. sbatch runs a copy of this script from a spool folder, but Slurm knows whence it came.
project_folder() {
  local script=${BASH_SOURCE[0]}
  if [ -n "${SLURM_JOB_ID:-}" ] && [ ! -e "$(dirname "$script")/../pyproject.toml" ]; then
    script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/pretrain\.sh\).*|\1|p')
  fi
  dirname "$(dirname "$(readlink -f "${script:-/none/none}")")"
}

if [ -z "${BIGTRAIN_PYTHON:-}" ]; then
  BIGTRAIN_PYTHON=$(project_folder)/.venv/bin/python
  [ -x "$BIGTRAIN_PYTHON" ] || BIGTRAIN_PYTHON=python3
fi
command=("$BIGTRAIN_PYTHON" -m bigtrain pretrain "$@")
if [ -n "${BIGTRAIN_NPROC:-}" ]; then command+=(--nproc "$BIGTRAIN_NPROC"); fi

if [ -z "${SLURM_JOB_ID:-}" ] || [ -n "${SLURM_STEP_ID:-}" ]; then # this machine, or a shell that srun opened
  exec "${command[@]}"
fi

echo "== job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, $(date -Is), nodes $SLURM_JOB_NODELIST"
echo "== $(command -v "$BIGTRAIN_PYTHON"), $("$BIGTRAIN_PYTHON" --version), bigtrain $("$BIGTRAIN_PYTHON" -m bigtrain version)"
env | grep -E '^(BIGTRAIN|CUDA|DS|GLOO|MASTER|NCCL|OMP|PYTORCH|TORCH)_' | grep -viE 'key|token|secret|passw' | sort || true
echo "== $*"

# --wait: when one node's launcher has ended, the others get 15 seconds: after a fault their processes may wait for
# ever for those that are gone. (--kill-on-bad-exit would give them none, and 75 is a "bad exit" too.) After an
# orderly stop all end at once: they meet for the last time when everything is written.
# srun does not take --cpus-per-task over from sbatch.
step=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --wait=15 --kill-on-bad-exit=0)
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi

# At preemption and scancel everything in the job gets SIGTERM, this script too: it stays, to see how the step ends.
trap : TERM
"${step[@]}" "${command[@]}" &
srun=$!
code=0
while true; do
  wait "$srun" && code=0 || code=$?
  kill -0 "$srun" 2>/dev/null || break
done

echo "== ended with $code, $(date -Is)"
if [ "$code" -eq 75 ]; then
  # A cancelled job could be requeued as well, and a preempted one is already.
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
  if [ "$state" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "== not requeued: the job is $state"
  fi
fi
exit "$code"
