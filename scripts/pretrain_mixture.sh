#!/usr/bin/env bash
# Pretrains tiny models of several widths on a mixture of answer styles: Knights & Knaves puzzles of 3
# and 4 people, every answer right. First LESSONS tokens of the styles that reason, in the proportions
# they have in the mixture; then TOKENS tokens of the mixture, each style in exactly its share of the
# documents (of every hundred of them). What has no share in the mixture is never seen. Whatever the
# shares are, both parts are as long.
#
#     bash scripts/pretrain_mixture.sh          # runs/mixture-0/w48/mixture/model, w96, w128
#     SHARES="guess=30 worked=70" WIDTHS=96 OUT=runs/two bash scripts/pretrain_mixture.sh
#
# Styles: see kk_gen.py, --cot. No puzzle of scripts/tiny_data.sh is among the documents. The same
# command goes on where it stopped; --dry-run says what it would do.
set -euo pipefail
cd "$(dirname "$0")/.."
SEED=${SEED:-0}
SHARES=${SHARES:-guess=60 table=10 worked=30}
PEOPLE=${PEOPLE:-3=85 4=15}
WIDTHS=${WIDTHS:-48 96 128}
LESSONS=${LESSONS:-9000000}
TOKENS=${TOKENS:-3000000}
DATA=${DATA:-data/tiny}             # holds test, sft and rl.jsonl, or will
OUT=${OUT:-runs/mixture-$SEED}
REPORT=$OUT
settings=(SEED SHARES PEOPLE LESSONS TOKENS DATA)
. scripts/stages.sh

# Not the defaults of Qwen2.5: weights of 0.02 are small and angles of 1e6 slow for models and texts of
# this size. With both changed half the tokens do as much (loss after 0.6 for that after 1.25 million).
config() {
    printf '{"vocab_size": 320, "hidden_size": %d, "intermediate_size": %d, "num_hidden_layers": 4,
"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
"max_position_embeddings": 512, "initializer_range": 0.06, "rope_theta": 500.0}\n' $1 $((3 * $1))
}

world() {           # world NAME TOKENS SEED SHARES...
    stage $(($2 / 200000)) "$OUT/$1.jsonl" "$1: ${*:4}" python scripts/tiny_world.py --tokens $2 \
        --seed $3 --shares "${@:4}" --people $PEOPLE --right 100 \
        --exclude "$DATA"/{test,sft,rl}.jsonl --out "$OUT/$1.jsonl"
}

pretrain() {        # pretrain WIDTH NAME TOKENS FLAGS...
    stage $(($3 * $1 / 800000)) "$OUT/w$1/$2/model" "width $1: $2" python sft.py \
        --data "$OUT/$2.jsonl" --out "$OUT/w$1/$2" --epochs 1 --norm token --max-length 512 \
        --warmup 100 --beta2 0.95 --save-every 500 --seed "$SEED" "${@:4}"
}

experiment() {
    local width
    stage 5 "$DATA/rl.jsonl" "the puzzles to leave out" bash scripts/tiny_data.sh "$DATA"
    world lessons $LESSONS $((2 * SEED)) $(printf '%s\n' $SHARES | grep -v ^guess=)
    world mixture $TOKENS $((2 * SEED + 1)) $SHARES
    for width in $WIDTHS; do
        [ $mode != run ] || config $width > "$OUT/w$width.json"
        pretrain $width lessons $LESSONS --init "$OUT/w$width.json" --tokenizer assets/tiny_base \
            --batch 16 --lr 3e-3
        pretrain $width mixture $TOKENS --model "$OUT/w$width/lessons/model" --batch 64 --lr 1e-3
    done
}

conduct "$@"
