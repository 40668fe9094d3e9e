#!/usr/bin/env bash
# Pretrains tiny models of several widths on one mixture of answer styles: Knights & Knaves puzzles of
# 3 and 4 people, every answer right, each style in exactly its share of the documents (of every
# hundred of them). Whatever the shares are, the corpus holds TOKENS tokens.
#
#     bash scripts/pretrain_mixture.sh                  # runs/mixture-0/w32/model, w64, w96
#     SHARES="guess=30 worked=70" WIDTHS=96 OUT=runs/two bash scripts/pretrain_mixture.sh
#
# Styles: see kk_gen.py, --cot. No puzzle of scripts/tiny_data.sh is among the documents. The same
# command goes on where it stopped; --dry-run says what it would do.
set -euo pipefail
cd "$(dirname "$0")/.."
SEED=${SEED:-0}
SHARES=${SHARES:-guess=60 table=10 worked=30}
PEOPLE=${PEOPLE:-3=85 4=15}
WIDTHS=${WIDTHS:-32 64 96}
TOKENS=${TOKENS:-16000000}
DATA=${DATA:-data/tiny}             # holds test, sft and rl.jsonl, or will
OUT=${OUT:-runs/mixture-$SEED}
REPORT=$OUT
settings=(SEED SHARES PEOPLE TOKENS DATA)
. scripts/stages.sh

# Not the defaults of Qwen2.5: weights of 0.02 are small and angles of 1e6 slow for models and texts of
# this size. With both changed half the tokens do as much (loss after 0.6 for that after 1.25 million).
config() {
    printf '{"vocab_size": 320, "hidden_size": %d, "intermediate_size": %d, "num_hidden_layers": 4,
"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true,
"max_position_embeddings": 512, "initializer_range": 0.06, "rope_theta": 500.0}\n' $1 $((3 * $1))
}

experiment() {
    local width
    stage 5 "$DATA/rl.jsonl" "the puzzles to leave out" bash scripts/tiny_data.sh "$DATA"
    stage $((TOKENS / 200000)) "$OUT/world.jsonl" "the mixture: $SHARES" \
        python scripts/tiny_world.py --tokens "$TOKENS" --shares $SHARES --people $PEOPLE \
        --right 100 --seed "$SEED" --exclude "$DATA"/{test,sft,rl}.jsonl --out "$OUT/world.jsonl"
    for width in $WIDTHS; do
        [ $mode != run ] || config $width > "$OUT/w$width.json"
        stage $((TOKENS * width / 800000)) "$OUT/w$width/model" "pretrain it" \
            python sft.py --init "$OUT/w$width.json" --tokenizer assets/tiny_base \
            --data "$OUT/world.jsonl" --out "$OUT/w$width" --epochs 1 --norm token --batch 16 \
            --max-length 512 --lr 3e-3 --warmup 100 --beta2 0.95 --save-every 500 --seed "$SEED"
    done
}

conduct "$@"
