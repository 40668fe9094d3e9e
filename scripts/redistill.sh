# The experiment itself, for redistill_tiny.sh, redistill_kk.sh and redistill_math.sh, which set
#   BASE OUT SEED DATA   the model, the run, its seed; where test, rl and sft.jsonl are
#   SETS                 the SFT sets: $DATA/NAME.jsonl for each; GRPO starts from these too
#   ASIDE                more of them, to fine-tune on only
#   TRACE                at what percent of GRPO to take answers as B takes them at 100
#   BASE_TEST BASE_RL    test and rl with prompts for a model that has seen no SFT
#   POLICY               whose answers are re-distilled: GRPO from `base` or from one of SETS
#   STEPS REPLAY         steps of GRPO; how many of the last ones make the replay buffer of B
#   KEEP                 at most so many answers in B
#   sft grpo regrpo greedy sampled      flags; `sampled` may be empty: then greedy alone is measured
#   more                 further flags of sft.py for some sets, by their name
#   effect               flags of effect.py; empty: leaves it out
#   keep                 flags of keep_correct.py
#   estimate             flags of scripts/estimate.py, for --dry-run; empty: says nothing
#   make_data, foreign   functions: the files of DATA; other answers to B's problems, or nothing
# and then source this file.
. scripts/stages.sh
REPORT=$OUT/report.md
settings=(BASE SEED DATA SETS ASIDE TRACE POLICY STEPS REPLAY KEEP sft grpo regrpo greedy sampled effect)

evaluate() {    # evaluate NAME MODEL PROBLEMS [once]: as it samples and greedy, or only the former
    [ ${#sampled[@]} = 0 ] || stage 6 "$OUT/eval/$1.sampled.jsonl" "evaluate $1 as it samples" \
        python sample.py --model "$2" --data "$3" --out "$OUT/eval/$1.sampled.jsonl" "${sampled[@]}"
    [ ${#sampled[@]} != 0 -a "${4:-}" ] || \
        stage 4 "$OUT/eval/$1.greedy.jsonl" "evaluate $1, greedy" \
        python sample.py --model "$2" --data "$3" --out "$OUT/eval/$1.greedy.jsonl" "${greedy[@]}"
}

fine_tune() {   # fine_tune NAME EXAMPLES [once]: the base, always
    tuned+=("$2")
    stage 15 "$OUT/sft_$1/model" "fine-tune the base on $1" \
        python sft.py --model "$BASE" --data "$2" --out "$OUT/sft_$1" --seed "$SEED" "${sft[@]}" \
        ${more[$1]:-}
    evaluate "sft_$1" "$OUT/sft_$1/model" "$DATA/test.jsonl" ${3:-}
}

reinforce() {   # reinforce NAME MODEL PROBLEMS TEST FLAGS...
    stage 75 "$OUT/rl_$1/model" "GRPO from $1" \
        python grpo.py --model "$2" --data "$3" --out "$OUT/rl_$1" --seed "$SEED" "${@:5}"
    evaluate "rl_$1" "$OUT/rl_$1/model" "$4"
}

replay() {      # replay NAME PERCENT FLAGS...: answers of the REPLAY steps up to this part of GRPO
    local last=$((REPLAY + (STEPS - REPLAY) * $2 / 100))
    stage 2 "$OUT/data/$1.jsonl" "answers of GRPO up to step $last: $1" \
        python scripts/keep_correct.py --data \
        $(seq -f "$OUT/rl_$POLICY/rollouts/step-%06g.jsonl" $((last - REPLAY + 1)) $last) \
        --num "$KEEP" --seed "$SEED" --out "$OUT/data/$1.jsonl" "${@:3}"
}

random_model() {    # for SMOKE=1: what real weights would be, at toy size
    stage 5 "$BASE" "a small model with nearly random weights" python sft.py \
        --init assets/smoke.json --data "$DATA/short.jsonl" --out "$(dirname "$BASE")" --epochs 0.1
}

experiment() {
    local name percent tuned=()
    make_data
    evaluate base "$BASE" "$BASE_TEST"

    for name in "${SETS[@]}"; do fine_tune "$name" "$DATA/$name.jsonl"; done

    reinforce base "$BASE" "$BASE_RL" "$BASE_TEST" "${grpo[@]}"
    for name in "${SETS[@]}"; do
        reinforce "$name" "$OUT/sft_$name/model" "$DATA/rl.jsonl" "$DATA/test.jsonl" "${grpo[@]}"
    done

    # Re-distillation A: the policy's greedy answers to the problems of SFT, where correct.
    stage 4 "$OUT/data/answers.jsonl" "the policy answers the problems of SFT" \
        python sample.py --model "$OUT/rl_$POLICY/model" --data "$DATA/sft.jsonl" \
        --out "$OUT/data/answers.jsonl" "${greedy[@]}"
    stage 2 "$OUT/data/a.jsonl" "re-distillation A: the correct ones" \
        python scripts/keep_correct.py --data "$OUT/data/answers.jsonl" --out "$OUT/data/a.jsonl" \
        --num "$KEEP" "${keep[@]}"
    fine_tune a "$OUT/data/a.jsonl"
    # B: what was correct in the last steps of GRPO, one answer to each problem.
    replay b 100 "${keep[@]}"
    fine_tune b "$OUT/data/b.jsonl"
    foreign

    # To compare with: the same from earlier in the run, and what was wrong.
    for percent in $TRACE; do
        replay at_$percent $percent "${keep[@]}"
        fine_tune at_$percent "$OUT/data/at_$percent.jsonl" once
    done
    replay wrong 0 --wrong
    fine_tune wrong "$OUT/data/wrong.jsonl" once
    for name in "${ASIDE[@]}"; do fine_tune "$name" "$DATA/$name.jsonl" once; done

    # What the base would gain from each, seen from the base alone.
    [ ${#effect[@]} = 0 ] || stage 45 "$OUT/effect/summary.json" \
        "sample effect of every dataset, at the base" python effect.py --model "$BASE" \
        --test "$BASE_TEST" --data "${tuned[@]}" --out "$OUT/effect" --seed "$SEED" "${effect[@]}"

    reinforce b "$OUT/sft_b/model" "$DATA/rl.jsonl" "$DATA/test.jsonl" "${regrpo[@]}"
    stage 5 "$OUT/report.md" "the report" \
        python scripts/report.py --runs "$OUT" --out "$OUT" --policy "rl_$POLICY"
    [ $mode != dry-run ] || [ ${#estimate[@]} = 0 ] || python scripts/estimate.py --model "$BASE" \
        --data - --out - "${grpo[@]}" "${estimate[@]}"
}

if [ ! -e "$BASE/config.json" ] && [ -z "${SMOKE:-}" ]; then     # before OUT is bound to it
    echo "BASE=$BASE: no such model directory" >&2
    exit 2
fi
conduct "$@"
