"""SFT on a CPU beside a plain transformers loop, the same weights and batches, in one run.

    pip install transformers && python bench/train_cpu.py

K&K puzzles of 3 to 5 people with row-by-row tables (lengths differ by a factor of 10), batches of
32, responses trained on, clipping and AdamW included. Theirs pads to the longest example of a
micro-batch, in the order of the data or sorted by length; each of several micro-batch sizes is
tried, its best way counts. Tokens are those of the examples, padding not counted. The two sides
alternate; medians of the rounds, with the range of their ratios. First, both losses and gradients
are compared. Ends in one JSON line.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile

import torch
import transformers

from sample_cpu import compare, pair, rate

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import model as M
import sft
from engine.batches import Order, accumulate
from engine.examples import as_sequences, read_examples, train_tokenizer
from engine.optimizer import AdamW
from engine.processes import Ranks

SHAPES = {"0.9M": M.Config(512, 128, 384, 4, 4, 2, tie_word_embeddings=True),
          "6M": M.Config(2048, 256, 704, 6, 4, 2, tie_word_embeddings=True)}


def examples(batches, vocabulary):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kk.jsonl")
        subprocess.run([sys.executable, os.path.join(ROOT, "kk_gen.py"), "--people", "3-5", "--num",
                        str(11 * batches), "--seed", "0", "--template", "compact", "--cot", "table",
                        "--out", path], check=True, stdout=subprocess.DEVNULL)
        texts = read_examples([path])
    words = [row[part] for _, row in texts for part in ("prompt", "response")]
    sequences = as_sequences(texts, train_tokenizer(words, vocabulary), 0, 2048)
    order = Order(len(sequences), 0)
    return [[sequences[order[32 * i + j]] for j in range(32)] for i in range(batches)]


def gradient(model, batch, settings):
    return accumulate(model, sft.Minibatch(batch, settings), Ranks("cpu"), settings)


def ours(model, optimizer, settings, batches):
    for batch in batches:
        loss = gradient(model, batch, settings)
        optimizer.update(1e-5, loss)
    return sum(len(s.tokens) for batch in batches for s in batch)


def their_gradient(model, batch, size, by_length):
    if by_length:
        batch = sorted(batch, key=lambda s: -len(s.tokens))
    total = sum(len(s.tokens) - s.start for s in batch)
    loss = 0.0
    for part in (batch[i:i + size] for i in range(0, len(batch), size)):
        width = max(len(s.tokens) for s in part)
        ids = torch.zeros(len(part), width, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, s in enumerate(part):
            tokens = torch.from_numpy(s.tokens).long()
            ids[row, :len(tokens)], mask[row, :len(tokens)] = tokens, 1
            labels[row, s.start:len(tokens)] = tokens[s.start:]
        found = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=total).loss
        found.backward()
        loss += found.item()
    return loss


def theirs(model, optimizer, batches, size, by_length):
    for batch in batches:
        their_gradient(model, batch, size, by_length)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return sum(len(s.tokens) for batch in batches for s in batch)


def measure(config, rounds, batches):
    model, reference = pair(config, torch.float32)
    reference.train()
    batches, settings = examples(batches, config.vocab_size), sft.Settings(data=[], out="", norm="token")
    loss = gradient(model, batches[0], settings)
    assert abs(loss - their_gradient(reference, batches[0], 8, True)) < 1e-4
    for name, p in model.named_parameters():
        q = reference.get_parameter(name)
        assert (p.grad - q.grad).abs().max() < 1e-4, name
        p.grad = q.grad = None

    adamw = torch.optim.AdamW(reference.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    optimizer = AdamW(model, settings)
    rates = {(size, by_length): rate(theirs, reference, adamw, batches[:2], size, by_length)
             for by_length in (False, True) for size in (2, 4, 8, 16, 32)}
    best = max(rates, key=rates.get)
    plain = max((key for key in rates if not key[1]), key=rates.get)
    ours(model, optimizer, settings, batches[:2])
    found = {"params": sum(p.numel() for p in model.parameters()),
             "lengths": statistics.quantiles([len(s.tokens) for b in batches for s in b], n=10),
             "their_micro_batch": plain[0], "their_sorted_micro_batch": best[0]}
    for name, (size, by_length) in (("padded", plain), ("padded and sorted", best)):
        found[name] = compare([(ours, model, optimizer, settings, batches),
                               (theirs, reference, adamw, batches, size, by_length)], rounds)
    return found


def main():
    transformers.logging.set_verbosity_error()
    results = {"threads": torch.get_num_threads(), "torch": torch.__version__,
               "transformers": transformers.__version__}
    for name, batches, rounds in (("0.9M", 6, 7), ("6M", 2, 5)):
        results[name] = measure(SHAPES[name], rounds, batches)
        for way in ("padded", "padded and sorted"):
            row = results[name][way]
            print(f"{name}, transformers {way}: ours {row['ours']:,.0f}, transformers"
                  f" {row['transformers']:,.0f} tokens/s, ratio {row['ratio']:.2f}"
                  f" ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
