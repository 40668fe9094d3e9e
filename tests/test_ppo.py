"""ppo.py: advantages by hand, gradients it must share with grpo.py, a critic that learns, runs."""
import math

import pytest
import torch
from safetensors.torch import load_file

import grpo
import ppo
from engine.optimizer import AdamW
from helpers import (ALONE, POLICY_FLAGS, assert_equal_weights, finish, gradients_of, grpo_settings, metrics,
                     random_groups, run, tiny, weights)


def method(model, **changes):
    """PPO for a model, as a run makes it."""
    settings = ppo.Settings(**{"model": "", "data": [], "out": "", "lr": 1e-3, "temperature": 1.0,
                               "kl": 0.0, "passes": 1, "minibatches": 1, **changes})
    return ppo.PPO(settings, ALONE, model, AdamW(model, settings))


# ---- the method ------------------------------------------------------------------------------
def test_gae_by_hand():
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75])
    # gamma 1, lam 1: the reward to come, less v. lam 0: what the next v corrects.
    assert torch.allclose(ppo.gae(rewards, values, 1.0, 1.0), torch.tensor([0.5, 0.75, 0.25]))
    assert torch.allclose(ppo.gae(rewards, values, 1.0, 0.0), torch.tensor([-0.25, 0.5, 0.25]))
    # gamma 0.5, lam 0.5: d = 0.125 - 0.5, 0.375 - 0.25, 1 - 0.75; A = d + A / 4 of the next
    expected = torch.tensor([-0.375 + 0.1875 / 4, 0.125 + 0.25 / 4, 0.25])
    assert torch.allclose(ppo.gae(rewards, values, 0.5, 0.5), expected)
    assert torch.equal(ppo.gae(torch.tensor([2.0]), torch.tensor([0.5]), 1.0, 0.95),
                       torch.tensor([1.5]))
    # A critic that knows every token's worth leaves nothing to credit, whatever lam is.
    for lam in (0.0, 0.5, 1.0):
        assert not ppo.gae(rewards, torch.ones(3), 1.0, lam).any()


def test_value_loss_by_hand():
    """Near: the plain square. Beyond the clip and still wrong: the square of the clipped."""
    new, old, returns = torch.tensor([[0.1, 0.9, 0.9, -0.5]]), torch.zeros(1, 4), torch.tensor(
        [[1.0, 1.0, 0.0, 1.0]])
    found = ppo.value_loss(new, old, returns, 0.2)
    assert torch.allclose(found, 0.5 * torch.tensor([[0.81, 0.64, 0.81, 2.25]]))
    new.requires_grad_()
    ppo.value_loss(new, old, returns, 0.2).sum().backward()
    # Moved too far towards the return (0.9 for 1.0): no pull. Away from it: pulled back.
    assert torch.allclose(new.grad, torch.tensor([[-0.9, 0.0, 0.9, -1.5]]))


def groups_with_rewards(model, rewards):
    """Rollouts as grpo.answer returns them, of made-up answers with these rewards."""
    made = random_groups(model, prompts=len(rewards), n=len(rewards[0]))
    return [[{"prompt_tokens": one.sequence.tokens[:one.sequence.start].tolist(),
              "tokens": one.sequence.tokens[one.sequence.start:].tolist(), "finished": True,
              "logprobs": one.logprobs.tolist(), "reward": r} for one, r in zip(group, line)]
            for group, line in zip(made, rewards)]


REWARDS = [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]


def test_a_critic_of_zero_is_reinforce():
    """v = 0, lam = 1: every token of a right answer counts 1, SFT on the right answers alone."""
    model = tiny(seed=1)
    groups = groups_with_rewards(model, REWARDS)
    answers = method(model, lam=1.0, whiten=False).credit(groups)
    for group, line in zip(answers, REWARDS):
        for answer, r in zip(group, line):
            assert torch.equal(answer.advantage, torch.full((len(answer.logprobs),), r))


def test_a_critic_that_knows_the_mean_is_grpo(monkeypatch):
    """v = the mean reward of the group at every token, lam = 1: GRPO without the deviation."""
    model = tiny(seed=1)
    groups = groups_with_rewards(model, REWARDS)
    one = method(model, lam=1.0, whiten=False)
    means = [sum(line) / 3 for line in REWARDS for _ in line]
    monkeypatch.setattr(one, "values", lambda sequences: [
        torch.full((q.trained,), mean) for q, mean in zip(sequences, means)])
    [of_ppo], _ = gradients_of(model, one.credit(groups))
    plain = grpo.GRPO(grpo_settings(std_norm=False), ALONE, model, None).credit(groups)
    [of_grpo], _ = gradients_of(model, plain)
    assert max(g.abs().max() for g in of_grpo.values()) > 1e-3
    for name in of_grpo:
        assert torch.allclose(of_ppo[name], of_grpo[name], atol=1e-6), name


def test_whitened_advantages_and_returns_by_hand(monkeypatch):
    """Two answers, lam = 1: A = reward - v before whitening, and the critic's target is the reward."""
    model = tiny(seed=1)
    groups = [[{"prompt_tokens": [1], "tokens": [2, 0], "logprobs": [-1.0, -1.0], "reward": r}
               for r in (1.0, 0.0)]]
    one = method(model, lam=1.0)
    monkeypatch.setattr(one, "values", lambda sequences: [torch.tensor([0.5, 0.75]),
                                                          torch.tensor([0.25, 0.0])])
    [[right, wrong]] = one.credit(groups)
    # Before: 0.5, 0.25, -0.25, 0. Their mean is 0.125, their deviation (unbiased) 0.3227.
    expected = [(a - 0.125) / (0.3125 / 3) ** 0.5 for a in (0.5, 0.25, -0.25, 0.0)]
    assert torch.allclose(torch.cat([right.advantage, wrong.advantage]), torch.tensor(expected))
    assert right.returns.tolist() == [1.0, 1.0] and wrong.returns.tolist() == [0.0, 0.0]


