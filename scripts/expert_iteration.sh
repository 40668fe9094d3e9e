#!/usr/bin/env bash
# Expert Iteration: sample, keep the correct, fine-tune on them, again. From the last model (FROM=last,
# the default) or each time from the base (FROM=base): then the last round is re-distillation of a
# policy that never saw a policy gradient.
#
#     BASE=assets/tiny_base DATA=data/tiny/rl.jsonl bash scripts/expert_iteration.sh
#     ROUNDS=5 FROM=base TEST=data/tiny/test.jsonl ...
#
# Each round has problems of its own, as many as DATA holds for one. The same command goes on where it
# stopped. OUT/round-N/sft/model is the model after N rounds.
set -euo pipefail
cd "$(dirname "$0")/.."
for name in BASE DATA; do
    [ -n "${!name:-}" ] || { echo "$name is not set: see the first lines of $0" >&2; exit 2; }
done
SEED=${SEED:-0} OUT=${OUT:-runs/expert-$SEED} FROM=${FROM:-last} TEST=${TEST:-}
ROUNDS=${ROUNDS:-4}             # of sampling and fine-tuning
PROBLEMS=${PROBLEMS:-64}        # in a round
SAMPLES=${SAMPLES:-8}           # of each (Echo Chamber: 64)
PER_PROBLEM=${PER_PROBLEM:-4}   # correct ones kept of each, all different
TOKENS=${TOKENS:-300}           # longest answer
# A mean over tokens: in a mean over sequences the first token of a short answer, which says what kind
# of answer it will be, counts more than that of a long one, and short wrong habits never go.
read -ra sft <<< "${SFT:---lr 5e-4 --batch 16 --epochs 2 --norm token --max-length 512}"
case $FROM in last | base) ;; *) echo "FROM=$FROM: last or base" >&2; exit 2 ;; esac

run() {         # run MADE COMMAND...
    [ -e "$1" ] || { printf '\n%s\n' "$1"; "${@:2}"; }
}

run "$OUT/problems.jsonl" python scripts/problems.py --source "$DATA" --seed "$SEED" \
    --parts problems=$((ROUNDS * PROBLEMS)) --out "$OUT"
model=$BASE
for round in $(seq "$ROUNDS"); do
    dir=$OUT/round-$round
    mkdir -p "$dir"
    sed -n "$(((round - 1) * PROBLEMS + 1)),$((round * PROBLEMS))p" "$OUT/problems.jsonl" \
        > "$dir/problems.jsonl"
    run "$dir/rollouts.jsonl" python sample.py --model "$model" --data "$dir/problems.jsonl" \
        --n "$SAMPLES" --temperature 1 --max-new-tokens "$TOKENS" --seed $((SEED * 1000 + round)) \
        --out "$dir/rollouts.jsonl"
    start=$model
    [ $FROM = last ] || start=$BASE
    if grep -q '"reward": 1' "$dir/rollouts.jsonl"; then
        run "$dir/correct.jsonl" python scripts/keep_correct.py --data "$dir/rollouts.jsonl" \
            --per-problem "$PER_PROBLEM" --seed "$SEED" --out "$dir/correct.jsonl"
        run "$dir/sft/model" python sft.py --model "$start" --data "$dir/correct.jsonl" \
            --out "$dir/sft" --seed "$SEED" "${sft[@]}" \
            $([ ! -e "$dir/sft/metrics.jsonl" ] || echo --resume)
    elif [ ! -e "$dir/sft/model" ]; then
        echo "round $round: no answer is right; the model stays as it is" >&2
        mkdir -p "$dir/sft"
        rm -rf "$dir/sft/model.partial"
        cp -rL "$model" "$dir/sft/model.partial"
        mv "$dir/sft/model.partial" "$dir/sft/model"
    fi
    model=$dir/sft/model
    [ -z "$TEST" ] || run "$dir/test.jsonl" python sample.py --model "$model" --data "$TEST" \
        --temperature 1 --max-new-tokens "$TOKENS" --seed "$SEED" --out "$dir/test.jsonl"
done
echo "the model: $model"
