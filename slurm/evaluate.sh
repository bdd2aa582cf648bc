#!/usr/bin/env bash
#
# Have a fine-tuned run judge examples, and score what it says; on one node.
#
#   sbatch [sbatch's options] slurm/evaluate.sh RUN EXAMPLES [key=value ...] [--options]   as a Slurm job
#   bash slurm/evaluate.sh RUN EXAMPLES [key=value ...] [--options]                        on this machine
#
# Options are those of `bigtrain evaluate`. Environment: as in slurm/pretrain.sh, which does the work.
#
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.out
#
# What a site must add, here or as options of sbatch:
##SBATCH --account=... --partition=... --time=1:00:00
##SBATCH --gpus-per-node=1 --cpus-per-task=8 --mem=64G

set -euo pipefail

if [ $# -eq 0 ]; then
  sed -n '3,7s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

# sbatch runs a copy of this script from a spool folder, but Slurm knows whence it came.
script=${BASH_SOURCE[0]}
if [ -n "${SLURM_JOB_ID:-}" ] && [ ! -e "$(dirname "$script")/../pyproject.toml" ]; then
  script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/evaluate\.sh\).*|\1|p')
fi
BIGTRAIN_COMMAND=evaluate exec bash "$(dirname "$(readlink -f "${script:-/none/none}")")/pretrain.sh" "$@"
