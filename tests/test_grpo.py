"""grpo.py: the loss by hand and by enumeration, one gradient however it is cut, runs that learn."""
import copy
import itertools
import math
import os
import shutil

import numpy
import pytest
import torch

import grpo
from engine.batches import Sequence
from engine.flags import stop
from engine.memory import rollout_plan
from engine.optimizer import AdamW
from helpers import (ALONE, POLICY_FLAGS, QWEN_1_5B, assert_equal_weights, assert_same, finish, gradients,
                     gradients_of, grpo_settings, metrics, naive_logprobs, one_line, random_groups,
                     read, repeats, run, run_here, sft_loss_one_by_one, tiny, weights, write)


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


def test_token_weights_by_hand():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    mask_64 = mask.double()
    assert torch.equal(grpo.token_weights(mask, "token"), mask_64 / 3)
    assert torch.equal(grpo.token_weights(mask, "token", denominator=6), mask_64 / 6)
    assert grpo.token_weights(mask, "sequence").tolist() == [[0.25, 0.25, 0], [0.5, 0, 0]]
    assert grpo.token_weights(mask, "sequence", 4).tolist() == [[1 / 8, 1 / 8, 0], [1 / 4, 0, 0]]
    assert torch.equal(grpo.token_weights(mask, "constant", 10), mask_64 / 10)
    with pytest.raises(ValueError, match="constant"):
        grpo.token_weights(mask, "constant")
    empty = torch.zeros(2, 3, dtype=torch.bool)             # nothing to train on is not 0 / 0
    assert grpo.token_weights(empty, "token").eq(0).all()
    assert grpo.token_weights(empty, "sequence").eq(0).all()


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
    assert abs(value(norm="sequence") + ((1.2 * 2 + 2) / 2 - 0.8) / 2) < 1e-12
    assert abs(value(norm="constant", denominator=10) + (1.2 * 2 + 2 - 0.8) / 10) < 1e-12
    ref = doubles([0.5, 0.6], [0.25, 0.9]).log()    # only the third differs
    k3 = 0.5 - 1 - math.log(0.5)
    assert abs(value(reference=ref, beta=0.3) - value() - 0.3 * k3 / 3) < 1e-12


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
                          reference=torch.full((2, 2), -1.0), beta=1.0)
    loss.backward()
    assert loss.isfinite() and new.grad[:, 0].isfinite().all() and new.grad[:, 1].eq(0).all()


def test_k3_is_the_kl_in_expectation_and_never_negative():
    torch.manual_seed(0)
    p, q = (torch.randn(50).double().log_softmax(-1) for _ in range(2))
    found = grpo.k3(p, q, torch.ones(50, dtype=torch.bool))
    assert (found >= 0).all()
    assert abs((p.exp() * found).sum() - (p.exp() * (p - q)).sum()) < 1e-12


# ---- the gradient ----------------------------------------------------------------------------
def enumerated(longest):
    """A model of 4 tokens with every answer of at most `longest`, and made-up rewards."""
    model = tiny(dtype=torch.float64, vocab_size=4)
    answers = [[*body, 0] for n in range(longest)
               for body in itertools.product([1, 2, 3], repeat=n)]
    answers += [list(body) for body in itertools.product([1, 2, 3], repeat=longest)]
    rewards = torch.tensor([(7 * sum(a) + 3 * len(a)) % 5 for a in answers]).double()
    return model, answers, rewards


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_gradient_is_that_of_expected_reward(temperature):
    """All answers of a tiny vocabulary enumerated: J and its gradient are exact."""
    prompt, (model, answers, rewards) = [1, 2], enumerated(3)
    logp = torch.stack([naive_logprobs(model, torch.tensor([prompt + a]), temperature)[0, 1:].sum()
                        for a in answers])
    assert abs(logp.exp().sum().item() - 1) < 1e-12         # an answer ends, or is cut off at 3
    J = (logp.exp() * rewards).sum()
    (-J).backward()
    expected = gradients(model)

    chances = logp.detach().exp()
    values = chances * (rewards - J.item())                 # any baseline; expectation, not samples
    groups = [[grpo.Answer(Sequence(numpy.array(prompt + a, dtype=numpy.int32), 2),
                           torch.full((len(a),), float(v)), torch.zeros(len(a)))
               for a, v in zip(answers, values)]]
    [found], _ = gradients_of(model, groups, norm="constant", max_new_tokens=1,
                             temperature=temperature)
    assert_same({k: v * len(answers) for k, v in found.items()}, expected, 1e-6)  # fp32 advantages


