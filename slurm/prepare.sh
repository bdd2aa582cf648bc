#!/usr/bin/env bash
#
# Tokenise text into Arrow shards, on several nodes of one file system.
#
#   sbatch --nodes=4 [sbatch's options] slurm/prepare.sh INPUT... --output DATA --tokenizer TOKENIZER [options]
#   bash slurm/prepare.sh INPUT... --output DATA --tokenizer TOKENIZER [options]       on this machine
#
# Options are those of `bigtrain data prepare`. The result does not depend on the number of nodes, nor on how often
# the job was interrupted: what is finished is kept.
#
# Environment:
#   BIGTRAIN_PYTHON   the Python to use; default: .venv/bin/python beside this folder, else python3
#
#SBATCH --job-name=prepare
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#
# What a site must add, here or as options of sbatch:
##SBATCH --account=... --partition=... --time=24:00:00
##SBATCH --exclusive --mem=0            (whole nodes, all cores)

set -euo pipefail

if [ $# -eq 0 ]; then
  sed -n '3,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

# The project's folder. sbatch runs a copy of this script from a spool folder, but Slurm knows whence it came.
if [ -z "${BIGTRAIN_PYTHON:-}" ]; then
  script=${BASH_SOURCE[0]}
  if [ -n "${SLURM_JOB_ID:-}" ] && [ ! -e "$(dirname "$script")/../pyproject.toml" ]; then
    script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/prepare\.sh\).*|\1|p')
  fi
  BIGTRAIN_PYTHON=$(dirname "$(dirname "$(readlink -f "${script:-/none/none}")")")/.venv/bin/python
  [ -x "$BIGTRAIN_PYTHON" ] || BIGTRAIN_PYTHON=python3
fi
command=("$BIGTRAIN_PYTHON" -m bigtrain data prepare "$@")

interactive=4294967290 # the step of a shell that salloc opens on the first node
if [ -z "${SLURM_JOB_ID:-}" ] || [ "${SLURM_STEP_ID:-$interactive}" != $interactive ]; then # this machine, or under srun
  exec "${command[@]}"
fi
echo "== job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}, $(date -Is), nodes $SLURM_JOB_NODELIST"
step=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --label)
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then step+=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
exec "${step[@]}" "${command[@]}"
