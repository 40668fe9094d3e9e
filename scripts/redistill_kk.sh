#!/usr/bin/env bash
# The paper's Knights & Knaves experiment, with its settings (arXiv 2505.17988), on one GPU.
#
#     BASE=Qwen2.5-1.5B bash scripts/redistill_kk.sh --dry-run    # commands, memory, time
#     BASE=Qwen2.5-1.5B bash scripts/redistill_kk.sh              # runs/kk-0
#     SMOKE=1 bash scripts/redistill_kk.sh                        # every stage, at toy sizes
#
# BASE is a local model directory. Puzzles are generated: 3 to 7 people to train on, 4 to 8 to test,
# 200 of two and 800 of three for SFT. Official files can take their place, as lists of paths:
# TRAIN="people3_num1000.jsonl ..." TEST="...". LONG=FILE names other long chains (prompt, response)
# for the same puzzles, such as another model's; without it they are full truth tables.
set -euo pipefail
cd "$(dirname "$0")/.."
SEED=${SEED:-0} SMOKE=${SMOKE:-} TRAIN=${TRAIN:-} TEST=${TEST:-} LONG=${LONG:-}
OUT=${OUT:-runs/kk-$SEED${SMOKE:+-smoke}}
BASE=${BASE:-${SMOKE:+$OUT/random/model}}
[ -n "${BASE:-}" ] || { echo "BASE is not set: see the first lines of $0" >&2; exit 2; }
DATA=$OUT/data
SETS=(short long)
POLICY=short REPLAY=11 KEEP=1000 STEPS=125
BASE_TEST=$DATA/base_test.jsonl BASE_RL=$DATA/base_rl.jsonl
rl=2000 test=100 two=180 three=720      # puzzles of each number of people; and a ninth for --val

sft=()                                  # the defaults of sft.py and grpo.py are the paper's
declare -A more=([short]="--val $DATA/val.jsonl" [long]="--batch 64" [a]="--batch 64")
grpo=(--steps $STEPS)
regrpo=("${grpo[@]}" --lr 2.5e-6)
greedy=(--temperature 0 --max-new-tokens 4096)
sampled=() keep=() ASIDE=() TRACE="0 50"
effect=(--limit 200 --group 8 --temperature 0.7)
estimate=(--prompt-tokens 300 --answer-tokens 700)
if [ "$SMOKE" ]; then
    rl=4 test=2 two=9 three=18 STEPS=2 REPLAY=2 keep=(--wrong)  # the random model is never right
    grpo=(--steps 2 --prompts 2 --group 2 --max-prompt-tokens 700 --max-new-tokens 16)
    regrpo=("${grpo[@]}") greedy=(--temperature 0 --max-new-tokens 16) estimate=() effect=() TRACE=
fi

make_data() {
    local gen="python kk_gen.py" split="python scripts/problems.py --out $DATA --no-shuffle"
    if [ "$TRAIN" ]; then
        stage 5 "$DATA/rl.jsonl" "the official training puzzles" \
            $split --source $TRAIN --parts rl=0
    else
        stage 5 "$DATA/rl.jsonl" "puzzles to train on" \
            $gen --people 3-7 --num $rl --seed 0 --out "$DATA/rl.jsonl"
    fi
    if [ "$TEST" ]; then
        stage 5 "$DATA/test.jsonl" "the official test puzzles" \
            $split --source $TEST --parts test=0
    else
        stage 5 "$DATA/test.jsonl" "puzzles to test on" $gen --people 4-8 --num $test --seed 1 \
            --exclude "$DATA/rl.jsonl" --out "$DATA/test.jsonl"
    fi
    for name in rl test; do
        stage 2 "$DATA/base_$name.jsonl" "$name with prompts for a base model" \
            $split --source "$DATA/$name.jsonl" --template base --parts base_$name=0
    done
    # The last tenth of either size is for validation.
    stage 2 "$DATA/two.jsonl" "puzzles of 2 people for SFT" $gen --people 2 --num $((two * 10 / 9)) \
        --seed 2 --cot search --out "$DATA/two.jsonl"
    stage 2 "$DATA/three.jsonl" "puzzles of 3 people for SFT" $gen --people 3 \
        --num $((three * 10 / 9)) --seed 2 --cot search \
        --exclude "$DATA/rl.jsonl" "$DATA/test.jsonl" --out "$DATA/three.jsonl"
    stage 1 "$DATA/val.jsonl" "a tenth of these to validate, and the others" bash -c \
        "head -qn $two '$DATA/two.jsonl' > '$DATA/short.jsonl'
         head -qn $three '$DATA/three.jsonl' >> '$DATA/short.jsonl'
         cp '$DATA/short.jsonl' '$DATA/sft.jsonl'
         tail -qn +$((two + 1)) '$DATA/two.jsonl' > '$DATA/val.jsonl.partial'
         tail -qn +$((three + 1)) '$DATA/three.jsonl' >> '$DATA/val.jsonl.partial'
         mv '$DATA/val.jsonl.partial' '$DATA/val.jsonl'"
    if [ "$LONG" ]; then
        stage 1 "$DATA/long.jsonl" "the long chains given" cp "$LONG" "$DATA/long.jsonl"
    else
        stage 2 "$DATA/long.jsonl" "long chains: truth tables" $gen --people 2-3 \
            --source "$DATA/short.jsonl" --cot table --out "$DATA/long.jsonl"
    fi
    [ -z "$SMOKE" ] || random_model
}

foreign() {     # another's correct answers to the very problems of B (the paper's: DeepSeek-R1's)
    stage 2 "$OUT/data/foreign.jsonl" "another's answers to the problems of B: truth tables" \
        python kk_gen.py --people 3-7 --source "$OUT/data/b.jsonl" --template chat --cot table \
        --out "$OUT/data/foreign.jsonl"
    fine_tune foreign "$OUT/data/foreign.jsonl"
}

. scripts/redistill.sh
