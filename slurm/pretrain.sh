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
# One task a node: the launcher, which starts and watches the node's processes. This script's own process starts the
# launchers, and sees to what comes after: it starts them again after a fault, and puts the job back into the queue.
# USR1@120: two minutes before the time limit Slurm signals the job's steps (not this script, which it would only
# with "B:"), so launchers and workers hear it at first hand. They write a checkpoint and end. Make it longer if a
# checkpoint takes longer.
# append: a job that runs again goes on writing to the same file.
#
# What a site must add, here or as options of sbatch:
##SBATCH --account=... --partition=... --time=24:00:00
##SBATCH --gpus-per-node=8 --exclusive --mem=0       (whole nodes)
##SBATCH --gpus-per-node=2 --cpus-per-task=16 --mem=128G       (a part of one)
##SBATCH --no-kill                                   (with launch.spare_nodes or launch.elastic: a lost node does not
#                                                     end the job)
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
command=("$BIGTRAIN_PYTHON" -m bigtrain "${BIGTRAIN_COMMAND:-pretrain}" "$@") # finetune.sh and evaluate.sh say others
if [ -n "${BIGTRAIN_NPROC:-}" ]; then command+=(--nproc "$BIGTRAIN_NPROC"); fi

interactive=4294967290 # the step of a shell that salloc opens on the first node
if [ -n "${SLURM_JOB_ID:-}" ] && [ "${SLURM_STEP_ID:-$interactive}" = $interactive ]; then
  echo "== job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, $(date -Is), nodes $SLURM_JOB_NODELIST"
  echo "== $(command -v "$BIGTRAIN_PYTHON"), $("$BIGTRAIN_PYTHON" --version), bigtrain $("$BIGTRAIN_PYTHON" -m bigtrain version)"
  env | grep -E '^(BIGTRAIN|CUDA|DS|GLOO|MASTER|NCCL|OMP|PYTORCH|TORCH)_' | grep -viE 'key|token|secret|passw' | sort || true
  echo "== $*"
fi
exec "${command[@]}"
