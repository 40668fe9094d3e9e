#!/usr/bin/env bash
# The paper's MATH experiment, with its settings (arXiv 2505.17988), on one GPU.
#
#     export BASE=Qwen2.5-1.5B TRAIN=MATH/train.jsonl TEST=MATH/test.jsonl
#     bash scripts/redistill_math.sh --dry-run        # commands, memory, time
#     bash scripts/redistill_math.sh                  # runs/math-0
#     SMOKE=1 bash scripts/redistill_math.sh          # every stage, at toy sizes
#
# BASE is a local model directory; TRAIN and TEST are the 12,000 and 500 problems of PRM800K's split
# (GSM8K's files will do as well). SFT is on 900 of the training problems with their own solutions,
# GRPO on the rest. LONG=FILE names long chains for these (prompt, response), FOREIGN=FILE another
# model's correct answers to the problems of B; without them these stages are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
SEED=${SEED:-0} SMOKE=${SMOKE:-} LONG=${LONG:-} FOREIGN=${FOREIGN:-}
OUT=${OUT:-runs/math-$SEED${SMOKE:+-smoke}}
BASE=${BASE:-${SMOKE:+$OUT/random/model}}
TRAIN=${TRAIN:-${SMOKE:+$OUT/data/toy.jsonl}} TEST=${TEST:-${SMOKE:+$OUT/data/toy.jsonl}}
for name in BASE TRAIN TEST; do
    [ -n "${!name:-}" ] || { echo "$name is not set: see the first lines of $0" >&2; exit 2; }
done
DATA=$OUT/data
SETS=(short ${LONG:+long})
POLICY=short REPLAY=11 KEEP=500 STEPS=50
BASE_TEST=$DATA/base_test.jsonl BASE_RL=$DATA/base_rl.jsonl
parts=(sft=900 val=100 rl=0)

sft=()                                  # the defaults of sft.py and grpo.py are the paper's
declare -A more=([short]="--val $DATA/val.jsonl" [long]="--batch 64")
grpo=(--steps $STEPS --lr 2.5e-6 --warmup 4)
regrpo=(--steps $STEPS --lr 2.5e-6 --warmup 8)
greedy=(--temperature 0 --max-new-tokens 4096)
sampled=() keep=() ASIDE=() TRACE="0 50"
effect=(--limit 200 --group 8 --temperature 0.7)
estimate=(--prompt-tokens 200 --answer-tokens 600)
if [ "$SMOKE" ]; then
    parts=(sft=12 val=2 rl=0) STEPS=2 REPLAY=2 keep=(--wrong)   # the random model is never right
    grpo=(--steps 2 --prompts 2 --group 2 --max-prompt-tokens 700 --max-new-tokens 16)
    regrpo=("${grpo[@]}") greedy=(--temperature 0 --max-new-tokens 16) estimate=() effect=() TRACE=0
fi

make_data() {
    [ -z "$SMOKE" ] || stage 1 "$DATA/toy.jsonl" "twenty sums" python -c '
import sys, cli
cli.write_jsonl(sys.argv[1], [{"problem": f"What is {i} + {i}?", "level": "Level 1",
                               "solution": f"Twice {i} is $\\boxed{{{2 * i}}}$."} for i in range(20)])
' "$DATA/toy.jsonl"
    stage 5 "$DATA/rl.jsonl" "problems for SFT, to validate, for GRPO" python scripts/problems.py \
        --source $TRAIN --parts "${parts[@]}" --out "$DATA"
    stage 5 "$DATA/test.jsonl" "problems to test on" python scripts/problems.py \
        --source $TEST --parts test=0 --no-shuffle --out "$DATA"
    stage 5 "$DATA/base_rl.jsonl" "GRPO's problems, prompts for a base model" \
        python scripts/problems.py --source "$DATA/rl.jsonl" --template base --parts base_rl=0 \
        --no-shuffle --out "$DATA"
    stage 5 "$DATA/base_test.jsonl" "the test, prompts for a base model" \
        python scripts/problems.py --source $TEST --template base --parts base_test=0 \
        --no-shuffle --out "$DATA"
    stage 1 "$DATA/short.jsonl" "short chains: their own solutions" \
        cp "$DATA/sft.jsonl" "$DATA/short.jsonl"
    [ -z "$SMOKE" ] || random_model
    [ -z "$LONG" ] || stage 1 "$DATA/long.jsonl" "the long chains given" cp "$LONG" "$DATA/long.jsonl"
}

foreign() {
    [ -z "$FOREIGN" ] || fine_tune foreign "$FOREIGN"
}

. scripts/redistill.sh
