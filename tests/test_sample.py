"""sample.py against the slow way: one full forward pass per token, one sequence at a time."""
import collections
import copy
import math
import os
import random
import signal
import subprocess
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import model as M
import sample as S
from engine import cache
from engine.cache import close_gaps
from engine.graphs import Graphs, round_up
from engine.noise import draw, first_above, noise_keys, uniform
from engine.rollouts import RolloutFile
from engine.tokenizer import Printer, load_tokenizer
from helpers import GOLDEN, command, read, run, tiny, write
from test_model import copy_golden

PROMPTS = [[5, 6, 7], [9] * 70, [3], [8, 1] * 20, [4, 4, 4, 4], [11, 12] * 33, [30], [31, 32]]


def slow_greedy(model, prompt, new, stop=()):
    tokens = list(prompt)
    with torch.inference_mode():
        while len(tokens) < len(prompt) + new:
            tokens.append(int(model(torch.tensor([tokens]))[0, -1, :model.vocab].argmax()))
            if tokens[-1] in stop:
                break
    return tokens[len(prompt):]


def run_all(model, **kwargs):
    return S.generate(model, PROMPTS, **{"n": 3, "max_new_tokens": 90, "temperature": 1.0,
                                         "stop": {1, 2}, "seed": 5} | kwargs)


def tokens_of(samples):
    return [[s.tokens for s in group] for group in samples]


@pytest.fixture
def as_graphs(monkeypatch):
    """The CUDA way on a CPU, without Triton: rounded-up batches and lengths, a look every 16 steps.
    Only the recording is replaced, by a call of the step. (With Triton: test_kernel.py.)"""
    init = S.Slots.__init__

    def with_graphs(self, *args):
        init(self, *args)
        self.graphs = Graphs()

    def record(graphs, slots, *what):
        return SimpleNamespace(replay=lambda: slots.decode(*what))
    monkeypatch.setattr(S.Slots, "__init__", with_graphs)
    monkeypatch.setattr(Graphs, "record", record)


# ---- the same tokens as the slow way ---------------------------------------------------------
def test_golden_greedy_tokens():
    expected = load_file(os.path.join(GOLDEN, "expected.safetensors"))
    out = S.generate(M.load(GOLDEN), expected["tokens"][:, :16].tolist(), max_new_tokens=64,
                     temperature=0, stop=set())
    assert [group[0].tokens for group in out] == expected["greedy"].tolist()


@pytest.mark.parametrize("slots", [1, 3, 100])
def test_greedy_equals_the_slow_way_for_mixed_lengths(slots):
    model = tiny()
    out = S.generate(model, PROMPTS, max_new_tokens=80, temperature=0, stop={1, 17}, slots=slots)
    for prompt, [found] in zip(PROMPTS, out):
        assert found.tokens == slow_greedy(model, prompt, 80, {1, 17})
        assert found.finished == (found.tokens[-1] in (1, 17))
        assert len(found.logprobs) == len(found.tokens)


def test_the_graph_way_equals_the_plain_way(as_graphs, monkeypatch):
    """Padding rows that write into another's cache, or draw for it, would show here; and with
    58 new tokens the longest fills its cache, so a slot that goes on after its end falls out."""
    def both():
        assert max(map(len, PROMPTS)) + 58 == 2 * S.PAGE
        return [[[(s.tokens, s.finished) for s in group] for group in out] for out in (
            run_all(tiny(), slots=5, max_new_tokens=20, stop={1, 17, 23, 30, 41}),
            run_all(tiny(), slots=5, max_new_tokens=58, stop=set()),
            run_all(tiny(), n=1, max_new_tokens=80, temperature=0, stop={1, 17}))]
    graphs = both()
    monkeypatch.undo()
    assert graphs == both()


def test_what_a_graph_runs_beyond_the_running_is_done(as_graphs, monkeypatch):
    """A sequence that moves leaves a copy of itself, and an abandoned call leaves all of its own.
    In a graph they would go on until they end, or beyond the end of their slot."""
    step, beyond = S.Slots.step, []

    def watched(self, lengths):
        beyond.append(1 < len(lengths) < self.size)         # a graph has 8 rows
        assert self.done[len(lengths):].all()
        step(self, lengths)
    monkeypatch.setattr(S.Slots, "step", watched)
    model, settings = tiny(), {"max_new_tokens": 80, "slots": 8, "stop": {1, 17, 23, 30, 41}}
    run_all(model, **settings)
    assert any(beyond)
    kept = model.slots
    next(S.as_they_end(model, PROMPTS, **settings))
    assert model.slots is kept and not kept.done.all()
    S.generate(model, PROMPTS[:3], **settings)
    assert model.slots is kept


