#!/usr/bin/env bash
# How assets/tiny_base was made: 0.9M parameters, one pass over 420,000 documents (about an hour on
# two CPU cores). Three in four documents are a careless answer with random roles, one in five works
# the puzzle out; so the base usually guesses, and is usually right when it happens to work.
#
#     bash scripts/pretrain_tiny.sh [RUN]      (default: runs/tiny_base; goes on where it stopped)
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/tiny_base}
data=data/tiny
bash scripts/tiny_data.sh $data

[ -e $data/world.jsonl ] || python scripts/tiny_world.py --num 420000 \
    --shares guess=73 worked=20 table=4 search=3 --right 0 --people 3=85 4=15 --seed 0 \
    --exclude $data/test.jsonl $data/sft.jsonl $data/rl.jsonl --out $data/world.jsonl

resume=$([ -e "$run/metrics.jsonl" ] && echo --resume || true)
python sft.py --init assets/tiny.json --data $data/world.jsonl --out "$run" --norm token \
    --max-length 512 --lr 3e-3 --warmup 100 --beta2 0.95 --batch 16 --epochs 1 --seed 0 \
    --eval $data/test.jsonl --eval-n 2 --eval-temperature 1 --eval-max-new-tokens 300 \
    --eval-every 5000 --save-every 1000 $resume
echo "the base: $run/model"
