#!/usr/bin/env bash
# Echo Chamber (2504.07912) at tiny scale: models pretrained on mixtures of answer styles, then PPO,
# GRPO and Expert Iteration. Which style wins, how soon, and what is it worth?
#
#     QUICK=1 bash scripts/echo_chamber.sh          # from assets/tiny_base: 6 minutes on 2 cores
#     bash scripts/echo_chamber.sh                  # all of it: hours on a CPU
#     bash scripts/echo_chamber.sh --dry-run        # only says what it would do
#     STUDIES="algorithms sizes" SEEDS="1 2" ...    # a part of it
#     BASE=Qwen2.5-0.5B TRAIN=gsm8k/train.jsonl TEST="gsm8k/test.jsonl MATH/test.jsonl" ...
#
# Trained on puzzles of 3 people, tested on others of 3 (easy) and of 4 (hard). Endpoints, stated before
# the runs that count (seeds 1 to 3; settings were chosen on seed 0):
#   winner      the style most answers to the easy test have after the last step
#   collapse    how many answers are drawn before the winner has 80 % of them
#   gain        accuracy (pass@1) after the last step less the base's, on the easy and on the hard test
#   diversity   pass@64 and majority@64, likewise
# The same command goes on where it stopped. With BASE, any model directory, nothing is pretrained. With
# TRAIN and TEST, any K&K, MATH or GSM8K files, the settings are the study's; easy is then what is of
# TRAIN's task and levels.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${QUICK:-}" ]; then
    BASE=${BASE:-assets/tiny_base} SEEDS=${SEEDS:-0} OUT=${OUT:-runs/echo-quick}
    KLS=${KLS:-0 1e-2} STEPS=${STEPS:-16} AT=${AT:-4 $STEPS} SAMPLES=${SAMPLES:-16}
fi
BASE=${BASE:-} TRAIN=${TRAIN:-} TEST=${TEST:-}
SEEDS=${SEEDS:-1 2 3}
OUT=${OUT:-runs/echo}
STUDIES=${STUDIES:-algorithms shares sizes}
ALGORITHMS=${ALGORITHMS:-grpo ppo expert}   # the last is Expert Iteration
WIDTH=${WIDTH:-96}                  # of the models in most runs
WIDTHS=${WIDTHS:-48 128}            # and of the others, in the study of sizes
OTHERS=${OTHERS:-none few most}     # mixtures in the study of shares, beside `some`
LESSONS=${LESSONS:-9000000}         # tokens of pretraining: see pretrain_mixture.sh
TOKENS=${TOKENS:-3000000}
STEPS=${STEPS:-32}
PROMPTS=${PROMPTS:-$([ "$TRAIN" ] && echo 64 || echo 16)}   # in a step, 8 answers to each
AT=${AT:-$(for n in 2 8 32 128 512; do [ $n -ge $STEPS ] || echo $n; done) $STEPS}
                                    # steps after which a model is tested
KLS=${KLS:-0 1e-3 1e-2}
KL=${KL:-1e-3}                      # where it is not the question
PROBLEMS=${PROBLEMS:-32}            # easy ones to test on and half as many hard ones; of TEST: in all
SAMPLES=${SAMPLES:-64}              # of each, so pass@k and majority@k up to it
ROUNDS=${ROUNDS:-4}                 # of Expert Iteration, which draws as many answers in all
LONGEST=${LONGEST:-$([ "$TRAIN" ] && echo 1024 || echo 300)}     # answer to train on, in tokens
TESTED=${TESTED:-$([ "$TRAIN" ] && echo $LONGEST || echo 440)}   # and in a test: 4 people take more
PROMPT=${PROMPT:-$([ "$TRAIN" ] && echo 1024 || echo 200)}       # longest prompt to train on
TEMPLATE=${TEMPLATE-base}           # prompts of TRAIN and TEST; empty: as problems.py has it
DATA=$OUT/data
REPORT=$OUT/report.md
settings=(BASE TRAIN TEST TEMPLATE WIDTH LESSONS TOKENS STEPS PROMPTS AT PROBLEMS SAMPLES ROUNDS LONGEST
          TESTED rl ppo sft)
. scripts/stages.sh

wrong() { echo "$*" >&2; exit 2; }
for step in $AT; do [ $step -le $STEPS ] || wrong "AT=$AT: there are STEPS=$STEPS"; done
case " $AT " in *" $STEPS "*) ;; *) AT="$AT $STEPS" ;; esac
[ $SAMPLES -ge 2 ] || wrong "SAMPLES=$SAMPLES: at least 2, for pass@k and majority@k"
[ $((STEPS * PROMPTS % ROUNDS)) = 0 ] || wrong "ROUNDS=$ROUNDS: must share out $STEPS x $PROMPTS"
[ "$TRAIN" ] || [ -z "$TEST" ] || wrong "TEST=$TEST is for TRAIN"

declare -A shares=(         # of documents; every mixture is as long
    [some]="guess=60 table=10 worked=30"
    [none]="guess=90 table=10 worked=0"
    [few]="guess=80 table=10 worked=10"
    [most]="guess=30 table=10 worked=60")
MAIN=some
rl=(--steps $STEPS --prompts $PROMPTS --group 8 --max-prompt-tokens $PROMPT
    --max-new-tokens $LONGEST --kl-every 4 --rollouts 0)
