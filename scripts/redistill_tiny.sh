#!/usr/bin/env bash
# The whole experiment on a model of 0.9M parameters, in ten minutes on a laptop.
#
#     bash scripts/redistill_tiny.sh                # runs/tiny-0; the report is its report.md
#     SEED=1 bash scripts/redistill_tiny.sh         # runs/tiny-1
#     bash scripts/redistill_tiny.sh --dry-run      # only says what it would do
#
# Stop it with Ctrl-C or worse; the same command goes on. The base is assets/tiny_base
# (scripts/pretrain_tiny.sh made it); no problem here was in its pretraining. Trained on puzzles of
# 3 people, tested on 3 and 4.
set -euo pipefail
cd "$(dirname "$0")/.."
SEED=${SEED:-0}
BASE=${BASE:-assets/tiny_base}
OUT=${OUT:-runs/tiny-$SEED}
STEPS=${STEPS:-30}              # of GRPO
PROMPTS=${PROMPTS:-16}          # problems in each
EXAMPLES=${EXAMPLES:-256}       # in each SFT set
KEEP=${KEEP:-150}               # in each set of the policy's own answers
TEST=${TEST:-300}               # test puzzles of 3 people, and half as many of 4
DATA=$OUT/data
TRACE=${TRACE-0 50}             # when to take answers of GRPO, in percent of it, beside its end
SETS=(short long)               # bare tables; the steps of a search
ASIDE=(guess)                   # nothing but the answer, always right
POLICY=base
REPLAY=$((STEPS < 11 ? STEPS : 11))
BASE_TEST=$DATA/test.jsonl BASE_RL=$DATA/rl.jsonl

declare -A more=()
keep=() estimate=()
sft=(--lr 5e-4 --batch 16 --epochs 4 --max-length 512)
grpo=(--steps $STEPS --prompts $PROMPTS --group 8 --temperature 1 --lr 3e-4 --warmup 4 --norm token
      --max-prompt-tokens 200 --max-new-tokens 300 --kl-every 5)
regrpo=("${grpo[@]}" --steps $(((STEPS + 1) / 2)) --lr 1.5e-4)     # half the rate, as in the paper
greedy=(--temperature 0 --max-new-tokens 400)
sampled=(--temperature 1 --max-new-tokens 400)
effect=(--limit 200 --max-new-tokens 300 --max-length 512 --no-halves --norms 8)

make_data() {
    stage 3 "$DATA/rl.jsonl" "the puzzles" bash scripts/tiny_data.sh "$DATA" $TEST $EXAMPLES
    chains short table
    chains long search
    chains guess guess
}

chains() {      # chains NAME STYLE
    stage 2 "$DATA/$1.jsonl" "$1 chains: $2" python kk_gen.py --people 3 --source "$DATA/sft.jsonl" \
        --template compact --cot $2 --out "$DATA/$1.jsonl"
}

foreign() {     # as the paper's control: another's correct answers to the very problems of B
    stage 2 "$OUT/data/foreign.jsonl" "another's answers to the problems of B: searches" \
        python kk_gen.py --people 3 --source "$OUT/data/b.jsonl" --template compact --cot search \
        --out "$OUT/data/foreign.jsonl"
    fine_tune foreign "$OUT/data/foreign.jsonl"
}

. scripts/redistill.sh