@pytest.mark.parametrize("value, rows, pages", [
    (1, 8, 1), (3, 8, 3), (5, 8, 6), (9, 16, 12), (13, 16, 16), (65, 80, 96), (100, 112, 128),
    (512, 512, 512), (513, 640, 768), (1000, 1024, 1024)])
def test_few_sizes_are_captured(value, rows, pages):
    assert round_up(value, 3, least=8) == rows and round_up(value, 2) == pages


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("temperature", [0, 0.7])
def test_cuda_graphs_equal_the_cpu(temperature):
    """Greedily, and with the same noise: there a sum rounded otherwise may tip a draw, seldom."""
    cpu, cuda = tiny(), tiny().cuda()
    for _ in range(2):                                      # the second call replays kept graphs
        a, b = (sum(tokens_of(S.generate(model, PROMPTS, n=1 if temperature == 0 else 4, seed=3,
                                         max_new_tokens=80, temperature=temperature, stop={1, 17})),
                    []) for model in (cpu, cuda))
        same = sum(x == y for x, y in zip(a, b))
        assert same == len(a) if temperature == 0 else same >= 0.8 * len(a)
        with torch.no_grad():
            for p, q in zip(cpu.parameters(), cuda.parameters()):
                p.mul_(1.01)
                q.mul_(1.01)


# ---- log-probs and the distribution ----------------------------------------------------------
@pytest.mark.parametrize("temperature, n", [(1.0, 3), (0.6, 3), (0, 1)])
def test_logprobs_are_those_of_the_training_side(temperature, n):
    model = tiny()
    model.vocab = 45
    for prompt, group in zip(PROMPTS, run_all(model, temperature=temperature, n=n)):
        for found in group:
            logp = M.logprobs(model, torch.tensor([prompt + found.tokens]), temperature or 1.0)
            torch.testing.assert_close(torch.tensor(found.logprobs), logp[0, len(prompt) - 1:],
                                       rtol=0, atol=2e-5)


def test_logprobs_after_truncation_are_those_of_what_remains():
    """Sampled with top-p, trained on the full distribution: a bias that nobody sees."""
    model = tiny()
    for found in run_all(model, n=2, top_k=7, top_p=0.8, temperature=1.3)[3]:
        logits = model(torch.tensor([PROMPTS[3] + found.tokens]))[0, len(PROMPTS[3]) - 1:-1]
        for row, token, logp in zip(logits.double() / 1.3, found.tokens, found.logprobs):
            ranked = sorted(row.softmax(-1).tolist(), reverse=True)[:7]
            ranked = [p / sum(ranked) for p in ranked]
            kept = [p for i, p in enumerate(ranked) if sum(ranked[:i]) < 0.8]
            top = row.softmax(-1).topk(7).values.sum()
            expected = (row.softmax(-1)[token] / top).item() / sum(kept)
            assert math.isclose(math.exp(logp), expected, rel_tol=1e-4)


def test_truncate_by_hand():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for top_k, top_p, kept in [(0, 1.0, [0, 1, 2, 3]), (2, 1.0, [1, 3]), (1, 1.0, [1]),
                               (0, 0.69, [1, 3]), (0, 0.71, [1, 2, 3]), (0, 1e-9, [1]),
                               (2, 0.6, [1, 3]), (2, 0.5, [1]), (9, 1.0, [0, 1, 2, 3])]:
        out = S.truncate(logits.clone(), top_k, top_p)
        assert out[0].isfinite().nonzero().flatten().tolist() == kept, (top_k, top_p)
        assert torch.equal(out[out.isfinite()], logits[0, kept])


def test_a_target_rounded_to_the_total_still_finds_an_entry_with_weight():
    p = torch.tensor([[0.0, 1.0, 2.0, 0.0]])
    cdf = p.cumsum(-1)
    for target, index in [(0.0, 1), (0.9, 1), (1.0, 2), (2.9, 2), (3.0, 2), (3.1, 2)]:
        assert first_above(cdf, torch.tensor([[target]]), p).tolist() == [[index]]


