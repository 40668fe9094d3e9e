"""grpo.py: the loss by hand and by enumeration, one gradient however it is cut, runs that learn."""
import copy
import itertools
import json
import math
import os
import random
import sys

import numpy
import pytest
import torch

import grpo
import model as M
import sft
from test_model import naive_logprobs, tiny
from test_sft import (ALONE, CONFIG, assert_same, finish, gradients, metrics, repeats, run, weights,
                      write)


def settings(**changes):
    return grpo.Settings(**{"model": "", "data": [], "out": "", "lr": 1e-3, "temperature": 1.0,
                            **changes})


def random_groups(model, prompts=4, n=3, temperature=1.0, seed=0):
    """Answers with made-up advantages, and the log-probs that the model gives them."""
    rng, groups = random.Random(seed), []
    for _ in range(prompts):
        groups.append([])
        for _ in range(n):
            prompt, length = rng.randint(1, 9), rng.randint(1, 12)
            tokens = torch.tensor([[rng.randrange(50) for _ in range(prompt + length)]])
            logp = naive_logprobs(model, tokens, temperature)[0, prompt - 1:].detach()
            sequence = sft.Sequence(tokens[0].numpy().astype(numpy.int32), prompt)
            groups[-1].append(grpo.Answer(sequence, rng.uniform(-1, 1), logp))
    return groups


class Frozen:
    """An optimizer that keeps the gradient it is given and moves nothing."""

    def __init__(self, model):
        self.model, self.seen, self.skipped = model, [], 0

    def update(self, lr, loss):
        self.seen.append(gradients(self.model))
        for p in self.model.parameters():
            p.grad = None
        return 1.0


def gradient_of(model, groups, reference=None, **changes):
    frozen = Frozen(model)
    found = grpo.update(model, frozen, ALONE, groups, 1e-3, settings(**changes), reference)
    return frozen.seen, found


# ---- advantages ------------------------------------------------------------------------------
def test_advantages_by_hand():
    found = grpo.advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 1.0, 1.0]]))
    std = [math.sqrt((0.75**2 + 3 * 0.25**2) / 3), math.sqrt(2 / 3)]        # unbiased
    expected = [[x / (std[0] + 1e-6) for x in (0.75, -0.25, -0.25, -0.25)],
                [x / (std[1] + 1e-6) for x in (-1, 1, 0, 0)]]
    assert (found - torch.tensor(expected)).abs().max() < 1e-6
    plain = grpo.advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), std_norm=False)
    assert plain.tolist() == [[0.75, -0.25, -0.25, -0.25]]


def test_equal_rewards_are_worth_exactly_nothing():
    """The mean of seven times 0.1 is not 0.1 in fp32, and 1e-9 / 1e-6 would train on rounding."""
    rewards = torch.full((1, 7), 0.1)
    assert (rewards - rewards.mean()).abs().max() > 0
    assert grpo.advantages(rewards).eq(0).all() and grpo.advantages(rewards, False).eq(0).all()


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group of one"):
        grpo.advantages(torch.zeros(3, 1))


# ---- the loss --------------------------------------------------------------------------------
def test_loss_and_gradient_by_hand_on_three_tokens():
    """Two answers of 2 and 1 tokens over a vocabulary of 3; every number below is worked out."""
    def doubles(*rows):
        return torch.tensor(rows, dtype=torch.float64)
    logits = doubles([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]],
                     [[0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]]).log().requires_grad_()
    drawn = torch.tensor([[0, 1], [2, 0]])
    mask = torch.tensor([[True, True], [True, False]])
    new = logits.log_softmax(-1).gather(-1, drawn[..., None]).squeeze(-1)
    old = doubles([0.4, 0.6], [0.8, 0.1]).log()     # ratios 1.25, 1, 0.625
    A = doubles(2.0, -1.0)
    loss = grpo.grpo_loss(new, old, A, mask, clip=0.2, norm="token")
    # A > 0, ratio 1.25: clipped to 1.2. A < 0, ratio 0.625: clipped to 0.8. Only 1 x 2 is free.
    assert abs(loss.item() + (1.2 * 2 + 1 * 2 - 0.8) / 3) < 1e-12
    loss.backward()
    expected = torch.zeros(2, 2, 3).double()
    expected[0, 1] = -2 / 3 * (doubles(0, 1, 0) - doubles(0.1, 0.6, 0.3))
    assert (logits.grad - expected).abs().max() < 1e-12

    def value(**changes):
        return grpo.grpo_loss(new.detach(), old, A, mask, **changes).item()
    assert abs(value(clip=0.2, clip_high=0.3) + (1.25 * 2 + 2 - 0.8) / 3) < 1e-12
    assert abs(value(norm="sequence") + ((1.2 * 2 + 2) / 2 - 0.8) / 2) < 1e-12
    assert abs(value(norm="constant", total=10) + (1.2 * 2 + 2 - 0.8) / 10) < 1e-12
    entropy = doubles([0.7, 0.7], [0.7, 0.7])
    assert abs(value(entropy=entropy, entropy_bonus=0.1) - value() + 0.1 * 0.7) < 1e-12
    ref = doubles([0.5, 0.6], [0.25, 0.9]).log()    # only the third differs
    k3 = 0.5 - 1 - math.log(0.5)
    assert abs(value(reference=ref, kl=0.3) - value() - 0.3 * k3 / 3) < 1e-12


