"""A step of GRPO beside TRL's GRPOTrainer, on a CPU: the same model, problems, reward and AdamW.

    pip install trl && python bench/grpo_trl.py [--rounds 3] [--steps 6] [--micro-tokens 2048]

The tiny base of this project, 16 puzzles x 8 answers of at most 300 tokens a step, at temperature 1,
one thread. The rate is so small that both keep sampling the same kind of answers. The sides alternate,
each in a process of its own; the first step of each is a warm-up. CPU seconds of a step, tokens, peak
memory of the process. Ends in one JSON line.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
BASE = os.path.join(ROOT, "assets", "tiny_base")


def ours(data: str, steps: int, micro_tokens: int) -> list[tuple]:
    """(CPU seconds when a step ends, its sampled tokens) of every step."""
    from engine.flags import parse
    import grpo
    import torch
    from engine.processes import Ranks
    from engine.run import Run
    torch.set_num_threads(1)
    ends, end_step = [], Run.end_step

    def noted(run, row, *more):
        end_step(run, row, *more)
        ends.append((time.process_time(), row["length"] * 128))
    Run.end_step = noted
    with tempfile.TemporaryDirectory() as out:
        flags = (f"--model {BASE} --data {data} --out {out} --steps {steps} --prompts 16 --group 8"
                 f" --temperature 1 --lr 1e-6 --warmup 0 --norm token --max-prompt-tokens 200"
                 f" --max-new-tokens 300 --kl-every 0 --micro-tokens {micro_tokens}"
                 f" --save-every {steps}")
        settings = parse(grpo.Settings, "", argv=flags.split())
        grpo.train(settings, Ranks("cpu"), torch.float32)
    return ends


def theirs(data: str, steps: int, _) -> list[tuple]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    import torch
    from engine.problems import read_problems
    from verify import reward
    torch.set_num_threads(1)
    problems = {problem["prompt"]: problem for problem in read_problems(data)}
    ends, lengths = [], []

    def right(prompts, completions, completion_ids, **_):
        lengths.append(sum(map(len, completion_ids)))
        return [reward(problems[prompt], text, True) for prompt, text in zip(prompts, completions)]

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append((time.process_time(), lengths[-1]))

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out, per_device_train_batch_size=128, num_generations=8, max_steps=steps,
            max_completion_length=300, temperature=1.0, beta=0.0, loss_type="dapo",
            learning_rate=1e-6, lr_scheduler_type="constant", adam_beta1=0.5, weight_decay=0.01,
            max_grad_norm=1.0, optim="adamw_torch", bf16=False, use_cpu=True, report_to=[],
            gradient_checkpointing=False, save_strategy="no", logging_steps=10**6,
            disable_tqdm=True, seed=0)
        trainer = GRPOTrainer(model=model, reward_funcs=right, args=config, callbacks=[Clock()],
                              train_dataset=Dataset.from_list([{"prompt": p} for p in problems]),
                              processing_class=tokenizer)
        trainer.train()
    return ends


def one_side(side: str, data: str, steps: int, micro_tokens: int) -> dict:
    """In a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--side", side, "--data", data, "--steps",
                           str(steps), "--micro-tokens", str(micro_tokens)],
                          env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                          capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--micro-tokens", type=int, default=0)
    parser.add_argument("--side", help="used by this program itself")
    parser.add_argument("--data", help="used by this program itself")
    args = parser.parse_args()
    if args.side:
        ends = {"ours": ours, "theirs": theirs}[args.side](args.data, args.steps, args.micro_tokens)
        seconds = [after - before for (before, _), (after, _) in zip(ends, ends[1:])]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        return print(json.dumps({"seconds": sum(seconds) / len(seconds), "memory": memory,
                                 "tokens": sum(n for _, n in ends[1:]) / len(seconds)}))
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "puzzles.jsonl")
        subprocess.run([sys.executable, os.path.join(ROOT, "kk_gen.py"), "--people", "3", "--num",
                        "500", "--seed", "3", "--template", "compact", "--out", data], check=True,
                       stdout=subprocess.DEVNULL)
        rounds = []
        for number in range(args.rounds):
            pair = {side: one_side(side, data, args.steps, args.micro_tokens)
                    for side in ("ours", "theirs")}
            rounds.append(pair)
            for side, row in pair.items():
                print(f"round {number}, {side:6}: {row['seconds']:.2f} CPU seconds a step,"
                      f" {row['tokens']:,.0f} tokens, {row['memory']:.2f} GB", flush=True)
    ratios = [pair["theirs"]["seconds"] / pair["theirs"]["tokens"] * pair["ours"]["tokens"]
              / pair["ours"]["seconds"] for pair in rounds]
    print(f"theirs / ours, CPU seconds for each sampled token: {median(ratios):.2f}"
          f" ({min(ratios):.2f} to {max(ratios):.2f})")
    print(json.dumps(rounds))


if __name__ == "__main__":
    main()