def test_draw_inverts_the_cumulative_sum():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    for u, index in [(0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (1 - 2**-53, 4)]:
        assert draw(p, torch.tensor([u], dtype=torch.float64)).tolist() == [index]
    wide = torch.rand(40, 5001) * (torch.rand(40, 5001) < 0.01)         # most have no probability
    for u in (0.0, 0.3, 1 - 2**-53):
        index = draw(wide, torch.full((40,), u, dtype=torch.float64))
        cdf = wide.double().cumsum(-1)
        assert (wide.gather(1, index[:, None]) > 0).all()
        after = cdf.gather(1, index[:, None]).squeeze(1) / cdf[:, -1]
        assert (after > u - 1e-12).all()
        assert (after - wide.gather(1, index[:, None]).squeeze(1) / cdf[:, -1] <= u + 1e-12).all()


def test_noise_is_splitmix64_and_uniform():
    """Integers only, so every device draws the same numbers; values computed with Python ints."""
    def mix(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31
    golden, key = 0x9E3779B97F4A7C15, 0
    for part in (7, 12, 3):
        key = mix((key + part + golden) % 2**64)
    found = noise_keys(7, [12], [3])
    assert int(found) % 2**64 == key
    u = uniform(found, torch.tensor([40]))
    assert float(u) == (mix((key + 41 * golden) % 2**64) >> 11) / 2**53
    many = uniform(noise_keys(0, list(range(1000)), [0] * 1000)[:, None], torch.arange(100))
    assert many.unique().numel() == 100_000
    counts = torch.histc(many, 100, 0, 1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 193        # chi^2, 99 degrees: p < 1e-7 above


def test_samples_follow_the_distribution():
    """4000 pairs of tokens against their exact probabilities; chance of failing 1e-6 if right."""
    model = tiny(vocab_size=6)
    n, prompt = 4000, [2, 5]
    found = collections.Counter(tuple(s.tokens) for s in S.generate(
        model, [prompt], n=n, max_new_tokens=2, temperature=0.8, stop={0})[0])
    expected = {}
    with torch.inference_mode():
        first = (model(torch.tensor([prompt]))[0, -1] / 0.8).softmax(-1)
        for a in range(6):
            if a == 0:
                expected[0,] = float(first[0])
                continue
            second = (model(torch.tensor([prompt + [a]]))[0, -1] / 0.8).softmax(-1)
            expected |= {(a, b): float(first[a] * second[b]) for b in range(6)}
    assert set(found) <= set(expected)
    large = {key: p for key, p in expected.items() if n * p >= 5}
    rest = 1 - sum(large.values())
    chi2 = sum((found[key] - n * p) ** 2 / (n * p) for key, p in large.items())
    chi2 += (n - sum(found[key] for key in large) - n * rest) ** 2 / max(n * rest, 5)
    k = len(large)
    assert chi2 < k + 4.9 * math.sqrt(2 * k) + 16           # Wilson-Hilferty: p below 1e-6 above


# ---- what a sample may depend on -------------------------------------------------------------
def test_a_sample_does_not_depend_on_what_is_around_it():
    whole = tokens_of(run_all(tiny()))
    assert len({tuple(t) for group in whole for t in group}) == 24      # and they differ
    for slots in (1, 2, 7):
        assert tokens_of(run_all(tiny(), slots=slots)) == whole
    alone = S.generate(tiny(), [PROMPTS[4]], n=2, max_new_tokens=90, stop={1, 2}, seed=5,
                       indices=[4])
    assert tokens_of(alone) == [whole[4][:2]]
    assert tokens_of(run_all(tiny(), seed=6)) != whole


def test_weights_changed_in_place_are_used_by_the_next_call():
    """A copy or a cache kept after an update would sample from the policy before it."""
    for compute in (None, torch.bfloat16):
        model = tiny()
        model.compute_dtype = compute
        before = run_all(model)
        kept = model.slots
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5)
        fresh = copy.deepcopy(model)
        assert fresh.slots is None                          # the copy makes its own
        assert tokens_of(run_all(model)) == tokens_of(run_all(fresh)) != tokens_of(before)
        assert model.slots is kept                          # and the memory was used again
        alive = weakref.ref(model.__dict__["slots"])
        del kept
        S.release(model)
        assert "slots" not in model.__dict__ and alive() is None    # no garbage collector needed


def test_a_call_within_a_call_and_an_abandoned_one_leave_the_others_alone():
    model, expected = tiny(), tokens_of(run_all(tiny()))
    inner, outer = [], [[None] * 3 for _ in PROMPTS]
    for i, j, found in S.as_they_end(model, PROMPTS, n=3, max_new_tokens=90, stop={1, 2}, seed=5):
        outer[i][j] = found.tokens
        if len(inner) < 2:
            inner.append(tokens_of(run_all(model)))
    assert outer == expected and inner == [expected] * 2
    next(S.as_they_end(model, PROMPTS, max_new_tokens=90, stop={1, 2}))
    assert tokens_of(run_all(model)) == expected


def test_a_model_cast_or_given_other_ids_makes_new_slots():
    """Kept slots would hold the old dtype, and on CUDA graphs of weights that have moved."""
    model = tiny()
    run_all(model)
    model.vocab = 20
    assert max(t for group in run_all(model) for s in group for t in s.tokens) < 20
    model.double()
    assert tokens_of(run_all(model)) == tokens_of(run_all(copy.deepcopy(model)))
    assert model.slots.cache.pages.dtype == torch.float64


def test_ids_beyond_the_tokenizer_are_never_drawn():
    model = tiny(tie_word_embeddings=False)
    model.vocab = 40
    with torch.no_grad():
        model.lm_head.weight[40:] = 10 * model.lm_head.weight[:10].abs()
    for temperature in (0, 1.0):
        out = run_all(model, temperature=temperature)
        assert max(t for group in out for s in group for t in s.tokens) < 40


# ---- ends and limits -------------------------------------------------------------------------
def test_stops_at_each_stop_token_and_at_the_limits():
    model = tiny(max_position_embeddings=75)
    out = run_all(model, n=6, max_new_tokens=40)
    for prompt, group in zip(PROMPTS, out):                 # prompt 1 has 70 of 75 tokens
        limit = min(40, 75 - len(prompt))
        for s in group:
            assert not {1, 2} & set(s.tokens[:-1])
            assert s.finished == (s.tokens[-1] in (1, 2))
            assert s.finished or len(s.tokens) == limit
    ends = {s.tokens[-1] for group in out for s in group if s.finished}
    assert ends == {1, 2}
    assert {len(s.tokens) for s in out[1]} <= {1, 2, 3, 4, 5}


def test_an_end_token_within_the_prompt_is_not_an_end():
    """In Qwen2.5 base the pad token is the end token: masks made from token values lose one."""
    model = tiny()
    [[with_end]] = S.generate(model, [[1, 1, 6, 1]], max_new_tokens=8, temperature=0, stop={1})
    assert with_end.tokens == slow_greedy(model, [1, 1, 6, 1], 8, {1})


def test_each_prompt_is_prefilled_once_and_ended_rows_cost_nothing(monkeypatch):
    seen, rows = [], []
    prefill, decode = S.Slots.prefill, S.Slots.decode
    monkeypatch.setattr(S.Slots, "prefill", lambda slots, p: seen.extend(p) or prefill(slots, p))
    monkeypatch.setattr(S.Slots, "decode", lambda slots, live, reach:
                        rows.append(reach) or decode(slots, live, reach))
    monkeypatch.setattr(S, "PREFILL_TOKENS", 200)           # several groups
    monkeypatch.setattr(S, "BLOCK", 1)
    for module in (S, cache):
        monkeypatch.setattr(module, "PAGE", 16)
    out = run_all(tiny(), n=8, slots=5)
    assert sorted(seen) == sorted(PROMPTS)
    drawn = sum(len(s.tokens) for group in out for s in group)
    assert max(reach[0] for reach in rows) == 5
    # The first token comes from the prefill; one that ends at once still costs a row in one step.
    first = sum(len(s.tokens) == 1 for group in out for s in group)
    assert sum(reach[0] for reach in rows) == drawn - 64 + first
    # And the cache is read about as far as the sequences go, not all of it up to the longest.
    needed = sum(-(-(len(prompt) + t) // S.PAGE) for prompt, group in zip(PROMPTS, out)
                 for s in group for t in range(1, max(2, len(s.tokens))))
    assert needed <= sum(map(sum, rows)) < 1.1 * needed
    assert 1.3 * needed < sum(reach[0] * len(reach) for reach in rows)


def test_gaps_are_closed_keeping_the_long_first():
    running = [S.Running(i, 0, offset) for i, offset in enumerate([9, 8, 7, 6, 5, 5, 4, 3])]
    close_gaps(running, [0, 3, 7], block=2)
    assert sorted(at.prompt for at in running) == [1, 2, 4, 5, 6]
    assert [at.offset for at in running] == [7, 8, 5, 5, 4]


def test_a_sequence_and_its_cache_move_together():
    rng = random.Random(0)
    for _ in range(300):
        size, block = rng.randint(1, 12), rng.randint(1, 5)
        running = [S.Running(i, 0, rng.randint(1, 9)) for i in range(size)]
        ended = sorted(rng.sample(range(size), rng.randint(0, size)))
        moves = close_gaps(running, ended, block)
        kept = [moves.get(slot, slot) for slot in range(len(running))]      # all at once
        assert kept == [one.prompt for one in running]
        assert sorted(kept + ended) == list(range(size)) and set(moves) <= set(range(len(running)))


def test_the_callers_grad_mode_is_left_alone():
    """A generator that yields inside inference_mode would leave the caller in it."""
    for _ in S.as_they_end(tiny(), PROMPTS, max_new_tokens=3, stop=set()):
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("change, words", [
    ({"n": 0}, "n = 0"), ({"max_new_tokens": 0}, "max_new_tokens = 0"), ({"top_p": 0}, "top_p = 0"),
    ({"temperature": -1}, "temperature = -1"), ({"temperature": math.nan}, "temperature = nan"),
    ({"top_k": -1}, "top_k = -1"), ({"slots": 0}, "slots = 0")])
def test_settings_that_cannot_be_sampled_with(change, words):
    with pytest.raises(ValueError, match=words):
        run_all(tiny(), **change)


@pytest.mark.parametrize("prompt, words", [
    ([], "prompt 1 has 0 tokens"), ([1] * 80, "prompt 1 has 80 tokens; the model's context is 80"),
    ([50], "prompt 1 has a token that the model does not have")])
def test_prompts_that_cannot_be_continued(prompt, words):
    with pytest.raises(ValueError, match=words):
        S.generate(tiny(max_position_embeddings=80), [[1], prompt], max_new_tokens=4, stop=set())


def test_each_prompt_may_have_its_own_limit():
    limits = [4, 1, 9, 2, 7, 3, 8, 5]
    out = S.generate(tiny(), PROMPTS, n=2, max_new_tokens=limits, stop=set(), slots=3)
    assert [[len(s.tokens) for s in group] for group in out] == [[n, n] for n in limits]
    with pytest.raises(ValueError, match="max_new_tokens = "):
        S.generate(tiny(), PROMPTS, max_new_tokens=[4, 0] * 4, stop=set())


def test_no_prompts_no_samples():
    assert S.generate(tiny(), [], max_new_tokens=4, stop=set()) == []


# ---- the command -----------------------------------------------------------------------------
def sample(folder, *flags):
    return run(folder, "--model", GOLDEN, *flags, script="sample.py")


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    write(path, [{"id": f"p{i}", "task": "kk", "level": 2, "gold": "A is a knight, B is a knave",
                  "prompt": "A says B is a knave. " * (1 + i % 3)} for i in range(40)])
    return path


def test_command_prints_a_continuation(tmp_path):
    done = sample(tmp_path, "--prompt", "A says", "--max-new-tokens", 8, "--temperature", 0)
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(GOLDEN)
    tokens = slow_greedy(M.load(GOLDEN), tokenizer.encode("A says").ids, 8, {0, 2})
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    assert done.stdout == text and "8 tokens, cut off" in done.stderr


def test_a_growing_answer_is_printed_in_whole_characters(capsys):
    texts = {1: "a", 2: "a\ufffd", 3: "a\u00e9", 4: "a\u00e9\ufffd"}   # by number of tokens
    tokenizer = SimpleNamespace(decode=lambda tokens, **_: texts[len(tokens)])
    printer, shown = Printer(tokenizer), []
    for n in range(1, 5):
        printer.show(S.Sample([7] * n, [], False))
        shown.append(capsys.readouterr().out)
    assert shown == ["a", "", "\u00e9", ""]
    printer.end(S.Sample([7] * 5, [], True))                # the stop token is not shown
    out, err = capsys.readouterr()
    assert out == "\ufffd" and "[5 tokens, ended" in err


def test_command_writes_rollouts_that_verify(tmp_path, problems):
    def r(*flags):
        return sample(tmp_path, "--data", problems, "--out", "r.jsonl", "--max-new-tokens", 12,
                      "--limit", 4, *flags)
    done = r("--n", 3)
    assert done.returncode == 0 and "12 rollouts of 4 problems" in done.stdout, done.stderr
    rows = read(tmp_path / "r.jsonl")
    assert [(row["id"], row["sample"]) for row in rows] == [(f"p{i}", j) for i in range(4)
                                                            for j in range(3)]
    for row in rows:
        assert row["reward"] == 0.0 and row["gold"] and len(row["tokens"]) == len(row["logprobs"])
        assert row["finished"] == (row["tokens"][-1] in (0, 2)) and row["step"] == 0
    again, other = r("--n", 3), r("--n", 2)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert other.returncode == 2 and "n was 3" in other.stderr


def test_command_killed_and_resumed_gives_the_same_file(tmp_path, problems):
    flags = ("--model", GOLDEN, "--data", problems, "--n", 4, "--slots", 4, "--max-new-tokens", 40,
             "--temperature", 1, "--out")
    assert sample(tmp_path, *flags, "whole.jsonl").returncode == 0
    partial = tmp_path / "killed.jsonl.partial"
    process = subprocess.Popen(command(*flags, "killed.jsonl", script="sample.py"), cwd=tmp_path,
                               stderr=subprocess.DEVNULL)
    while not partial.exists() or partial.stat().st_size < 2000:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(partial, "a") as file:
        file.write('{"id": "p7", "sam')                     # a line that the kill cut
    resumed = sample(tmp_path, *flags, "killed.jsonl")
    assert resumed.returncode == 0 and "rollouts are there" in resumed.stdout, resumed.stderr
    rows = zip(read(tmp_path / "whole.jsonl"), read(tmp_path / "killed.jsonl"), strict=True)
    for a, b in rows:                                       # alike up to rounding of log-probs,
        assert a.pop("logprobs") == pytest.approx(b.pop("logprobs"), abs=2e-5)     # see generate
        assert a == b
    assert not partial.exists()


def test_command_stopped_says_how_to_go_on(tmp_path, problems):
    process = subprocess.Popen(
        command("--model", GOLDEN, "--data", problems, "--out", "r.jsonl", "--slots", 1,
                "--temperature", 1, "--n", 100, script="sample.py"),
        cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "r.jsonl.partial").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].endswith("stopped; the same command goes on from here\n")
    assert process.returncode == 130


@pytest.mark.parametrize("flags, words", [
    (["--prompt", "x", "--nonsense", "1"], "unrecognized arguments: --nonsense"),
    (["--prompt", "x", "--n", "0"], "n = 0"), (["--prompt", ""], "prompt is empty"),
    ([], "give either --prompt or --data"), (["--data", "x.jsonl"], "--data and --out go together"),
    (["--data", "nowhere.jsonl", "--out", "x.jsonl"], "cannot read nowhere.jsonl"),
    (["--prompt", "x" * 600], "the model's context is 512"),
    (["--prompt", b"a\xff".decode(errors="surrogateescape")], "half a character: 'a\\udcff'"),
    (["--prompt", "x", "--out", "y"], "--data and --out go together"),
    (["--data", "x.jsonl", "--out", "y", "--chat"], "--chat is for --prompt"),
    (["--prompt", "x", "--dtype", "int8"], "dtype = int8")])
def test_command_errors_are_one_line(flags, words, tmp_path):
    done = sample(tmp_path, *flags)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_rollouts_of_another_file_are_not_continued(tmp_path, problems):
    rows = read(problems)

    def rollouts(rows, name="r.jsonl", data=problems):
        return RolloutFile(S.Settings(model=GOLDEN, data=str(data), out=str(tmp_path / name)), rows)
    with pytest.raises(ValueError, match="ids are not unique"):
        rollouts(rows + rows[:1])
    with rollouts(rows) as first:
        for token in (1, 2):                                # What is there already stays.
            first.add(rows[0], 0, S.Sample([token], [-0.5], True), "", 0.0)
    assert [row["tokens"] for row in read(tmp_path / "r.jsonl.partial")] == [[1]]
    with pytest.raises(ValueError, match="another process is writing .*r.jsonl"):
        rollouts(rows)
    first.file.close()                                          # as the end of a process does
    assert rollouts(rows).missing() == ([*range(1, 40)], rows[1:])
    problems.write_text(problems.read_text().replace("knave", "knight", 1))
    with pytest.raises(ValueError, match="jsonl has changed since .* was begun"):
        rollouts(rows)
    (tmp_path / "foreign.jsonl").write_text("")
    with pytest.raises(ValueError, match="does not say what made it"):
        rollouts(rows, "foreign.jsonl")


def test_what_is_complete_is_so_for_its_data_and_model_alone(tmp_path, problems):
    """Another model under the same name used to be "complete: nothing to do"."""
    path = copy_golden(tmp_path / "m")
    flags = ("--model", path, "--data", problems, "--out", "r.jsonl", "--limit", "2",
             "--max-new-tokens", "3", "--dtype", "float32")
    assert sample(tmp_path, *flags).returncode == 0
    assert "complete" in sample(tmp_path, *flags).stdout
    model = M.load(path)
    with torch.no_grad():
        model.head_weight[7] += 0.1
    M.save(model, path)
    done = sample(tmp_path, *flags)
    assert done.returncode == 2 and f"{path} has changed since r.jsonl was begun" in done.stderr


def test_a_policy_that_computes_nan_stops_everything(tmp_path, problems):
    """Finite weights, but log-probs that are not: a norm of 1e30 overflows in the next product."""
    path = copy_golden(tmp_path / "m")
    model = M.load(path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 1e30
        model.model.layers[0].mlp.down_proj.weight *= 1e30
    M.save(model, path)
    for script, more in (("sample.py", ("--max-new-tokens", "3")),
                         ("grpo.py", ("--max-prompt-tokens", "200", "--max-new-tokens", "8",
                                      "--prompts", "2", "--group", "2", "--steps", "3"))):
        done = run(tmp_path, "--model", path, "--data", problems, "--out", script[:4], *more,
                   "--dtype", "float32", script=script)
        assert done.returncode == 1, done.stderr
        assert "log-probs are not finite" in done.stderr.splitlines()[-1]
    write(tmp_path / "x.jsonl", [{"prompt": "1", "response": "2"}])     # and SFT, in one step
    done = run(tmp_path, "--model", path, "--data", "x.jsonl", "--out", "sft", "--max-length", "99",
               "--dtype", "float32", script="sft.py")
    assert done.returncode == 1 and "not finite" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "sft" / "model").exists() and not (tmp_path / "grpo" / "model").exists()


def test_command_names_the_file_and_line_of_a_bad_problem(tmp_path, problems):
    text = problems.read_text().splitlines()
    for line, words in (('{"id": 3', "not JSON"), ('{"id": "x"}', "not a problem")):
        problems.write_text("\n".join([text[0], "", line]))
        done = sample(tmp_path, "--data", problems, "--out", "r.jsonl")
        assert done.returncode == 2 and f"{problems}:3: {words}" in done.stderr
    assert not list(tmp_path.glob("r.jsonl*"))


def test_a_command_that_refused_leaves_nothing_behind(tmp_path, problems):
    write(problems, [{**read(problems)[0], "prompt": "x" * 600}])
    done = sample(tmp_path, "--data", problems, "--out", "out/r.jsonl")
    assert done.returncode == 2 and "the model's context is 512" in done.stderr
    assert os.listdir(tmp_path / "out") == []


def test_command_refuses_a_directory_without_tokenizer(tmp_path):
    os.remove(os.path.join(copy_golden(tmp_path / "m"), "tokenizer.json"))
    for name, words in (("m", "m: no tokenizer.json"), ("nowhere", "nowhere: no such directory")):
        done = sample(tmp_path, "--model", name, "--prompt", "x")
        assert done.returncode == 2 and words in done.stderr
