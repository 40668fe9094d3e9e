"""Pretrains tiny models on Knights & Knaves, answered in stated shares of styles (kk_gen.py).

    python scripts/pretrain.py base         # runs/tiny_base/careless/model: 30 minutes on a core
    python scripts/pretrain.py mixture      # runs/mixture-0/w48/mixture/model, and w96, w128
    python scripts/pretrain.py mixture --shares guess=30 worked=70 --widths 96 --out runs/two

base is how assets/tiny_base was made: 84,000 documents that reason, then 48,000 as careless as the
world is, three in four a random answer. So it usually guesses, and is usually right when it works a
puzzle out. mixture: every answer is right. First --lessons tokens of the styles that reason, in the
proportions they have in the mixture, then --tokens tokens of the mixture.
"""
from dataclasses import dataclass, field

from conductor import Experiment, Plan
from engine.files import write_json
from engine.flags import command, limits, parse


@dataclass(kw_only=True)
class Settings(Experiment):
    what: str = limits("base", one_of=("base", "mixture"))      # to make; the rest is for mixtures
    shares: list[str] = field(default_factory="guess=60 table=10 worked=30".split)  # of the styles
    widths: list[int] = field(default_factory=lambda: [48, 96, 128])    # of the models
    lessons: int = limits(9_000_000, at_least=1)        # tokens of the styles that reason
    tokens: int = limits(3_000_000, at_least=1)         # tokens of the mixture
    seed: int = 0
    data: str = "data/tiny"     # holds the lab's puzzles, or will: they are not among the documents


def add_puzzles(plan: Plan, threes: int = 300, fours: int = 300, examples: int = 1000) -> None:
    """The lab's puzzles: so many of 3 and of 4 people to test on, so many for SFT, 3,000 for GRPO.

    They are the same on every machine, and none is in two files, whatever its names and its order.
    """
    draw, cut = "python kk_gen.py --template compact", "python scripts/problems.py --no-shuffle"
    plan.add("""1 puzzles to test on
        [draw] --people 3-4 --num 300 --seed 1 --out {data}/all/test.jsonl
        1 puzzles for SFT
        [draw] --people 3 --num 1000 --seed 2 --exclude {data}/all/test.jsonl
            --out {data}/all/sft.jsonl
        1 the first of these to test on -> {data}/test.jsonl
        [cut] --source {data}/all/test.jsonl --parts test=3:{threes},4:{fours} --out {data}
        1 the first of these for SFT -> {data}/sft.jsonl
        [cut] --source {data}/all/sft.jsonl --parts sft={examples} --out {data}
        1 puzzles for GRPO
        [draw] --people 3 --num 3000 --seed 3 --exclude {data}/all/test.jsonl {data}/all/sft.jsonl
            --out {data}/rl.jsonl""", vars())


def add_phases(plan: Plan) -> None:
    """The documents of both phases, then every model in both phases."""
    reasoning = [share for share in plan.shares if not share.startswith("guess=")]
    phases = [("lessons", "--tokens", plan.lessons, reasoning, "--batch 16 --lr 3e-3"),
              ("mixture", "--tokens", plan.tokens, plan.shares, "--batch 64 --lr 1e-3")]
    right, starts = 100, {f"{plan.out}/w{width}": f"--init {plan.out}/w{width}.json"
                          " --tokenizer assets/tiny_base" for width in plan.widths}
    if plan.what == "base":
        test = (f" --eval {plan.data}/test.jsonl --eval-n 2 --eval-temperature 1"
                " --eval-max-new-tokens 300 --eval-every ")
        phases = [("careful", "--num", 84_000, "worked=74 table=15 search=11",
                   f"--batch 16 --lr 3e-3 {test} 1000"),
                  ("careless", "--num", 48_000, "guess=73 worked=20 table=4 search=3",
                   f"--batch 80 --lr 1e-3 {test} 200")]
        right, starts = 0, {plan.out: "--init assets/tiny.json"}
    for world, (name, size, number, shares, _) in enumerate(phases, 2 * plan.seed):
        plan.add("""60 documents: {name}
            python scripts/tiny_world.py {size} {number} --right {right} --seed {world}
                --shares [shares] --people 3=85 4=15 --exclude {data}/test.jsonl {data}/sft.jsonl
                {data}/rl.jsonl --out {out}/{name}.jsonl""", vars())
    for folder, start in starts.items():
        for name, _, _, _, flags in phases:
            plan.add("""600 {folder}: {name}
                python sft.py --data {out}/{name}.jsonl --out {folder}/{name} --seed {seed}
                    --epochs 1 --norm token --max-length 512 --warmup 100 --beta2 0.95
                    --save-every 500 [start] [flags]""", vars())
            start = f"--model {folder}/{name}/model"


def main(settings: Settings) -> None:
    settings.out = settings.out or {"base": "runs/tiny_base"}.get(
        settings.what, f"runs/mixture-{settings.seed}")
    plan = Plan(settings)
    add_puzzles(plan)
    add_phases(plan)
    # Not Qwen2.5's weights of 0.02 and angles of 1e6: half the tokens will do (results/echo.md).
    for width in settings.widths if not settings.dry_run and settings.what == "mixture" else ():
        write_json(f"{settings.out}/w{width}.json", {
            "vocab_size": 320, "hidden_size": width, "intermediate_size": 3 * width,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "tie_word_embeddings": True, "max_position_embeddings": 512,
            "initializer_range": 0.06, "rope_theta": 500.0})
    plan.conduct(settings.out, free=("widths",))


if __name__ == "__main__":
    command(main, parse(Settings, __doc__, positional="what"))
