#!/usr/bin/env bash
# The lab's puzzles, the same on every machine: none is in another file, whatever its names and the
# order of its people, and none is among the documents the tiny base was pretrained on. TEST puzzles
# of 3 people to test on and half as many of 4, SFT of 3 for fine-tuning, 3,000 of 3 for GRPO. Asked
# for fewer than there are (300, 300 and 1,000), the files hold the first ones.
#
#     bash scripts/tiny_data.sh [DIR [TEST [SFT]]]      (default: data/tiny, all there are)
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-data/tiny} test=${2:-600} sft=${3:-1000}
gen() { python kk_gen.py --template compact "$@"; }

# rl.jsonl comes last: where it is, all are whole. It excludes what the others could hold at most.
gen --people 3-4 --num 300 --seed 1 --out "$dir/test.partial"
gen --people 3 --num 1000 --seed 2 --exclude "$dir/test.partial" --out "$dir/sft.partial"
grep -m "$test" '"level": 3' "$dir/test.partial" > "$dir/test.jsonl"
grep -m $(((test + 1) / 2)) '"level": 4' "$dir/test.partial" >> "$dir/test.jsonl"
head -n "$sft" "$dir/sft.partial" > "$dir/sft.jsonl"
gen --people 3 --num 3000 --seed 3 --exclude "$dir/test.partial" "$dir/sft.partial" \
    --out "$dir/rl.jsonl"
rm "$dir"/{test,sft}.partial
