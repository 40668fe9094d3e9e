"""One GPU beside its own limits: every row is a share of what the same process measures it can do.

    python bench/gpu.py --quick             # the first look: small rows, five minutes on an H100
    python bench/gpu.py                     # every row, each in a process of its own
    python bench/gpu.py decode_1 step       # these
    SMOKE=1 python bench/gpu.py             # toy shapes, on any device: does all of it run?

The shape of Qwen2.5-1.5B, random weights, random tokens. Limits are counted: bytes over the copy
bandwidth plus operations over the rate of bf16 products, both measured first. Attention is in them
only as bytes to read, prefill only where it is the question.

tests         the tests that need a GPU: each kernel against PyTorch, graphs against the CPU
checks        the sampler's greedy tokens are those of full passes (fp32), its log-probs `logprobs`'
decode_1      a prompt of 128, 512 new tokens: the weights are read once a token
decode_64     prompts of 100 to 400, 200 to 1024 new tokens: in every step the weights and the live
decode_512    ... keys and values are read, and the live rows multiplied
rollouts      128 prompts x 8; answers end at random (mean 400), some are cut off at 1024: likewise
prefill       128 prompts of 400 tokens: 2 operations for each weight of a product and token
logprobs      16,384 tokens, packed, without gradient: likewise, with the head
update        SFT or GRPO: prompts of 200, answers of 200 to 1024 tokens, packed into 16,384 tokens,
              activations recomputed: 6 operations, what is done twice counted once; beside it AdamW
step          a GRPO step, 128 x 8, up to 1024 tokens, planned for 40 GB: sampling and update, the
              seconds of each, and peak memory
step_05b      ... of the 0.5B shape, planned for 24 GB
step_offload  ... of the 1.5B shape, AdamW in main memory, planned for 24 GB
effect        sample effects of 1000 examples of 700 tokens: three forward passes
their_decode  transformers' `generate`, same weights: 64 and 512 prompts of 200, 256 new tokens
their_update  transformers' forward and backward, same weights, padded, 8 at a time

Warmed up; medians of three (step and effect: once); the JSON line at the end has all times.

--quick divides lengths and batches by 4 and measures once. It leaves out the two rows of
transformers, and rows for which five minutes do not suffice. It says at the end what to look at,
and writes results/gpu-quick-NAME.json and .md, NAME being the card's.
"""
import argparse
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import effect
import grpo
import model as M
import sample
from engine.batches import Sequence, accumulate, response_logprobs
from engine.evaluate import as_sequence
from engine.graphs import no_kernels
from engine.memory import parameters_in, rollout_plan
from engine.optimizer import AdamW
from engine.processes import Ranks
from sft import Minibatch

SMOKE = os.environ.get("SMOKE") == "1"
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
QUICK = "--quick" in sys.argv
SCALE = 32 if SMOKE else 4 if QUICK else 1      # lengths and batches are divided by it
LONGEST = 300                           # seconds that --quick may take
TOY = M.Config(512, 64, 128, 2, 4, 2, tie_word_embeddings=True)
LARGE = TOY if SMOKE else M.Config(151936, 1536, 8960, 28, 12, 2, tie_word_embeddings=True)
SMALL = TOY if SMOKE else M.Config(151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True)
AIMS = {"decode_1": 0.80, "decode_64": 0.65, "decode_512": 0.65, "rollouts": 0.60, "prefill": 0.50,
        "logprobs": 0.55, "update": 0.45, "effect": 0.40}              # shares