def test_a_single_token_is_not_whitened():
    """It has no deviation; NaN would end the run."""
    model = tiny(seed=1)
    groups = [[{"prompt_tokens": [1], "tokens": [0], "logprobs": [-1.0], "reward": 1.0}]]
    [[answer]] = method(model).credit(groups)
    assert answer.advantage.tolist() == [1.0]


def test_a_critic_that_is_not_finite_is_noticed():
    model = tiny(seed=1)
    one = method(model, passes=2, minibatches=2)
    answers = one.credit(groups_with_rewards(model, REWARDS))
    for group in answers:
        for answer in group:
            answer.returns = answer.returns * float("inf")
    assert one.update(answers, 1e-3)["skipped"] == 4            # of the critic alone
    assert [o.skipped for o in one.optimizers] == [0, 4]        # Five in a row end a run.


# ---- the critic ------------------------------------------------------------------------------
def test_values_are_those_before_each_token_packed_or_not():
    model = tiny(seed=1)
    one, cut = method(model, pack=True), method(model, pack=False, micro_tokens=60)
    sequences = [a.sequence for group in random_groups(model) for a in group]
    assert not torch.cat(one.values(sequences)).any()           # the head starts at 0
    torch.manual_seed(0)
    one.critic.head.data.normal_()
    cut.critic = one.critic
    for q, a, b in zip(sequences, one.values(sequences), cut.values(sequences)):
        with torch.no_grad():
            hidden = one.critic.hidden(torch.from_numpy(q.tokens).long()[None])[0]
        alone = hidden[q.start - 1:-1] @ one.critic.head    # v before token t sees the tokens before
        assert torch.allclose(a, alone, atol=1e-5) and torch.allclose(b, alone, atol=1e-5)


def test_the_critic_learns_and_leaves_the_policy_alone():
    model = tiny(seed=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    one = method(model, critic_lr=3e-3, value_clip=10.0, lam=1.0, whiten=False)
    groups = groups_with_rewards(model, REWARDS)
    told = [one.learn(one.credit(groups), {"skipped": 0}) for _ in range(60)]
    assert told[0]["value_explains"] == 0 and told[-1]["value_explains"] > 0.8
    assert told[-1]["value_loss"] < 0.2 * told[0]["value_loss"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(p.grad is not None for p in model.parameters())
    assert not hasattr(method(tiny(seed=1, tie_word_embeddings=False)).critic, "lm_head")


# ---- the command -----------------------------------------------------------------------------
PPO = (*POLICY_FLAGS, "--kl", "0.001", "--passes", "2", "--minibatches", "2", "--critic-lr", "2e-3")


def test_ppo_learns(toy, tmp_path):
    done = run(toy, *PPO, "--group", "4", "--prompts", "32", "--out", tmp_path / "r", "--steps", "20",
               "--eval", "held_out.jsonl", "--eval-n", "4", "--eval-temperature", "1",
               "--eval-max-new-tokens", "12", script="ppo.py")
    assert done.returncode == 0, done.stderr
    found = metrics(tmp_path / "r")
    assert found[-1]["eval"]["accuracy"] > found[0]["eval"]["accuracy"] + 0.25
    assert max(row["value_explains"] for row in found[1:]) > 0.2        # of what varies at the time
    assert all(math.isfinite(row["value_loss"]) for row in found[1:])
    assert (tmp_path / "r" / "model" / "model.safetensors").exists()


def test_killed_and_resumed_is_the_same_run_bit_by_bit(toy, tmp_path):
    flags = (*PPO, "--steps", "12", "--save-every", "2", "--group", "1")    # one answer will do
    finish(toy, tmp_path / "whole", *flags, script="ppo.py")
    finish(toy, tmp_path / "killed", *flags, script="ppo.py", kills=1, seed=1)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    assert_equal_weights(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    last = "checkpoint-000012/critic.safetensors"
    a, b = (load_file(tmp_path / name / last) for name in ("whole", "killed"))
    assert a["head"].any() and all(torch.equal(a[key], b[key]) for key in a)


def test_two_ranks_train_the_same_critic_as_one(toy, tmp_path):
    for ranks in (1, 2):
        done = run(toy, *PPO, "--out", tmp_path / str(ranks), "--steps", "3", script="ppo.py",
                   ranks=ranks)
        assert done.returncode == 0, done.stderr
    for one, two in zip(metrics(tmp_path / "1"), metrics(tmp_path / "2")):
        for name in ("grad_norm", "value_loss"):
            assert abs(one[name] / two[name] - 1) < 1e-3, name
    last = "checkpoint-000003/critic.safetensors"
    a, b = (load_file(tmp_path / name / last) for name in "12")
    assert max((a[key] - b[key]).abs().max() for key in a) < 1e-4


@pytest.mark.parametrize("flags, words", [
    (("--lam", "1.5"), "lam = 1.5"), (("--critic-lr", "0"), "critic_lr = 0"),
    (("--value-clip", "0"), "value_clip = 0"), (("--minibatches", "3"), "cannot be cut into 3")])
def test_mistakes_are_one_line(toy, tmp_path, flags, words):   
    done = run(toy, *POLICY_FLAGS, "--out", tmp_path / "r", *flags, script="ppo.py")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()