def test_the_clip_takes_the_pessimistic_side():
    """Gradient flows where the clip would make an answer look better than it is."""
    old, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    for ratio, A, flows in ((1.5, 1, False), (0.5, 1, True), (1.5, -1, True), (0.5, -1, False)):
        new = torch.tensor([[math.log(ratio)]], requires_grad=True)
        grpo.grpo_loss(new, old, torch.tensor([float(A)]), mask).backward()
        assert (new.grad.item() != 0) == flows


def test_what_is_masked_cannot_poison_the_rest():
    new = torch.tensor([[-1.0, 1000.0], [-1.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    loss = grpo.grpo_loss(new, torch.full((2, 2), -1.0), torch.ones(2), mask,
                          reference=torch.full((2, 2), -1.0), kl=1.0)
    loss.backward()
    assert loss.isfinite() and new.grad[:, 0].isfinite().all() and new.grad[:, 1].eq(0).all()


def test_k3_is_the_kl_in_expectation_and_never_negative():
    torch.manual_seed(0)
    p, q = (torch.randn(50).double().log_softmax(-1) for _ in range(2))
    found = grpo.k3(p, q, torch.ones(50, dtype=torch.bool))
    assert (found >= 0).all()
    assert abs((p.exp() * found).sum() - (p.exp() * (p - q)).sum()) < 1e-12


# ---- the gradient ----------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_gradient_is_that_of_expected_reward(temperature):
    """All answers of a tiny vocabulary enumerated: J and its gradient are exact."""
    model, end, longest, prompt = tiny(dtype=torch.float64, vocab_size=4), 0, 3, [1, 2]
    answers = [list(body) + [end] for n in range(longest)
               for body in itertools.product([1, 2, 3], repeat=n)]
    answers += [list(body) for body in itertools.product([1, 2, 3], repeat=longest)]
    rewards = torch.tensor([(7 * sum(a) + 3 * len(a)) % 5 for a in answers]).double()
    logp = torch.stack([naive_logprobs(model, torch.tensor([prompt + a]), temperature)[0, 1:].sum()
                        for a in answers])
    assert abs(logp.exp().sum().item() - 1) < 1e-12         # an answer ends, or is cut off at 3
    J = (logp.exp() * rewards).sum()
    (-J).backward()
    expected = gradients(model)

    chances = logp.detach().exp()
    values = chances * (rewards - J.item())                 # any baseline; expectation, not samples
    groups = [[grpo.Answer(sft.Sequence(numpy.array(prompt + a, dtype=numpy.int32), 2), float(v),
                           torch.zeros(len(a))) for a, v in zip(answers, values)]]
    [found], _ = gradient_of(model, groups, norm="constant", max_new_tokens=1,
                             temperature=temperature)
    assert_same({k: v * len(answers) for k, v in found.items()}, expected, 1e-6)  # fp32 advantages


@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_gradient_does_not_depend_on_how_the_batch_is_cut(norm):
    model = tiny(dtype=torch.float64)
    groups, reference = random_groups(model), tiny(1, torch.float64)
    changes = {"norm": norm, "kl": 0.1, "entropy_bonus": 0.01, "temperature": 0.7}
    [expected], about = gradient_of(model, groups, reference, pack=False, micro_tokens=1, **changes)
    for pack, budget in itertools.product([True, False], [30, 80, 10**6]):
        [found], again = gradient_of(model, groups, reference, pack=pack, micro_tokens=budget,
                                     **changes)
        assert_same(found, expected)
        assert all(abs(about[key] - again[key]) < 1e-9 for key in about)


def test_sft_is_grpo_whose_advantages_are_one():
    model = tiny(dtype=torch.float64)
    groups = random_groups(model)
    for answer in sum(groups, []):
        answer.advantage = 1.0
    for norm in ("token", "sequence"):
        [found], _ = gradient_of(model, groups, norm=norm)
        sft.gradient(model, ALONE, [a.sequence for a in sum(groups, [])],
                     sft.Settings(data=[], out="", norm=norm))
        assert_same(found, gradients(model))


def test_answers_worth_nothing_are_counted_but_not_computed(monkeypatch):
    model = tiny(dtype=torch.float64)
    groups = random_groups(model)
    for answer in groups[1]:
        answer.advantage = 0.0
    [found], _ = gradient_of(model, groups)
    [with_all], _ = gradient_of(model, groups, tiny(1, torch.float64), kl=1e-30)    # computes all
    assert_same(found, with_all)
    [fewer], _ = gradient_of(model, groups[:1] + groups[2:])
    name = next(iter(found))
    assert not torch.allclose(found[name], fewer[name], rtol=1e-3, atol=0)  # the count is smaller
    for answer in sum(groups, []):
        answer.advantage = 0.0
    monkeypatch.setattr(sft, "response_logprobs", lambda *a: pytest.fail("computed for nothing"))
    [nothing], about = gradient_of(model, groups)
    assert all(g.eq(0).all() for g in nothing.values()) and about["loss"] == 0


def test_the_first_update_has_ratio_one_and_later_ones_clip():
    model = tiny()
    groups, ratios, clipped, real = random_groups(model, n=6), [], [], grpo.grpo_loss

    def watched(new, old, A, mask, *rest):
        ratios.append((new - old).exp()[mask].detach())
        up = A[mask] > 0
        clipped.append(torch.where(up, ratios[-1] > 1.2, ratios[-1] < 0.8))
        return real(new, old, A, mask, *rest)
    grpo.grpo_loss, kept = watched, copy.deepcopy(model.state_dict())
    try:
        s = settings(updates=1)
        grpo.update(model, sft.AdamW(model, s), ALONE, groups, 3e-2, s, None)
        assert torch.cat(ratios).eq(1).all()
        model.load_state_dict(kept)
        ratios.clear()
        clipped.clear()
        s = settings(updates=3, minibatches=2)
        found = grpo.update(model, sft.AdamW(model, s), ALONE, groups, 3e-2, s, None)
    finally:
        grpo.grpo_loss = real
    assert len(ratios) == 6 and ratios[0].eq(1).all()
    assert all((r - 1).abs().max() > 1e-3 for r in ratios[1:])      # old is from before them all
    share = torch.cat(clipped).double().mean().item()
    assert share > 0 and abs(found["clip_fraction"] - share) < 1e-12


def test_minibatches_share_the_prompts_out():
    model = tiny(dtype=torch.float64)
    groups = random_groups(model, prompts=4)
    seen, _ = gradient_of(model, groups, minibatches=2, updates=2)
    assert len(seen) == 4
    for i, part in enumerate((groups[:2], groups[2:])):
        [alone], _ = gradient_of(model, part)
        assert_same(seen[i], alone)
        assert_same(seen[i + 2], alone)                     # Frozen: the second pass is the first


def rows(*rewards, finished=True):
    return [{"reward": float(r), "finished": finished, "prompt_tokens": [1, 2], "tokens": [3, 0],
             "logprobs": [-1.0, -2.0]} for r in rewards]


def test_cut_off_answers():
    group = rows(1, 0) + rows(0, 0, finished=False)
    [plain] = grpo.to_train_on([group], settings(std_norm=False))
    assert [a.advantage for a in plain] == [0.75, -0.25, -0.25, -0.25]
    [masked] = grpo.to_train_on([group], settings(std_norm=False, cut_off="mask"))
    assert [a.advantage for a in masked] == [0.75, -0.25]
    [penal] = grpo.to_train_on([group], settings(std_norm=False, cut_off="penalty",
                                                 cut_off_penalty=1.0))
    assert [a.advantage for a in penal] == [1.25, 0.25, -0.75, -0.75]   # of 1, 0, -1, -1
    both_wrong = rows(0) + rows(0, finished=False)
    assert grpo.is_equal(both_wrong, settings())
    assert not grpo.is_equal(both_wrong, settings(cut_off="penalty"))   # one is worth less
    assert plain[0].sequence.tokens.tolist() == [1, 2, 3, 0] and plain[0].sequence.start == 2
    assert grpo.to_train_on([], settings()) == []


# ---- the command -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A model that repeats a digit, the right one in 3 of 10 of its lessons."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng, lessons = random.Random(0), repeats(400)
    for row in lessons:
        if rng.random() < 0.7:
            row["response"] = f"\\boxed{{{row['prompt'][0]}}}"
    write(folder / "lessons.jsonl", lessons)
    write(folder / "train.jsonl", repeats(200, seed=2))
    write(folder / "held_out.jsonl", repeats(60, seed=1))
    made = run(folder, "--init", "config.json", "--data", "lessons.jsonl", "--out", "base", "--lr",
               "5e-3", "--batch", "16", "--epochs", "24", "--beta2", "0.95", "--max-length", "128")
    assert made.returncode == 0, made.stderr
    return folder


BASIC = ("--model", "base/model", "--data", "train.jsonl", "--prompts", "16", "--group", "8",
         "--max-prompt-tokens", "16", "--max-new-tokens", "12", "--temperature", "1", "--lr",
         "2e-3")


def test_thirty_steps_learn(toy, tmp_path):
    done = run(toy, *BASIC, "--out", tmp_path / "r", "--steps", "30", "--eval", "held_out.jsonl",
               "--eval-n", "4", "--eval-temperature", "1", "--eval-max-new-tokens", "12",
               "--rollouts", "3", script="grpo.py")
    assert done.returncode == 0, done.stderr
    found = metrics(tmp_path / "r")
    assert found[0]["step"] == 0 and found[0]["eval"]["accuracy"] < 0.5
    assert found[-1]["eval"]["accuracy"] > found[0]["eval"]["accuracy"] + 0.3
    last = found[-1]
    for name in ("reward", "equal_groups", "length", "longest", "cut_off", "entropy", "loss", "lr",
                 "grad_norm", "clip_fraction", "sampler_gap", "samples", "tokens", "kl"):
        assert math.isfinite(last[name]), name
    assert last["samples"] == 30 * 16 * 8 and set(last["by_level"]) == {"0", "1"}
    shares = last["styles"].values()
    assert abs(sum(of["share"] for of in shares) - 1) < 1e-9
    assert abs(sum(of["share"] * of["right"] for of in shares) - last["reward"]) < 1e-9
    assert last["entropy"] < found[1]["entropy"] and last["kl"] > 0
    assert all(row["sampler_gap"] < 1e-4 for row in found[1:])      # it trains what it sampled
    files = sorted(os.listdir(tmp_path / "r" / "rollouts"))
    assert files == [f"step-{i:06d}.jsonl" for i in (28, 29, 30)]
    sampled = [json.loads(line) for line in open(tmp_path / "r" / "rollouts" / files[-1])]
    assert len(sampled) == 128
    assert abs(sum(r["reward"] for r in sampled) / 128 - last["reward"]) < 1e-9
    assert {"id", "task", "prompt", "gold", "response", "tokens", "logprobs", "finished", "reward",
            "step", "sample"} <= sampled[0].keys()
    text = (tmp_path / "r" / "texts" / "step-000030.txt").read_text()
    assert sampled[0]["prompt"] in text and sampled[0]["response"] in text

    past = run(toy, *BASIC, "--out", tmp_path / "r", "--steps", "30", "--eval", "held_out.jsonl",
               "--eval-n", "4", "--eval-temperature", "1", "--eval-max-new-tokens", "12",
               "--resume", "--keep-at", "7", script="grpo.py")
    assert past.returncode == 2 and "keep_at = [7]: the run is past that" in past.stderr

    # The buffer trains the base, as it is: re-distillation.
    again = run(toy, "--model", "base/model", "--data", tmp_path / "r" / "rollouts" / files[-1],
                "--out", tmp_path / "sft", "--max-length", "128")
    assert again.returncode == 0, again.stderr


def test_killed_and_resumed_is_the_same_run_bit_by_bit(toy, tmp_path):
    flags = (*BASIC, "--steps", "30", "--save-every", "3", "--eval", "held_out.jsonl",
             "--eval-every", "7", "--eval-max-new-tokens", "12", "--kl-every", "2", "--updates",
             "2", "--minibatches", "2", "--equal-groups", "resample", "--kl", "0.01", "--keep-at",
             "5", "30")
    finish(toy, tmp_path / "whole", *flags, script="grpo.py")
    finish(toy, tmp_path / "killed", *flags, script="grpo.py", kills=2, seed=1)
    a, b = metrics(tmp_path / "whole"), metrics(tmp_path / "killed")
    assert a == b and a[-1]["step"] == 30
    for name in ("model", "best", "step-000005", "step-000030"):
        a, b = weights(tmp_path / "whole", name), weights(tmp_path / "killed", name)
        assert all(torch.equal(a[key], b[key]) for key in a)
    early, end = weights(tmp_path / "whole", "step-000005"), weights(tmp_path / "whole")
    assert all(torch.equal(a[key], end[key]) for key in end)            # of the step it names
    assert not any(torch.equal(early[key], end[key]) for key in end)
    for folder in ("rollouts", "texts"):
        names = sorted(os.listdir(tmp_path / "whole" / folder))
        assert names == sorted(os.listdir(tmp_path / "killed" / folder)) and len(names) == 30
        for name in names:
            assert (tmp_path / "whole" / folder / name).read_bytes() == \
                (tmp_path / "killed" / folder / name).read_bytes()


def test_two_ranks_train_the_same_model_as_one(toy, tmp_path):
    for ranks in (1, 2):
        done = run(toy, *BASIC, "--out", tmp_path / str(ranks), "--steps", "5", "--updates", "2",
                   "--minibatches", "2", "--kl", "0.01", "--equal-groups", "resample", "--eval",
                   "held_out.jsonl", "--eval-max-new-tokens", "12", script="grpo.py", ranks=ranks)
        assert done.returncode == 0, done.stderr
    a, b = (metrics(tmp_path / name) for name in "12")
    assert [row["step"] for row in a] == [row["step"] for row in b] == list(range(6))
    for one, two in zip(a, b):
        for name in ("reward", "tokens", "samples", "equal_groups", "eval"):
            assert one.get(name) == two.get(name), name
        assert abs(one.get("grad_norm", 1) / two.get("grad_norm", 1) - 1) < 1e-3
    one, two, start = weights(tmp_path / "1"), weights(tmp_path / "2"), weights(toy / "base")
    for key in one:     # a key's bias adds nearly the same to all scores: Adam makes steps of rounding
        assert (one[key] - two[key]).abs().max() < (1e-3 if "k_proj.bias" in key else 1e-5), key
    assert min((one[key] - start[key]).abs().max() for key in one) > 1e-3


def test_more_steps_may_be_asked_of_a_run(toy, tmp_path):
    flags = (*BASIC, "--out", tmp_path / "r", "--save-every", "2", "--steps")
    assert run(toy, *flags, "2", script="grpo.py").returncode == 0
    assert run(toy, *flags, "4", "--resume", script="grpo.py").returncode == 0
    assert [row["step"] for row in metrics(tmp_path / "r")] == [1, 2, 3, 4]
    whole = run(toy, *BASIC, "--out", tmp_path / "w", "--steps", "4", script="grpo.py")
    assert whole.returncode == 0
    a, b = weights(tmp_path / "r"), weights(tmp_path / "w")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_steps_without_a_gradient_and_prompts_too_long(toy, tmp_path):
    """Answers of one token are all wrong; with these groups dropped, nothing is left to train on."""
    write(tmp_path / "data.jsonl", repeats(20) + [repeats(1)[0] | {"prompt": "1" * 40 + "="}])
    done = run(toy, *BASIC, "--data", tmp_path / "data.jsonl", "--out", tmp_path / "r", "--steps",
               "3", "--max-new-tokens", "1", "--equal-groups", "drop", script="grpo.py")
    assert done.returncode == 0, done.stderr
    assert "1 of 21 problems are left out" in done.stderr
    assert [(row["equal_groups"], row["grad_norm"]) for row in metrics(tmp_path / "r")] == [(1, 0)] * 3
    a, b = weights(tmp_path / "r"), weights(toy / "base")
    assert all(torch.equal(a[key], b[key]) for key in a)


def in_process(toy, monkeypatch, out, *flags):
    monkeypatch.chdir(toy)
    monkeypatch.setattr(sys, "argv", ["grpo.py", *BASIC, "--out", str(out), *flags])
    grpo.main()
    return metrics(out)


def test_options_do_what_they_say(toy, tmp_path, monkeypatch):
    def last(name, *flags):
        return in_process(toy, monkeypatch, tmp_path / name, "--steps", "12", "--kl-every", "6",
                          *flags)
    plain = last("plain")
    held = last("kl", "--kl", "1.0")
    assert held[-1]["kl"] < 0.5 * plain[-1]["kl"]
    spread = last("entropy", "--entropy-bonus", "1.0")
    assert spread[-1]["entropy"] > plain[-1]["entropy"] + 0.1
    drawn = last("resample", "--equal-groups", "resample")
    assert drawn[-1]["samples"] > plain[-1]["samples"]
    # Without them in the count, the same gradient is longer.
    first, dropped = plain[0], last("drop", "--equal-groups", "drop")[0]
    assert first["reward"] == dropped["reward"] and 0 < first["equal_groups"] < 1
    assert dropped["grad_norm"] > first["grad_norm"]


@pytest.mark.parametrize("flags, words", [
    (["--group", "1"], "group = 1"),
    (["--temperature", "0"], "temperature = 0"),
    (["--keep-at", "5", "200"], "keep_at = [200]: there are steps 1 to 100"),
    (["--prompts", "10", "--minibatches", "4"], "10 cannot be cut into 4"),
    (["--max-new-tokens", "500"], "the model's context is 128"),
    (["--max-prompt-tokens", "2"], "none of 200 prompts"),
    (["--data", "empty.jsonl"], "no problems"),
    (["--data", "no_gold.jsonl"], "no_gold.jsonl:1: its gold is null"),
    (["--data", "odd.jsonl"], "unknown task"),
    (["--data", "broken.jsonl"], "broken.jsonl:1"),
    (["--eval", "no_gold.jsonl"], "no_gold.jsonl:1: its gold is null"),
    (["--temperature", "inf"], "temperature = inf"),
    (["--kl", "nan"], "kl = nan"),
    (["--model", "nowhere"], "nowhere"),
    (["--clip", "1.5"], "clip = 1.5"),
    (["--norm", "mean"], "norm = mean"),
    (["--equal-groups", "skip"], "equal_groups = skip"),
    (["--steps", "0"], "steps = 0"),
    (["--n", "8"], "--n"),
])
def test_mistakes_are_one_line_before_any_model_is_loaded(toy, tmp_path, monkeypatch, capsys, flags,
                                                          words):
    problem = repeats(1)[0]
    write(toy / "empty.jsonl", [])
    write(toy / "no_gold.jsonl", [problem | {"gold": None}])
    write(toy / "odd.jsonl", [problem | {"task": "chess"}])
    (toy / "broken.jsonl").write_text("{\n")
    monkeypatch.setattr(M, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as end:
        in_process(toy, monkeypatch, tmp_path / "never", *flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "never").exists()


# ---- memory ----------------------------------------------------------------------------------
@pytest.mark.parametrize("offload, card", [(False, 40e9), (True, 24e9)])
def test_the_papers_run_fits_the_card(offload, card, capsys):
    """1.5B, fp32 masters, prompts of 1024 and answers of 4096 tokens, by the plan."""
    from test_sft import QWEN_1_5B
    ranks, state = sft.Ranks("cpu"), type("Run", (), {"first": True, "state": {}})()
    slots, stays, recompute = grpo.plan(settings(offload=offload), QWEN_1_5B, torch.bfloat16, ranks,
                                        1024, state, card)
    lines = capsys.readouterr().err.splitlines()
    assert slots >= 32 and recompute and not stays and state.state == {"slots": slots}
    assert lines[0].startswith("memory to sample: weights 6.17") and "memory to train" in lines[1]
    with pytest.raises(ValueError, match="does not fit"):
        grpo.plan(settings(offload=offload), QWEN_1_5B, torch.bfloat16, ranks, 1024, state, 12e9)