@pytest.mark.parametrize("longest, left", [(1, 1e-6), (3, 0.6)])
def test_correct_repairs_a_sampler_that_is_wrong(longest, left):
    """Answers drawn at temperature 0.8 and trained at 1, in expectation: how far the gradient is
    from the true one, as a share of how far it is without the correction. For answers of one token
    nothing is left. Of longer ones the weights correct each token, but not how often the sampler
    came to the place where it stands."""
    model, answers, rewards = enumerated(longest)
    wrong, true = ([naive_logprobs(model, torch.tensor([[1, 2] + a]), temperature)[0, 1:]
                    for a in answers] for temperature in (0.8, 1.0))
    J = sum(logp.sum().exp() * r for logp, r in zip(true, rewards))
    (-J).backward()
    exact = gradients(model)

    def found(**changes):
        group = []
        for a, logp, r in zip(answers, wrong, rewards):
            A = torch.full((len(a),), float((logp.sum().exp() * (r - J)).detach()),
                           dtype=torch.float64)
            group.append(grpo.Answer(Sequence(numpy.array([1, 2] + a, dtype=numpy.int32), 2), A,
                                     logp.detach()))
        [sums], _ = gradients_of(model, [group], norm="constant", max_new_tokens=1, **changes)
        return sum((g * len(answers) - exact[name]).square().sum() for name, g in sums.items())**0.5
    assert found() > 0.05 * sum(g.square().sum() for g in exact.values())**0.5
    assert found(correct=100.0) < left * found()
    assert found(correct=100.0) <= found(correct=1.1) < found()     # cut short, it repairs a part


def test_correct_changes_nothing_where_both_agree_and_never_weighs_above_its_limit():
    model = tiny(dtype=torch.float64)
    groups = random_groups(model)
    [plain], _ = gradients_of(model, groups)
    [corrected], _ = gradients_of(model, groups, correct=2.0, pack=False, micro_tokens=30)
    assert_same(corrected, plain, 1e-12)
    for answer in sum(groups, []):
        answer.logprobs = answer.logprobs - 5       # The sampler called all of it unlikely.
    [limited], _ = gradients_of(model, groups, correct=2.0)
    assert_same(limited, {name: 2 * g for name, g in plain.items()}, 1e-12)


@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_gradient_does_not_depend_on_how_the_batch_is_cut(norm):
    model = tiny(dtype=torch.float64)
    groups, reference = random_groups(model), tiny(1, torch.float64)
    changes = {"norm": norm, "kl": 0.1, "temperature": 0.7}
    [expected], about = gradients_of(model, groups, reference, pack=False, micro_tokens=1, **changes)
    for pack, budget in itertools.product([True, False], [30, 80, 10**6]):
        [found], again = gradients_of(model, groups, reference, pack=pack, micro_tokens=budget,
                                     **changes)
        assert_same(found, expected)
        assert all(abs(about[key] - again[key]) < 1e-9 for key in about)


def test_sft_is_grpo_whose_advantages_are_one():
    model = tiny(dtype=torch.float64)
    groups = random_groups(model)
    for answer in sum(groups, []):
        answer.advantage = torch.ones_like(answer.advantage)
    for norm in ("token", "sequence"):
        [of_grpo], _ = gradients_of(model, groups, norm=norm)
        sft_loss_one_by_one(model, [a.sequence for a in sum(groups, [])], norm).backward()
        assert_same(of_grpo, gradients(model))


def test_answers_worth_nothing_are_counted_but_not_computed(monkeypatch):
    model = tiny(dtype=torch.float64)
    groups = random_groups(model)
    for answer in groups[1]:
        answer.advantage = torch.zeros_like(answer.advantage)
    [found], _ = gradients_of(model, groups)
    [with_all], _ = gradients_of(model, groups, tiny(1, torch.float64), kl=1e-30)    # computes all
    assert_same(found, with_all)
    [fewer], _ = gradients_of(model, groups[:1] + groups[2:])
    name = next(iter(found))
    assert not torch.allclose(found[name], fewer[name], rtol=1e-3, atol=0)  # the count is smaller
    for answer in sum(groups, []):
        answer.advantage = torch.zeros_like(answer.advantage)
    monkeypatch.setattr(grpo, "response_logprobs", lambda *a: pytest.fail("computed for nothing"))
    [nothing], about = gradients_of(model, groups)
    assert all(g.eq(0).all() for g in nothing.values()) and about["loss"] == 0


