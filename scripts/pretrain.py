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
from shlex import join, quote

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
    seed: int = limits(0, at_least=0)
    data: str = "data/tiny"     # holds the lab's puzzles, or will: they are not among the documents


def add_puzzles(plan: Plan, threes: int = 300, fours: int = 300, examples: int = 1000) -> None:
    """The lab's puzzles: so many of 3 and of 4 people to test on, so many for SFT, 3,000 for GRPO.

    They are the same on every machine, and none is in two files, whatever its names and its order.
    """
    data = plan.data
    tested, taught = f"{data}/all/test.jsonl", f"{data}/all/sft.jsonl"
    plan.add(1, "puzzles to test on", f"""
        python kk_gen.py --template compact --people 3-4 --num 300 --seed 1 --out {tested}""")
    plan.add(1, "puzzles for SFT", f"""
        python kk_gen.py --template compact --people 3 --num 1000 --seed 2 --exclude {tested}
            --out {taught}""")
    plan.add(1, "the first of these to test on", f"""
        python scripts/problems.py --no-shuffle --source {tested}
            --parts test=3:{threes},4:{fours} --out {data}""", made=f"{data}/test.jsonl")
    plan.add(1, "the first of these for SFT", f"""
        python scripts/problems.py --no-shuffle --source {taught} --parts sft={examples}
            --out {data}""", made=f"{data}/sft.jsonl")
    plan.add(1, "puzzles for GRPO", f"""
        python kk_gen.py --template compact --people 3 --num 3000 --seed 3
            --exclude {tested} {taught} --out {data}/rl.jsonl""")


def add_world(plan) -> None:
    """Documents as the tiny base's last ones were: a measure of what a model made of it forgets."""
    plan.add(2, "documents of the base's own world", f"""
        python scripts/tiny_world.py --num 400 --shares guess=73 worked=20 table=4 search=3
            --right 0 --people 3=85 4=15 --seed 900 --exclude {plan.data}/rl.jsonl
            --out {plan.data}/world.jsonl""")


def add_phases(plan: Plan) -> None:
    """The documents of both phases, then every model in both phases."""
    settings, out, data = plan.settings, plan.out, plan.data
    reasoning = [share for share in settings.shares if not share.startswith("guess=")]
    phases = [("lessons", f"--tokens {settings.lessons}", reasoning, "--batch 16 --lr 3e-3"),
              ("mixture", f"--tokens {settings.tokens}", settings.shares, "--batch 64 --lr 1e-3")]
    right, starts = 100, {f"{out}/w{width}": f"--init {out}/w{width}.json"
                          " --tokenizer assets/tiny_base" for width in settings.widths}
    if settings.what == "base":
        test = (f"--eval {data}/test.jsonl --eval-n 2 --eval-temperature 1"
                " --eval-max-new-tokens 300 --eval-every")
        phases = [("careful", "--num 84000", "worked=74 table=15 search=11".split(),
                   f"--batch 16 --lr 3e-3 {test} 1000"),
                  ("careless", "--num 48000", "guess=73 worked=20 table=4 search=3".split(),
                   f"--batch 80 --lr 1e-3 {test} 200")]
        right, starts = 0, {out: "--init assets/tiny.json"}
    for world, (name, size, shares, _) in enumerate(phases, 2 * settings.seed):
        plan.add(60, f"documents: {name}", f"""
            python scripts/tiny_world.py {size} --right {right} --seed {world}
                --shares {join(shares)} --people 3=85 4=15
                --exclude {data}/test.jsonl {data}/sft.jsonl {data}/rl.jsonl
                --out {out}/{name}.jsonl""")
    for folder, start in starts.items():
        for name, _, _, flags in phases:
            plan.add(600, f"{folder}: {name}", f"""
                python sft.py --data {out}/{name}.jsonl --out {folder}/{name}
                    --seed {settings.seed} --epochs 1 --norm token --max-length 512 --warmup 100
                    --beta2 0.95 --save-every 500 {start} {flags}""")
            start = f"--model {folder}/{name}/model"


def main(settings: Settings) -> None:
    settings.out = settings.out or {"base": "runs/tiny_base"}.get(
        settings.what, f"runs/mixture-{settings.seed}")
    plan = Plan(settings)
    plan.data = quote(settings.data)
    add_puzzles(plan)
    add_phases(plan)
    plan.written = [f"{settings.out}/w{width}.json" for width in settings.widths]
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
