#!/usr/bin/env bash
# Does it help to choose by sample effect? From a finished run of the lab: of the correct answers in
# the first and in the last steps of GRPO (at most 4 to a problem), the quarter with the highest effect,
# a random one and the lowest; the base is fine-tuned on each and tested on puzzles of 3 people.
#
#     bash scripts/selection.sh runs/tiny-0      # runs/tiny-0/selection/report.txt
#
# The same command goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 1 ] || { echo "selection.sh takes one argument, a run of redistill_tiny.sh" >&2; exit 2; }
run=$1 base=${BASE:-assets/tiny_base} out=$1/selection
WHEN=${WHEN:-first last}
BY=${BY:-effect per_token cosine}
PROBLEMS=${PROBLEMS:-300}           # to test on; a third of them for the effects
[ -e "$run/report.md" ] || { echo "$run: no finished run of redistill_tiny.sh" >&2; exit 2; }
seed=$(sed -n 's/^SEED: //p' "$run/settings.txt")
steps=($(ls "$run"/rl_base/rollouts/step-*.jsonl))
mkdir -p "$out"

made() { [ -e "$1" ] || { echo; echo "$1"; "${@:2}"; }; }

for when in $WHEN; do
    files=("${steps[@]:0:11}")
    [ $when = first ] || files=("${steps[@]:$((${#steps[@]} > 11 ? ${#steps[@]} - 11 : 0))}")
    made "$out/$when.jsonl" python scripts/keep_correct.py --data "${files[@]}" --per-problem 4 \
        --seed "$seed" --out "$out/$when.jsonl"
    for by in $BY; do
        for end in highest lowest; do
            made "$out/${when}_${by}_$end.jsonl" python effect.py --model "$base" --seed "$seed" \
                --test "$run/data/test.jsonl" --data "$out/$when.jsonl" --limit $((PROBLEMS / 3)) \
                --max-new-tokens 300 --max-length 512 --no-halves --norms 0 --quantile 0.25 \
                --by $by $([ $by != cosine ] || echo --exact) \
                $([ $end = highest ] || echo --lowest) --select "$out/${when}_${by}_$end.jsonl"
        done
    done
    # As many: the last chosen quarter says how many that is.
    made "$out/${when}_random.jsonl" python scripts/keep_correct.py --data "$out/$when.jsonl" \
        --per-problem 0 --num $(wc -l < "$out/${when}_${by}_lowest.jsonl") --seed "$seed" \
        --out "$out/${when}_random.jsonl"
    for data in "$out/${when}"_*_*.jsonl "$out/${when}_random.jsonl"; do
        name=$(basename "$data" .jsonl)
        made "$out/sft_$name/model" python sft.py --model "$base" --data "$data" --seed "$seed" \
            --out "$out/sft_$name" --lr 5e-4 --batch 16 --epochs 4 --max-length 512 \
            $([ ! -e "$out/sft_$name/metrics.jsonl" ] || echo --resume)
        made "$out/eval_$name.jsonl" python sample.py --model "$out/sft_$name/model" --limit $PROBLEMS \
            --data "$run/data/test.jsonl" --out "$out/eval_$name.jsonl" --n 2 \
            --temperature 1 --max-new-tokens 300
    done
done
for when in $WHEN; do
    for file in "$out"/eval_${when}_*.jsonl; do
        printf '%-32s' "$(basename "$file" .jsonl | cut -c6-)"
        python verify.py "$file" | sed -n 2p
    done
done | tee "$out/report.txt"