def test_the_first_update_has_ratio_one_and_later_ones_clip(monkeypatch):
    model = tiny()
    groups, ratios, clipped, real = random_groups(model, n=6), [], [], grpo.grpo_loss

    def watched(new, old, A, mask, *rest):
        ratios.append((new - old).exp()[mask].detach())
        clipped.append(torch.where(A[mask] > 0, ratios[-1] > 1.2, ratios[-1] < 0.8) & (A[mask] != 0))
        return real(new, old, A, mask, *rest)

    def step(**changes):
        settings = grpo_settings(**changes)
        return grpo.GRPO(settings, ALONE, model, AdamW(model, settings)).update(groups, 3e-2)
    monkeypatch.setattr(grpo, "grpo_loss", watched)
    before = copy.deepcopy(model.state_dict())
    step(passes=1)
    assert torch.cat(ratios).eq(1).all()
    model.load_state_dict(before)
    ratios.clear()
    clipped.clear()
    trained = step(passes=3, minibatches=2)
    assert len(ratios) == 6 and ratios[0].eq(1).all()
    assert all((r - 1).abs().max() > 1e-3 for r in ratios[1:])      # old is from before them all
    share = torch.cat(clipped).double().mean().item()
    assert share > 0 and abs(trained["clip_fraction"] - share) < 1e-12
    model.load_state_dict(before)
    clipped.clear()
    for answer in groups[0]:                    # With --kl an answer without an advantage is trained
        answer.advantage = torch.zeros_like(answer.advantage)       # on, but there is no clip.
    policy = grpo.GRPO(settings := grpo_settings(passes=3, kl=0.1), ALONE, model,
                       AdamW(model, settings), copy.deepcopy(model))
    trained = policy.update(groups, 3e-2)
    share = torch.cat(clipped).double().mean().item()
    assert share > 0 and abs(trained["clip_fraction"] - share) < 1e-12


def test_minibatches_share_the_prompts_out():
    model = tiny(dtype=torch.float64)
    groups = random_groups(model, prompts=4)
    seen, _ = gradients_of(model, groups, minibatches=2, passes=2)
    assert len(seen) == 4
    for i, part in enumerate((groups[:2], groups[2:])):
        [alone], _ = gradients_of(model, part)
        assert_same(seen[i], alone)
        assert_same(seen[i + 2], alone)                     # Frozen: the second pass is the first


def test_credit_gives_every_token_its_answers_advantage():
    group = [{"reward": r, "prompt_tokens": [1, 2], "tokens": [3] * n + [0],
              "logprobs": [-1.0] * (n + 1)} for r, n in ((1.0, 1), (0.0, 2), (0.0, 0), (0.0, 3))]
    method = grpo.GRPO(grpo_settings(std_norm=False), ALONE, None, None)
    [answers] = method.credit([group])
    assert [a.advantage.tolist() for a in answers] == [
        [0.75] * 2, [-0.25] * 3, [-0.25], [-0.25] * 4]
    assert answers[1].sequence.tokens.tolist() == [1, 2, 3, 3, 0] and answers[1].sequence.start == 2
    assert answers[1].logprobs.tolist() == [-1.0] * 3


