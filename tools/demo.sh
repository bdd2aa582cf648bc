#!/usr/bin/env bash
# From text to an exported model in a few minutes, by the commands that a user would type.
set -euo pipefail
cd "$(dirname "$0")/.."
export BIGTRAIN_PYTHON=${BIGTRAIN_PYTHON:-$PWD/.venv/bin/python} BIGTRAIN_NPROC=4
PATH=$(dirname "$BIGTRAIN_PYTHON"):$PATH
began=$SECONDS

show() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
run() { show "$@"; "$@"; }

rm -rf demo
library=$("$BIGTRAIN_PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')
choose=(--pattern '*.py' --exclude site-packages --validation-fraction 0.02)

# 1. A tokenizer and Arrow shards, from the source and documentation strings of Python's own library.
run bigtrain tokenizer train "$library" --output demo/tokenizer.model --vocab-size 2048 "${choose[@]}"
run bigtrain data prepare "$library" --output demo/data --tokenizer demo/tokenizer.model "${choose[@]}"

# 2. Pretrain on four processes, tensor 2 x data 2 with ZeRO-1. Half-way it gets the signal that Slurm sends before
#    a time limit: it saves and ends with 75 ...
show bash slurm/pretrain.sh configs/runs/demo.yaml
bash slurm/pretrain.sh configs/runs/demo.yaml &
run=$!
half=$(bigtrain config show configs/runs/demo.yaml | sed -n 's/^  steps: //p')
half=$((half / 2))
mkdir -p demo/run && touch demo/run/metrics.jsonl
grep -q -m1 "\"step\": $half," <(tail --pid="$run" -n +1 -F demo/run/metrics.jsonl 2>/dev/null)
show kill -USR1 "$run"
kill -USR1 "$run"
code=0
wait "$run" || code=$?
echo "exit code $code"
[ "$code" -eq 75 ]

# ... and goes on in another layout: pipeline 2 x data 2 with ZeRO-2, from the same checkpoint.
run bash slurm/pretrain.sh configs/runs/demo.yaml parallel.tensor=1 parallel.pipeline=2 parallel.zero_stage=2

# 3. What it learnt, beside what general compressors make of the same held-out text.
run bigtrain report demo/run

# 4. Out to Hugging Face, with both models' logits compared, and a sample from the exported folder.
run "$BIGTRAIN_PYTHON" tools/convert_to_hf.py demo/run demo/hf --verify
run bigtrain generate demo/hf --prompt $'class Reader:\n    def __init__(self' --max-new-tokens 120

printf '\ndone in %d seconds; look at demo/run/report.html\n' $((SECONDS - began))
