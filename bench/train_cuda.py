"""Training on a GPU, as shares of the matrix rate that the same run measures.

    python bench/train_cuda.py [update] [step] [reference]

The shape of Qwen2.5-1.5B, random weights, fp32 masters, bf16 compute, packed micro-batches of
16,384 tokens, activations recomputed.
update: 1024 answers of 200 to 1024 tokens to prompts of 200, forward and backward, and AdamW. The
    limit counts 6 operations for every weight of a product and token (the head: only for tokens
    that are trained on); attention and what is computed twice are not counted.
step: a whole GRPO step, 128 prompts x 8 answers of up to 1024 tokens; 150 of 151,936 tokens end an
    answer, so about a third is cut off. Rewards are made up. Seconds by phase, peak memory beside
    the plan.
reference: transformers' forward and backward on the same weights, padded batches of 8, gradient
    checkpointing.
SMOKE=1 runs it all at toy size on any device. Ends in one JSON line.
"""
import json
import random
import statistics
import sys
import tempfile
import time

import numpy
import torch

from sample_cuda import DEVICE, SHAPE, SMOKE, M, card, sample, seconds

import grpo  # noqa: E402
import sft  # noqa: E402

SCALE = 32 if SMOKE else 1
PROMPT, LONGEST, PROMPTS, GROUP = 200 // SCALE, 1024 // SCALE, 128 // SCALE, 8
RANKS = sft.Ranks(DEVICE)


def settings(**changes):
    return grpo.Settings("", [], "", checkpointing="yes", micro_tokens=16384 // SCALE, lr=1e-6,
                         group=GROUP, prompts=PROMPTS, max_new_tokens=LONGEST, temperature=1.0,
                         **changes)


def operations(config, model, sequences):
    """Those of the matrix products, forward and twice as many backward."""
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters() if p.dim() == 2) - head
    body -= 0 if config.tie_word_embeddings else head
    tokens = sum(len(s.tokens) for s in sequences)
    trained = sum(len(s.tokens) - s.start for s in sequences)
    return 6 * (body * tokens + head * trained)


def made_up(config, n):
    rng = random.Random(0)
    lengths = [PROMPT + rng.randint(LONGEST // 5, LONGEST) for _ in range(n)]
    return [sft.Sequence(numpy.array([rng.randrange(config.vocab_size) for _ in range(length)],
                                     dtype=numpy.int32), PROMPT) for length in lengths]


def update(model, optimizer, rates):
    s, sequences = settings(), made_up(model.config, PROMPTS * GROUP // 4)
    total = sft.count_for("token", sequences)

    def gradient():
        sft.accumulate(model, RANKS, sequences, s, lambda indices, logp, mask, entropy:
                       sft.sft_loss(logp, mask, "token", total))
    gradient()
    times = seconds(gradient)
    norm = seconds(lambda: optimizer.update(1e-6, 0.0), 1)[0]
    middle = statistics.median(times)
    share = operations(model.config, model, sequences) / rates["matrix_rate"] / middle
    return {"tokens": sum(len(x.tokens) for x in sequences), "seconds": times, "share": share,
            "tokens_per_s": sum(len(x.tokens) for x in sequences) / middle, "adamw_seconds": norm}


def step(model, optimizer, rates):
    s, rng, c = settings(), random.Random(0), model.config
    prompts = [[rng.randrange(c.vocab_size) for _ in range(PROMPT)] for _ in range(PROMPTS)]
    stop = set(range(max(1, c.vocab_size // 1000)))
    plan, _ = sft.choose_plan(c, s, torch.bfloat16, PROMPT + LONGEST, PROMPTS * GROUP, 1e15)
    for _ in range(2):                                      # the first captures the graphs
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clock = [time.perf_counter()]
        found = sample.generate(model, prompts, n=GROUP, max_new_tokens=LONGEST, stop=stop)
        clock.append(time.perf_counter())
        groups = [[{"reward": float(rng.random() < 0.5), "finished": one.finished,
                    "prompt_tokens": prompt, "tokens": one.tokens, "logprobs": one.logprobs}
                   for one in group] for prompt, group in zip(prompts, found)]
        about = grpo.update(model, optimizer, RANKS, grpo.to_train_on(groups, s), 1e-6, s, None)
        clock.append(time.perf_counter())
    rows = [row for group in groups for row in group]
    trained = [grpo.sequence_of(row) for row in rows]
    phases = {"sample": clock[1] - clock[0], "train": clock[2] - clock[1]}
    return {"seconds": phases, "total": clock[2] - clock[0],
            "sampled_tokens": sum(len(row["tokens"]) for row in rows),
            "cut_off": sum(not row["finished"] for row in rows) / len(rows),
            "train_share": operations(c, model, trained) / rates["matrix_rate"] / phases["train"],
            "sampler_gap": about["sampler_gap"], "planned_gb": sum(plan.values()) / 1e9,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else None}


def reference(model, rates):
    import transformers
    with tempfile.TemporaryDirectory() as path:
        M.save(model, path + "/m")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            path + "/m", dtype=torch.float32).to(DEVICE).train()
    theirs.gradient_checkpointing_enable()
    batch = sorted(made_up(model.config, 32 // SCALE * 2), key=lambda x: -len(x.tokens))

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
    gradient()
    times, tokens = seconds(gradient), sum(len(x.tokens) for x in batch)
    middle = statistics.median(times)
    return {"seconds": times, "tokens_per_s": tokens / middle,
            "share": operations(model.config, model, batch) / rates["matrix_rate"] / middle}


def main():
    names = sys.argv[1:] or ["update", "step", "reference"]
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = M.Transformer(SHAPE)
    model.compute_dtype, model.checkpointing = torch.bfloat16, True
    optimizer, rates = sft.AdamW(model, settings()), card()
    results = {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
               "torch": torch.__version__, **rates}
    for name in names:
        if name == "reference":                             # alone on the card
            sample.release(model)
            optimizer = None
            results[name] = reference(model, rates)
        else:
            results[name] = {"update": update, "step": step}[name](model, optimizer, rates)
        print(name, {key: round(value, 3) if isinstance(value, float) else value
                     for key, value in results[name].items()})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