# ---- the command -----------------------------------------------------------------------------
def test_thirty_steps_learn(toy, tmp_path):
    done = run(toy, *POLICY_FLAGS, "--out", tmp_path / "r", "--steps", "30", "--eval", "held_out.jsonl",
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
    assert last["entropy"] < found[1]["entropy"] and last["kl"] > 0
    assert all(row["sampler_gap"] < 1e-4 for row in found[1:])      # it trains what it sampled
    files = sorted(os.listdir(tmp_path / "r" / "rollouts"))
    assert files == [f"step-{i:06d}.jsonl" for i in (28, 29, 30)]
    sampled = read(tmp_path / "r" / "rollouts" / files[-1])
    assert len(sampled) == 128
    assert abs(sum(r["reward"] for r in sampled) / 128 - last["reward"]) < 1e-9
    bare = [r["reward"] for r in sampled if r["response"].startswith("\\boxed")
            and r["response"].count("\\boxed") == 1]
    assert last["styles"]["bare"] == {"share": len(bare) / 128, "right": sum(bare) / len(bare)}
    assert {"id", "task", "prompt", "gold", "response", "tokens", "logprobs", "finished", "reward",
            "step", "sample"} <= sampled[0].keys()
    text = (tmp_path / "r" / "texts" / "step-000030.txt").read_text()
    assert sampled[0]["prompt"] in text and sampled[0]["response"] in text

    past = run(toy, *POLICY_FLAGS, "--out", tmp_path / "r", "--steps", "30", "--eval", "held_out.jsonl",
               "--eval-n", "4", "--eval-temperature", "1", "--eval-max-new-tokens", "12",
               "--resume", "--keep-at", "7", script="grpo.py")
    assert past.returncode == 2 and "keep_at = [7]: the run is past that" in past.stderr

    # The buffer trains the base, as it is: re-distillation.
    again = run(toy, "--model", "base/model", "--data", tmp_path / "r" / "rollouts" / files[-1],
                "--out", tmp_path / "sft", "--max-length", "128")
    assert again.returncode == 0, again.stderr


def test_killed_and_resumed_is_the_same_run_bit_by_bit(toy, tmp_path):
    flags = (*POLICY_FLAGS, "--steps", "30", "--save-every", "3", "--eval", "held_out.jsonl",
             "--eval-every", "7", "--eval-max-new-tokens", "12", "--kl-every", "2", "--passes",
             "2", "--minibatches", "2", "--kl", "0.01", "--keep-at", "5", "30")
    finish(toy, tmp_path / "whole", *flags, script="grpo.py")
    finish(toy, tmp_path / "killed", *flags, script="grpo.py", kills=2, seed=1)
    a, b = metrics(tmp_path / "whole"), metrics(tmp_path / "killed")
    assert a == b and a[-1]["step"] == 30
    for name in ("model", "best", "step-000005", "step-000030"):
        assert_equal_weights(weights(tmp_path / "whole", name), weights(tmp_path / "killed", name))
    early, last, end = (weights(tmp_path / "whole", name)
                        for name in ("step-000005", "step-000030", "model"))
    assert_equal_weights(last, end)                                     # of the step it names
    assert not any(torch.equal(early[key], end[key]) for key in end)
    for folder in ("rollouts", "texts"):
        names = sorted(os.listdir(tmp_path / "whole" / folder))
        assert names == sorted(os.listdir(tmp_path / "killed" / folder)) and len(names) == 30
        for name in names:
            assert (tmp_path / "whole" / folder / name).read_bytes() == \
                (tmp_path / "killed" / folder / name).read_bytes()


def test_two_ranks_train_the_same_model_as_one(toy, tmp_path):
    for ranks in (1, 2):
        done = run(toy, *POLICY_FLAGS, "--out", tmp_path / str(ranks), "--steps", "5", "--passes", "2",
                   "--minibatches", "2", "--kl", "0.01", "--eval",
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
    flags = (*POLICY_FLAGS, "--out", tmp_path / "r", "--save-every", "2", "--steps")
    assert run(toy, *flags, "2", script="grpo.py").returncode == 0
    assert run(toy, *flags, "4", "--resume", script="grpo.py").returncode == 0
    assert [row["step"] for row in metrics(tmp_path / "r")] == [1, 2, 3, 4]
    whole = run(toy, *POLICY_FLAGS, "--out", tmp_path / "w", "--steps", "4", script="grpo.py")
    assert whole.returncode == 0
    assert_equal_weights(weights(tmp_path / "r"), weights(tmp_path / "w"))

    # A kill while the model of step 4 was saved leaves that of step 2: it is not "complete".
    shutil.rmtree(tmp_path / "r" / "model")
    shutil.copytree(tmp_path / "r" / "checkpoint-000002" / "model", tmp_path / "r" / "model")
    again = run(toy, *flags, "4", "--resume", script="grpo.py")
    assert again.returncode == 0 and "complete" not in again.stdout
    assert_equal_weights(weights(tmp_path / "r"), weights(tmp_path / "w"))
    assert "complete" in run(toy, *flags, "4", "--resume", script="grpo.py").stdout
    (tmp_path / "r" / "model" / "model.safetensors").unlink()
    assert run(toy, *flags, "4", "--resume", script="grpo.py").returncode == 0
    assert_equal_weights(weights(tmp_path / "r"), weights(tmp_path / "w"))
    fewer = run(toy, *flags, "3", "--resume", script="grpo.py")
    assert fewer.returncode == 2 and "steps = 3: the run is at step 4 already" in fewer.stderr


def test_a_kill_in_the_first_step_is_gone_on_from(toy, tmp_path, monkeypatch):
    """It left rollouts, and no line of metrics yet."""
    monkeypatch.chdir(toy)
    flags = (*POLICY_FLAGS, "--out", str(tmp_path / "r"), "--steps", "1")
    monkeypatch.setattr(grpo.Trainer, "log", lambda self, step, groups, *_: (
        self.run.write_rollouts(step, groups), os.close(self.run.lock), stop("killed")))
    with pytest.raises(SystemExit):
        run_here(grpo, *flags)
    refused = run(toy, *flags, script="grpo.py")
    assert refused.returncode == 2 and "holds a run: --resume goes on with it" in refused.stderr
    assert run(toy, *flags, "--resume", script="grpo.py").returncode == 0
    assert [row["step"] for row in metrics(tmp_path / "r")] == [1]


def test_steps_without_a_gradient_and_prompts_too_long(toy, tmp_path):
    """Answers of one token are all wrong: groups of equal rewards, and weights that do not move."""
    write(tmp_path / "data.jsonl", repeats(20) + [
        repeats(1)[0] | {"id": "long", "prompt": "1" * 40 + "="}])
    done = run(toy, *POLICY_FLAGS, "--data", tmp_path / "data.jsonl", "--out", tmp_path / "r", "--steps",
               "3", "--max-new-tokens", "1", "--weight-decay", "0", script="grpo.py")
    assert done.returncode == 0, done.stderr
    assert "1 of 21 problems are left out" in done.stderr
    assert [(row["equal_groups"], row["grad_norm"]) for row in metrics(tmp_path / "r")] == [(1, 0)] * 3
    assert_equal_weights(weights(tmp_path / "r"), weights(toy / "base"))


def test_a_kl_weight_holds_the_policy_back(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(toy)
    for name, kl in (("free", "0"), ("held", "1.0")):
        run_here(grpo, *POLICY_FLAGS, "--out", tmp_path / name, "--steps", "12", "--kl-every", "6", "--kl",
                 kl)
    assert metrics(tmp_path / "held")[-1]["kl"] < 0.5 * metrics(tmp_path / "free")[-1]["kl"]


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
    (["--steps", "0"], "steps = 0"),
    (["--correct", "-1"], "correct = -1"),
    (["--n", "8"], "--n"),
])
def test_mistakes_are_one_line_before_any_model_is_loaded(toy, tmp_path, monkeypatch, capsys, flags,
                                                          words):
    problem = repeats(1)[0]
    write(toy / "empty.jsonl", [])
    write(toy / "no_gold.jsonl", [problem | {"gold": None}])
    write(toy / "odd.jsonl", [problem | {"task": "chess"}])
    (toy / "broken.jsonl").write_text("{\n")
    monkeypatch.setattr("engine.training.load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.chdir(toy)
    with pytest.raises(SystemExit) as end:
        run_here(grpo, *POLICY_FLAGS, "--out", tmp_path / "never", *flags)
    assert end.value.code == 2 and words in one_line(capsys)
    assert not (tmp_path / "never").exists()


# ---- memory ----------------------------------------------------------------------------------
@pytest.mark.parametrize("offload, card", [(False, 40e9), (True, 24e9)])
def test_the_papers_run_fits_the_card(offload, card):
    """1.5B, fp32 masters, prompts of 1024 and answers of 4096 tokens, by the plan."""
    def plan(room, **changes):
        return rollout_plan(grpo_settings(offload=offload), QWEN_1_5B, torch.bfloat16, 1024, room,
                            **changes)
    found = plan(card)
    assert found.slots >= 32 and found.recompute and not found.keep_cache
    assert found.lines[0].startswith("memory to sample: weights 6.2 GB")
    assert found.lines[1].startswith("memory to train: weights 6.2 GB")
    assert plan(card, slots=20).slots == 20             # as many as before it was stopped
    assert plan(1e12).slots == 128 * 8 and plan(1e12, processes=2).slots == 64 * 8
    critic = "critic 12.3 GB" if offload else "critic 24.7 GB"      # AdamW's half is elsewhere
    assert critic in plan(card + 25e9, critic=True).lines[0]
    with pytest.raises(ValueError, match="does not fit"):
        plan(12e9)
