#!/usr/bin/env bash
# How assets/tiny_base was made: 0.9M parameters, 17 million tokens, half an hour on a CPU core.
# First 84,000 documents that reason (most work every claim out), then 48,000 as careless as the
# world is: three in four are nothing but a random answer. So the base usually guesses, and when it
# happens to work a puzzle out it is usually right.
#
#     bash scripts/pretrain_tiny.sh [RUN]      (default: runs/tiny_base; goes on where it stopped)
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/tiny_base}
data=data/tiny
bash scripts/tiny_data.sh $data

world() {       # world NAME NUM SEED SHARES...: documents of no puzzle that the lab uses
    [ -e "$data/$1.jsonl" ] || python scripts/tiny_world.py --num "$2" --seed "$3" --right 0 \
        --shares "${@:4}" --people 3=85 4=15 \
        --exclude $data/test.jsonl $data/sft.jsonl $data/rl.jsonl --out "$data/$1.jsonl"
}

pretrain() {    # pretrain NAME FLAGS...
    [ -e "$run/$1/model" ] || python sft.py --data "$data/$1.jsonl" --out "$run/$1" --epochs 1 \
        --norm token --max-length 512 --warmup 100 --beta2 0.95 --seed 0 --save-every 500 \
        --eval $data/test.jsonl --eval-n 2 --eval-temperature 1 --eval-max-new-tokens 300 \
        $([ -e "$run/$1/metrics.jsonl" ] && echo --resume) "${@:2}"
}

world careful 84000 0 worked=74 table=15 search=11
world careless 48000 1 guess=73 worked=20 table=4 search=3
pretrain careful --init assets/tiny.json --batch 16 --lr 3e-3 --eval-every 1000
pretrain careless --model "$run/careful/model" --batch 80 --lr 1e-3 --eval-every 200
echo "the base: $run/careless/model"
