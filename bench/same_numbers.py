"""Do two checkouts compute the same? For a change of layout, which must change no number.

    git worktree add ../before COMMIT
    python bench/same_numbers.py ../before .

Runs the same commands with the same seeds in both checkouts, one thread each: puzzles; sampling, at
temperature 1, greedy and truncated; 3 updates of SFT; 3 steps of GRPO with 2 passes over 2
minibatches and a KL term, and in its variants; 3 steps of PPO; sample effects by both methods.
Everything that was written is compared byte by byte, but for times, paths and settings. Takes a few
minutes. Exit code 1 if anything differs.
"""
import glob
import json
import os
import subprocess
import sys
import tempfile

RL = ("--steps 3 --prompts 8 --group 4 --temperature 1 --max-prompt-tokens 200 --max-new-tokens 200"
      " --lr 3e-4 --warmup 1 --kl-every 2")
GRPO = "grpo.py --model {base} --data {out}/rl.jsonl --out {out}/"
SFT = ("sft.py --data {out}/table.jsonl --batch 16 --epochs 1 --lr 5e-4 --max-length 512"
       " --out {out}/")
EFFECT = ("effect.py --model {base} --test {out}/test.jsonl --limit 12 --group 4 --max-length 512"
          " --max-new-tokens 200 --data {out}/table.jsonl {out}/search.jsonl --cosines 4"
          " --out {out}/")
SAMPLE = "sample.py --model {base} --data {out}/test.jsonl --max-new-tokens 300 --out {out}/"
COMMANDS = [
    "kk_gen.py --people 3 --num 48 --seed 5 --template compact --out {out}/rl.jsonl",
    "kk_gen.py --people 3-4 --num 20 --seed 6 --template compact --out {out}/test.jsonl",
    "kk_gen.py --people 3 --source {out}/rl.jsonl --template compact --cot table"
    " --out {out}/table.jsonl",
    "kk_gen.py --people 3 --source {out}/rl.jsonl --template compact --cot search"
    " --out {out}/search.jsonl",
    "kk_gen.py --people 2-6 --num 50 --seed 7 --cot worked --out {out}/worked.jsonl",
    SAMPLE + "warm.jsonl --n 4 --temperature 1",
    SAMPLE + "greedy.jsonl --temperature 0 --limit 30",
    SAMPLE + "truncated.jsonl --n 2 --temperature 0.8 --top-p 0.9 --top-k 40 --seed 3",
    SFT + "sft --model {base} --eval {out}/test.jsonl --eval-max-new-tokens 200",
    SFT + "sft_token --model {base} --norm token --no-pack --micro-tokens 2000 --schedule linear",
    SFT + "sft_new --init assets/tiny.json --loss-on all --val {out}/search.jsonl --warmup 1",
    GRPO + f"grpo {RL} --passes 2 --minibatches 2 --kl 0.01 --eval {{out}}/test.jsonl"
    " --eval-max-new-tokens 200",
    GRPO + f"grpo_sequence {RL} --norm sequence --no-std-norm --no-pack --micro-tokens 3000",
    GRPO + f"grpo_constant {RL} --norm constant --checkpointing yes --seed 4",
    "ppo.py" + GRPO.removeprefix("grpo.py") + f"ppo {RL} --critic-lr 1e-3 --minibatches 2",
    EFFECT + "difference --method difference --select {out}/best.jsonl --share 0.2",
    EFFECT + "jvp --method jvp --no-halves",
]
# What flags were called before: an old checkout is given these names.
FORMER = {"--passes": "--updates", "--cosines": "--norms", "--share": "--quantile"}
MAY_DIFFER = {"seconds", "tokens_per_second", "settings", "command"}


def without_times(row):
    """A JSON object without what differs from run to run."""
    return {key: value for key, value in row.items() if key not in MAY_DIFFER}


def content(path: str) -> dict | bytes:
    """What a file says: JSON without times and settings, anything else as it is."""
    with open(path, "rb") as file:
        raw = file.read()
    if path.endswith(("metrics.jsonl", "summary.json", "state.json")):
        lines = raw.splitlines() if path.endswith("l") else [raw]
        return {i: without_times(json.loads(line)) for i, line in enumerate(lines)}
    return raw


def words_of(command: str, tree: str, out: str) -> list[str]:
    """The words of a command, with each flag under the name that it has in this checkout."""
    words = command.format(base=os.path.join(tree, "assets", "tiny_base"), out=out).split()
    with open(os.path.join(tree, words[0])) as file:
        settings = file.read()
    return [FORMER[word] if word in FORMER and f"\n    {word[2:]}: " not in settings else word
            for word in words]


def run(tree: str, out: str) -> dict:
    """Run all commands in a checkout; what they wrote, by the name of the file."""
    for command in COMMANDS:
        words = words_of(command, tree, out)
        print(f"{tree}: {words[0]} ... {words[-1]}", file=sys.stderr)
        subprocess.run([sys.executable, *words], cwd=tree, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    files = glob.glob(out + "/**/*", recursive=True)
    return {os.path.relpath(path, out): content(path) for path in files if os.path.isfile(path)
            and not path.endswith(("settings.json", "config.json"))}


def main():
    trees = [os.path.abspath(tree) for tree in sys.argv[1:]]
    if len(trees) != 2 or not all(os.path.exists(tree + "/grpo.py") for tree in trees):
        sys.exit("same_numbers.py takes two checkouts of this project")
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        before, after = run(trees[0], first), run(trees[1], second)
    differ = [name for name in sorted(before.keys() | after.keys())
              if before.get(name) != after.get(name)]
    for name in differ:
        state = "differs" if name in before and name in after else "is in one of them only"
        print(f"{name}: {state}")
        if isinstance(before.get(name), dict) and isinstance(after.get(name), dict):
            for i in before[name]:
                old, new = before[name][i], after[name].get(i, {})
                print("  ", i, {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys()
                               if old.get(key) != new.get(key)})
    print(f"{len(before) - len(differ)} of {len(before)} files are the same")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
