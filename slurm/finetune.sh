#!/usr/bin/env bash
#
# Fine-tune a model on labelled examples, or continue a run whose folder is there already.
#
#   sbatch [sbatch's options] slurm/finetune.sh CONFIG [key=value ...]   as a Slurm job
#   bash slurm/finetune.sh CONFIG [key=value ...]                        on this machine
#
# Environment, and what a site must add: as in slurm/pretrain.sh, which does the work.
#
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@120

set -euo pipefail

if [ $# -eq 0 ]; then
  sed -n '3,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

# sbatch runs a copy of this script from a spool folder, but Slurm knows whence it came.
script=${BASH_SOURCE[0]}
if [ -n "${SLURM_JOB_ID:-}" ] && [ ! -e "$(dirname "$script")/../pyproject.toml" ]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/finetune\.sh\).*|\1|p')
fi
BIGTRAIN_COMMAND=finetune exec bash "$(dirname "$(readlink -f "${script:-/none/none}")")/pretrain.sh" "$@"