def cut(size: int) -> int:
    return -(-size // SCALE)


def seconds(function, repeats=3) -> list[float]:
    function()
    times = []
    for _ in range(1 if QUICK else repeats):
        if CUDA:
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def rates() -> dict:
    """Bytes that a copy reads and writes, and operations of a bf16 product, per second."""
    size, n = (2**22, 256) if SMOKE else (2**30 if QUICK else 2**32, 8192)
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    copies = min(seconds(lambda: [target.copy_(source) for _ in range(10)])) / 10
    products = min(seconds(lambda: [a @ b for _ in range(10)])) / 10
    return {"bandwidth": 2 * size / copies, "matrix_rate": 2 * n**3 / products}


def made(config, training=False):
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = M.Transformer(config)
    if not training:
        return model.to(torch.bfloat16).eval()
    model.compute_dtype, model.checkpointing = torch.bfloat16, True
    return model


def weights_of(config) -> tuple[int, int]:
    """Weights that multiply every token, and those of the head."""
    head = config.vocab_size * config.hidden_size
    return parameters_in(config) - head * (1 if config.tie_word_embeddings else 2), head


def tokens_like(rng, config, n: int) -> list[int]:
    return [rng.randrange(config.vocab_size) for _ in range(n)]


# ---- sampling --------------------------------------------------------------------------------
def decode_limit(config, prompts: list[int], new: list[int], rate) -> float:
    """Seconds for all steps, the sequences side by side; token 1 comes from the prefill."""
    body, head = weights_of(config)
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
    prompts, new = numpy.array(prompts), numpy.array(new)
    total = 0.0
    for step in range(1, max(new)):
        live = new > step
        kept = int((prompts[live] + step).sum()) * per_token
        total += (2 * (body + head) + kept) / rate["bandwidth"]
        total += 2 * (body + head) * int(live.sum()) / rate["matrix_rate"]
    return total


def decode(batch, prompt, new, rate):
    """prompt, new: the range of the lengths."""
    model, rng = made(LARGE), random.Random(batch)
    prompts = [tokens_like(rng, LARGE, cut(rng.randint(*prompt))) for _ in range(batch)]
    wanted = [cut(rng.randint(*new)) for _ in range(batch)]
    times = seconds(lambda: sample.generate(model, prompts, max_new_tokens=wanted, stop=set()))
    return {"seconds": times, "limit_s": decode_limit(LARGE, [*map(len, prompts)], wanted, rate),
            "tokens": sum(wanted)}


def rollouts(rate):
    model, rng, n = made(LARGE), random.Random(0), 8
    prompts = [tokens_like(rng, LARGE, cut(rng.randint(100, 400))) for _ in range(cut(128))]
    stop, found = set(range(max(1, LARGE.vocab_size * SCALE // 400))), []

    def run():
        found[:] = sample.generate(model, prompts, n=n, max_new_tokens=cut(1024), stop=stop)
    times = seconds(run)
    new = [len(one.tokens) for group in found for one in group]
    lengths = [len(prompt) for prompt in prompts for _ in range(n)]
    return {"seconds": times, "tokens": sum(new),
            "limit_s": decode_limit(LARGE, lengths, new, rate),
            "cut_off": sum(not one.finished for group in found for one in group) / len(new)}


def prefill(rate):
    model, rng = made(LARGE), random.Random(0)
    prompts = [tokens_like(rng, LARGE, cut(400)) for _ in range(cut(128))]
    tokens = sum(map(len, prompts))
    times = seconds(lambda: sample.generate(model, prompts, max_new_tokens=1, stop=set()))
    return {"seconds": times, "tokens": tokens,
            "limit_s": 2 * weights_of(LARGE)[0] * tokens / rate["matrix_rate"]}


def tests(rate):
    """What --quick does first. (SMOKE only looks for them.)"""
    found = ["tests/test_kernel.py", "tests/test_sample.py::test_cuda_graphs_equal_the_cpu"]
    done = subprocess.run([sys.executable, "-m", "pytest", *found, "-p", "no:cacheprovider",
                           *(["--collect-only"] if SMOKE else [])], cwd=ROOT, capture_output=True,
                          text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode:
        raise RuntimeError("; ".join(failed) or done.stdout[-200:] + done.stderr[-200:])
    return {"said": done.stdout.strip().splitlines()[-1]}


def checks(rate):
    torch.manual_seed(1)
    tiny = M.Transformer(M.Config(512, 64, 128, 2, 4, 2)).to(DEVICE)
    prompts = [[5] * 3, [7, 8] * 40, [9]]
    out = sample.generate(tiny, prompts, max_new_tokens=100, temperature=0, stop=set())
    for prompt, [found] in zip(prompts, out):
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(100):
                tokens.append(int(tiny(torch.tensor([tokens], device=DEVICE))[0, -1].argmax()))
        assert found.tokens == tokens[len(prompt):], "the sampler and full passes disagree"
    worst, model = 0.0, made(LARGE, training=True)          # samples from a copy in bf16
    for prompt, [found] in zip(prompts, sample.generate(model, prompts, max_new_tokens=cut(800),
                                                        stop=set())):
        with torch.inference_mode():
            logp = M.logprobs(model, torch.tensor([prompt + found.tokens], device=DEVICE))
        gap = logp[0, len(prompt) - 1:].cpu() - torch.tensor(found.logprobs)
        worst = max(worst, float(gap.abs().max()))
    assert worst < 0.2, f"log-probs differ by {worst}"
    return {"greedy": "equal", "worst_logprob_gap": worst,
            "kernel": CUDA and not no_kernels(torch.device(DEVICE))}


def their_model(model, dtype):
    import transformers
    with tempfile.TemporaryDirectory() as path:
        M.save(model, path + "/m")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path + "/m", dtype=dtype)
    return theirs.to(DEVICE)


def their_decode(rate):
    theirs, rows = their_model(made(LARGE), torch.bfloat16).eval(), {}
    prompt, new = cut(200), cut(256)
    for batch in (cut(64), cut(512)):
        ids = torch.randint(0, LARGE.vocab_size, (batch, prompt), device=DEVICE)

        @torch.inference_mode()
        def run():
            theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                            max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
        times = seconds(run)
        limit = decode_limit(LARGE, [prompt] * batch, [new] * batch, rate)
        rows[f"batch_{batch}"] = {"seconds": times, "share": limit / statistics.median(times),
                                  "tokens_per_s": batch * new / statistics.median(times)}
    return rows


# ---- training --------------------------------------------------------------------------------
def settings(**changes):
    return grpo.Settings(model="", data=[], out="", checkpointing="yes", micro_tokens=cut(16384),
                         lr=1e-6, group=8,
                         prompts=cut(128), max_new_tokens=cut(1024), temperature=1.0, **changes)


def operations(config, sequences) -> int:
    """Of the matrix products, forward and twice as many backward; the head's where trained on."""
    body, head = weights_of(config)
    return 6 * sum(body * len(s.tokens) + head * (len(s.tokens) - s.start) for s in sequences)


def answers(n: int, prompt=200, new=(200, 1024)) -> list:
    rng, found = random.Random(0), []
    for _ in range(n):
        tokens = tokens_like(rng, LARGE, cut(prompt) + cut(rng.randint(*new)))
        found.append(Sequence(numpy.array(tokens, dtype=numpy.int32), cut(prompt)))
    return found


def logprobs(rate):
    model, rng, row = made(LARGE, training=True), random.Random(0), cut(16384)
    lengths = [cut(683)] * (row // cut(683))
    tokens = torch.tensor([tokens_like(rng, LARGE, sum(lengths))], device=DEVICE)

    @torch.no_grad()
    def run():
        M.logprobs(model, tokens, lengths=lengths)
    body, head = weights_of(LARGE)
    return {"seconds": seconds(run), "tokens": sum(lengths),
            "limit_s": 2 * (body + head) * sum(lengths) / rate["matrix_rate"]}


def update(rate):
    model, s, sequences, ranks = made(LARGE, training=True), settings(), answers(cut(256)), \
        Ranks(DEVICE)
    optimizer = AdamW(model, s)

    def gradient():
        accumulate(model, Minibatch(sequences, s), ranks, s)
    times = seconds(gradient)
    start = time.perf_counter()
    optimizer.update(1e-6, 0.0)
    if CUDA:
        torch.cuda.synchronize()
    return {"seconds": times, "tokens": sum(len(x.tokens) for x in sequences),
            "limit_s": operations(LARGE, sequences) / rate["matrix_rate"],
            "adamw_s": time.perf_counter() - start}


def their_update(rate):
    theirs = their_model(made(LARGE, training=True), torch.float32).train()
    theirs.gradient_checkpointing_enable()
    batch = sorted(answers(cut(64)), key=lambda x: -len(x.tokens))

    def gradient():
        for part in (batch[i:i + 8] for i in range(0, len(batch), 8)):
            ids = torch.zeros(len(part), len(part[0].tokens), dtype=torch.int64)
            labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
            for row, x in enumerate(part):
                ids[row, :len(x.tokens)] = torch.from_numpy(x.tokens).long()
                labels[row, x.start:len(x.tokens)] = ids[row, x.start:len(x.tokens)]
                mask[row, :len(x.tokens)] = 1
            with torch.autocast(DEVICE, torch.bfloat16):
                theirs(ids.to(DEVICE), attention_mask=mask.to(DEVICE),
                       labels=labels.to(DEVICE)).loss.backward()
    return {"seconds": seconds(gradient), "tokens": sum(len(x.tokens) for x in batch),
            "limit_s": operations(LARGE, batch) / rate["matrix_rate"]}


def step(config, room, rate, offload=False):
    """The second of two: the first captures the graphs. Planned by grpo.py for `room` GB."""
    model, s, rng = made(config, training=True), settings(offload=offload), random.Random(0)
    prompt, new = cut(200), cut(1024)
    plan = rollout_plan(s, config, torch.bfloat16, prompt, room * 1e9)
    model.checkpointing = plan.recompute
    method = grpo.GRPO(s, Ranks(DEVICE), model, AdamW(model, s))
    prompts = [tokens_like(rng, config, prompt) for _ in range(s.prompts)]
    stop = set(range(max(1, config.vocab_size * SCALE // 400)))
    for _ in range(2):
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        clock = [time.perf_counter()]
        found = sample.generate(model, prompts, n=s.group, max_new_tokens=new, stop=stop,
                                slots=plan.slots)
        if not plan.keep_cache:
            sample.release(model)
        clock.append(time.perf_counter())
        groups = [[{"reward": float(rng.random() < 0.5), "finished": one.finished,
                    "prompt_tokens": prompt, "tokens": one.tokens, "logprobs": one.logprobs}
                   for one in group] for prompt, group in zip(prompts, found)]
        trained = method.update(method.credit(groups), 1e-6)
        clock.append(time.perf_counter())
    rows = [row for group in groups for row in group]
    limits = {"sample": decode_limit(config, [prompt] * len(rows),
                                     [len(row["tokens"]) for row in rows], rate),
              "train": operations(config, map(as_sequence, rows)) / rate["matrix_rate"]}
    phases = {"sample": clock[1] - clock[0], "train": clock[2] - clock[1]}
    return {"seconds": [sum(phases.values())], "limit_s": sum(limits.values()), "phases_s": phases,
            "phase_shares": {name: limits[name] / phases[name] for name in limits},
            "tokens": sum(len(row["tokens"]) for row in rows),
            "cut_off": sum(not row["finished"] for row in rows) / len(rows),
            "sampler_gap": trained["sampler_gap"], "slots": plan.slots, "room_gb": room,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if CUDA else None}


def effects(rate):
    model, sequences = made(LARGE, training=True), answers(cut(1000), 200, (500, 500))
    s = effect.Settings(model="", test="", data=[], micro_tokens=cut(16384), method="jvp")
    G = {name: torch.randn_like(p) / p.numel() ** 0.5 for name, p in model.named_parameters()}

    @torch.no_grad()
    def forward():
        for group in effect.batches(model, sequences, s, "forward"):
            response_logprobs(model, [sequences[i] for i in group], False)
    passes = statistics.median(seconds(forward))
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    return {"seconds": seconds(lambda: effect.effects(model, sequences, G, s), 1),
            "limit_s": 3 * passes, "tokens": sum(len(x.tokens) for x in sequences),
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if CUDA else None}


# ---- the command -----------------------------------------------------------------------------
ROWS = {"tests": tests, "checks": checks,
        "decode_1": lambda rate: decode(1, (128, 128), (512, 512), rate),
        "decode_64": lambda rate: decode(cut(64), (100, 400), (200, 1024), rate),
        "decode_512": lambda rate: decode(cut(512), (100, 400), (200, 1024), rate),
        "rollouts": rollouts, "prefill": prefill, "logprobs": logprobs, "update": update,
        "step": lambda rate: step(LARGE, 40, rate), "step_05b": lambda rate: step(SMALL, 24, rate),
        "step_offload": lambda rate: step(LARGE, 24, rate, offload=True),
        "effect": effects, "their_decode": their_decode, "their_update": their_update}


def measure(name: str) -> dict:
    rate = rates()
    found = ROWS[name](rate)
    if "seconds" in found:
        middle = statistics.median(found["seconds"])
        found |= {"share": found["limit_s"] / middle, "tokens_per_s": found["tokens"] / middle}
    return {**rate, **found}


def short(value):
    """Floats to four digits, however deep."""
    if isinstance(value, dict):
        return {key: short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [short(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


TIMES = ("seconds", "limit_s", "share", "tokens", "tokens_per_s", "bandwidth", "matrix_rate")


def shown(name: str, found: dict) -> str:
    if "error" in found:
        return f"{name:13} {found['error']}"
    line = f"{name:13} "
    if "seconds" in found:
        times = found["seconds"]
        line += (f"{statistics.median(times):8.3f} s ({min(times):.3f} to {max(times):.3f}), limit"
                 f" {found['limit_s']:.3f} s, share {found['share']:.1%}"
                 + (f" (aim {AIMS[name]:.0%})" if name in AIMS else "")
                 + f", {found['tokens_per_s']:,.0f} tokens/s")
    rest = {key: value for key, value in found.items() if key not in TIMES}
    return f"{line}  {json.dumps(short(rest))}" if rest else line


def remarks(results: dict) -> list[str]:
    """What somebody who reads these numbers should look at first."""
    found = []
    for name, row in results["rows"].items():
        if "error" in row:
            found.append(f"{name} did not run to its end: {row['error']}")
        if row.get("kernel") is False:
            found.append(f"{name}: sampling went without the Triton kernels")
        if row.get("worst_logprob_gap", 0) > 0.05:
            found.append(f"{name}: the sampler's log-probs differ from the trainer's by up to"
                         f" {row['worst_logprob_gap']:.3f}")
        if row.get("peak_gb") and row["peak_gb"] > row.get("room_gb", math.inf):
            found.append(f"{name}: took {row['peak_gb']:.1f} GB, planned for {row['room_gb']} GB")
        if row.get("share", 1) < AIMS.get(name, 0):
            found.append(f"{name}: {row['share']:.0%} of the card's limit; the aim is"
                         f" {AIMS[name]:.0%}" + (" (at full size)" if QUICK else ""))
    return found or ["nothing: every row ran, within its memory, and reached its aim"]


def as_markdown(results: dict) -> str:
    """The table of a run, to be read beside bench/NOTES.md."""
    lines = [f"# {results['device']}{', a quick look' if QUICK else ''}", "",
             f"`python bench/gpu.py{' --quick' if QUICK else ''}`, torch {results['torch']},"
             f" {results['memory_gb']:.0f} GB. A share is that of the limit, which is counted from"
             " rates that the same process measured.", "",
             "| row | seconds | limit | share | aim | tokens/s | also |",
             "| --- | ---: | ---: | ---: | ---: | ---: | --- |"]
    for name, row in results["rows"].items():
        cells = ["", "", "", "", ""]
        if "seconds" in row:
            cells = [f"{statistics.median(row['seconds']):.3f}", f"{row['limit_s']:.3f}",
                     f"{row['share']:.1%}", f"{AIMS[name]:.0%}" if name in AIMS else "",
                     f"{row['tokens_per_s']:,.0f}"]
        also = ", ".join(f"{key} {json.dumps(value)}" for key, value in short(row).items()
                         if key not in TIMES).replace("|", "/")
        lines.append(f"| {name} | {' | '.join(cells)} | {also} |")
    return "\n".join([*lines, "", "Look at:", "", *[f"- {line}" for line in remarks(results)], ""])


def run_row(name: str, left: float) -> dict:
    """A row in a process of its own: one that fails, or takes too long, stops no other."""
    if left < 10:
        return {"error": "not run: the time is over"}
    command = [sys.executable, __file__, "--row", name, *(["--quick"] if QUICK else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True,
                              timeout=min(left, 120) if QUICK else None)
    except subprocess.TimeoutExpired as error:
        return {"error": f"stopped after {error.timeout:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"error": last[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="all if none is named")
    parser.add_argument("--quick", action="store_true", help="small rows; see above")
    parser.add_argument("--out", default=os.path.join(ROOT, "results"), help="folder for --quick")
    parser.add_argument("--row", help="measure this one, in this process")
    parser.error = lambda words: parser.exit(2, f"gpu.py: {words}\n")      # one line
    given = parser.parse_args()
    names = [given.row] if given.row else given.rows
    if unknown := set(names) - ROWS.keys():
        parser.exit(2, f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}\n")
    if not CUDA and not SMOKE:
        parser.exit(2, "no CUDA GPU here; SMOKE=1 runs every row at toy size\n")
    given.rows = names or [name for name in ROWS if not QUICK or not name.startswith("their")]
    return given


def main():
    given, start = arguments(), time.monotonic()
    if given.row:
        print(json.dumps(measure(given.row)))
        return
    results = {"device": torch.cuda.get_device_name() if CUDA else "cpu",
               "torch": torch.__version__,
               "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if CUDA else 0,
               "rows": {}}
    print(f"{results['device']}, torch {results['torch']}", flush=True)
    for name in given.rows:
        left = start + LONGEST - time.monotonic() if QUICK else math.inf
        results["rows"][name] = run_row(name, left)
        print(shown(name, results["rows"][name]), flush=True)
    if QUICK:
        slug = re.sub(r"\W+", "-", results["device"]).strip("-").lower()
        path = os.path.join(given.out, f"gpu-quick-{slug}")
        for ending, text in ((".json", json.dumps(short(results), indent=1) + "\n"),
                             (".md", as_markdown(results))):
            with open(path + ending, "w", encoding="utf-8") as file:
                file.write(text)
        print(f"{path}.json and .md are written. Look at:")
    print("\n".join(f"- {line}" for line in remarks(results)))
    print(json.dumps(results))
    raise SystemExit(any("error" in row for row in results["rows"].values()))


if __name__ == "__main__":
    main()