if [ "$TRAIN" ]; then       # the study's, where they are known
    [ "$BASE" -a "$TEST" ] || wrong "TRAIN needs a BASE, and a TEST"
    for file in $TRAIN $TEST; do
        [ -e "$file" ] || wrong "$file: no such file"       # before OUT belongs to these settings
    done
    rl+=(--temperature 0.7 --lr 1e-6)
    ppo=(--lr 1e-6 --critic-lr 7e-6)
    sft="--lr 1e-6 --batch 32 --epochs 2 --norm token"
else
    rl+=(--temperature 1 --lr 3e-4 --warmup 4)
    ppo=(--lr 1e-4 --critic-lr 1e-3 --updates 1)
    sft="--lr 5e-4 --batch 16 --epochs 2 --norm token --max-length 512"
fi
if [ "$BASE" ]; then
    MAIN=base WIDTH=0 STUDIES=algorithms
    [ -e "$BASE/config.json" ] || wrong "BASE=$BASE: no such model directory"
fi

evaluate() {        # evaluate DIR N MODEL: what it writes after N steps, as DIR/eval/N.json
    local made=$1/eval/$2.json
    stage 30 "$made" "test ${1#"$OUT"/} after $2" \
        python sample.py --model "$3" --data "$DATA/test.jsonl" --n $SAMPLES --temperature 1 \
        --max-new-tokens $TESTED --out "${made}l"
    stage 5 "$made" "what it wrote" python verify.py "${made}l" --out "$made"
    [ $mode != run ] || rm -f "${made}l"*           # 10 MB
}

reinforce() {       # reinforce ALGORITHM KL MIXTURE WIDTH SEED
    local run=$OUT/$3-$4/$1-kl$2-$5 more=() cost=$((STEPS * PROMPTS / 6)) step
    [ $1 = grpo ] || more=("${ppo[@]}") cost=$((cost * 2))
    stage $cost "$run/model" "$1 from $3, width $4, KL $2, seed $5" python $1.py \
        --model "$(base $3 $4)" --data "$DATA/rl.jsonl" --out "$run" --seed $5 "${rl[@]}" \
        --kl $2 --keep-at $AT "${more[@]}"
    for step in $AT; do evaluate "$run" $step "$run/step-$(printf %06d $step)"; done
}

iterate() {         # iterate MIXTURE WIDTH SEED: Expert Iteration
    local run=$OUT/$1-$2/expert-kl0-$3 round step
    stage $((STEPS * PROMPTS / 6)) "$run/round-$ROUNDS/sft/model" \
        "Expert Iteration from $1, width $2, seed $3" env BASE="$(base $1 $2)" \
        DATA="$DATA/rl.jsonl" OUT="$run" SEED=$3 ROUNDS=$ROUNDS SAMPLES=8 PER_PROBLEM=8 FROM=last \
        PROBLEMS=$((STEPS * PROMPTS / ROUNDS)) TOKENS=$LONGEST SFT="$sft" TEST= \
        bash scripts/expert_iteration.sh
    for step in $AT; do             # after as many answers as those have drawn
        round=$((step * ROUNDS / STEPS))
        [ $round = 0 ] || evaluate "$run" $round "$run/round-$round/sft/model"
    done
}

base() { [ "$BASE" ] && echo "$BASE" || echo "$OUT/mixtures/$1/w$2/mixture/model"; }

begin() {           # begin MIXTURE WIDTH: the model as it is before
    [ "$BASE" ] || stage $(((LESSONS + TOKENS) * $2 / 800000)) "$(base $1 $2)" \
        "pretrain width $2 on ${shares[$1]}" env SHARES="${shares[$1]}" WIDTHS=$2 SEED=0 \
        LESSONS=$LESSONS TOKENS=$TOKENS OUT="$OUT/mixtures/$1" bash scripts/pretrain_mixture.sh
    evaluate "$OUT/$1-$2" 0 "$(base $1 $2)"
}

make_data() {
    if [ "$TRAIN" ]; then
        stage 1 "$DATA/test.jsonl" "problems to test on" python scripts/problems.py --source $TEST \
            --parts test=$PROBLEMS --template "$TEMPLATE" --out "$DATA"
        stage 1 "$DATA/rl.jsonl" "problems to train on" python scripts/problems.py --source $TRAIN \
            --parts rl=0 --template "$TEMPLATE" --out "$DATA"
    else
        stage 5 "$DATA/rl.jsonl" "the puzzles" bash scripts/tiny_data.sh "$DATA" $PROBLEMS
    fi
}

compare() {         # compare MIXTURE WIDTH KL SEED: the algorithms
    local name
    for name in $ALGORITHMS; do
        if [ $name = expert ]; then iterate $1 $2 $4; else reinforce $name $3 $1 $2 $4; fi
    done
}

studies() { case " $STUDIES " in *" $1 "*) ;; *) false ;; esac; }

experiment() {
    local seed kl name width
    make_data
    begin $MAIN $WIDTH
    ! studies shares || for name in $OTHERS; do begin $name $WIDTH; done
    ! studies sizes || for width in $WIDTHS; do begin $MAIN $width; done
    for seed in $SEEDS; do
        ! studies algorithms || for kl in $KLS; do compare $MAIN $WIDTH $kl $seed; done
        ! studies shares || for name in $MAIN $OTHERS; do compare $name $WIDTH $KL $seed; done
        ! studies sizes || for width in $WIDTH $WIDTHS; do compare $MAIN $width $KL $seed; done
    done
    [ $mode != run ] || rm -f "$REPORT"                     # of all that is there by now
    stage 10 "$REPORT" "the report" python scripts/echo_report.py --run "$OUT" --out "$OUT"
}

conduct "$@"
