"""ppo.py: advantages by hand, gradients it must share with grpo.py, a critic that learns, runs."""
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import grpo
import ppo
from test_grpo import BASIC, gradient_of, random_groups, toy       # noqa: F401 (a fixture)
from test_model import tiny
from test_sft import ALONE, finish, metrics, run, weights


def settings(**changes):
    return ppo.Settings(**{"model": "", "data": [], "out": "", "lr": 1e-3, "temperature": 1.0,
                           "kl": 0.0, "updates": 1, "minibatches": 1, **changes})


def critic(model, **changes):
    return ppo.Critic(model, ALONE, settings(**changes), SimpleNamespace(checkpoint=None))


# ---- the method ------------------------------------------------------------------------------
def test_gae_by_hand():
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.25, 0.75])
    # gamma 1, lam 1: the reward to come, less V. lam 0: what the next V corrects.
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
    """V = 0, lam = 1: every token of a right answer counts 1, SFT on the right answers alone."""
    model = tiny(seed=1)
    groups = groups_with_rewards(model, REWARDS)
    s = settings(lam=1.0, whiten=False)
    answers = critic(model).credit(groups, s)
    for group, line in zip(answers, REWARDS):
        for answer, r in zip(group, line):
            assert torch.equal(answer.advantage, torch.full((len(answer.logprobs),), r))
    [found], _ = gradient_of(model, answers)
    plain = [[grpo.Answer(a.sequence, r, a.logprobs) for a, r in zip(group, line)]
             for group, line in zip(answers, REWARDS)]
    [expected], _ = gradient_of(model, plain)
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-7), name


def test_a_critic_that_knows_the_mean_is_grpo(monkeypatch):
    """V = the mean reward of the group at every token, lam = 1: GRPO without the deviation."""
    model = tiny(seed=1)
    groups = groups_with_rewards(model, REWARDS)
    one = critic(model)
    means = [sum(line) / 3 for line in REWARDS for _ in line]
    monkeypatch.setattr(one, "values", lambda sequences, s: [
        torch.full((len(q.tokens) - q.start,), mean) for q, mean in zip(sequences, means)])
    [found], _ = gradient_of(model, one.credit(groups, settings(lam=1.0, whiten=False)))
    [expected], _ = gradient_of(model, grpo.to_train_on(groups, grpo.Settings(
        "", [], "", std_norm=False)))
    assert max(g.abs().max() for g in expected.values()) > 1e-3
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name


def test_whitened_advantages_and_returns(monkeypatch):
    model = tiny(seed=1)
    one = critic(model)
    values = lambda sequences, s: [torch.linspace(0, 1, len(q.tokens) - q.start)   # noqa: E731
                                   for q in sequences]
    monkeypatch.setattr(one, "values", values)
    groups = groups_with_rewards(model, REWARDS)
    answers = one.credit(groups, settings(lam=0.9))
    flat = torch.cat([a.advantage for group in answers for a in group])
    assert abs(flat.mean()) < 1e-6 and abs(flat.std() - 1) < 1e-5
    plain = one.credit(groups, settings(lam=0.9, whiten=False))
    for old, returns, a in zip(one.old, one.returns, (a for group in plain for a in group)):
        assert torch.allclose(returns, old + a.advantage)           # not of the whitened ones


# ---- the critic ------------------------------------------------------------------------------
def test_values_are_those_before_each_token_packed_or_not():
    model = tiny(seed=1)
    one = critic(model)
    sequences = [a.sequence for group in random_groups(model) for a in group]
    assert not torch.cat(one.values(sequences, settings())).any()           # the head starts at 0
    torch.manual_seed(0)
    one.model.head.data.normal_()
    packed = one.values(sequences, settings(pack=True))
    padded = one.values(sequences, settings(pack=False, micro_tokens=60))
    for q, a, b in zip(sequences, packed, padded):
        with torch.no_grad():
            hidden = one.model.hidden(torch.from_numpy(q.tokens).long()[None])[0]
        alone = hidden[q.start - 1:-1] @ one.model.head     # V before token t sees tokens before t
        assert torch.allclose(a, alone, atol=1e-5) and torch.allclose(b, alone, atol=1e-5)


def test_the_critic_learns_and_leaves_the_policy_alone():
    model = tiny(seed=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    s = settings(critic_lr=3e-3, value_clip=10.0, lam=1.0, whiten=False)
    one = critic(model)
    groups = groups_with_rewards(model, REWARDS)
    told = [one.learn(one.credit(groups, s), s) for _ in range(60)]
    assert told[0]["value_explains"] == 0 and told[-1]["value_explains"] > 0.8
    assert told[-1]["value_loss"] < 0.2 * told[0]["value_loss"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    nothing = one.learn(one.credit([], s), s)               # regression: torch.cat of an empty list
    assert nothing["value_loss"] == 0 and not any(p.grad is not None for p in model.parameters())
    assert not hasattr(critic(tiny(seed=1, tie_word_embeddings=False)).model, "lm_head")


# ---- the command -----------------------------------------------------------------------------
PPO = (*BASIC, "--kl", "0.001", "--updates", "2", "--minibatches", "2", "--critic-lr", "2e-3")


def test_ppo_learns(toy, tmp_path):                             # noqa: F811
    done = run(toy, *PPO, "--group", "4", "--prompts", "32", "--out", tmp_path / "r", "--steps", "20",
               "--eval", "held_out.jsonl", "--eval-n", "4", "--eval-temperature", "1",
               "--eval-max-new-tokens", "12", script="ppo.py")
    assert done.returncode == 0, done.stderr
    found = metrics(tmp_path / "r")
    assert found[-1]["eval"]["accuracy"] > found[0]["eval"]["accuracy"] + 0.25
    assert max(row["value_explains"] for row in found[1:]) > 0.2        # of what varies at the time
    assert all(math.isfinite(row["value_loss"]) for row in found[1:])
    assert (tmp_path / "r" / "model" / "model.safetensors").exists()


def test_killed_and_resumed_is_the_same_run_bit_by_bit(toy, tmp_path):      # noqa: F811
    flags = (*PPO, "--steps", "12", "--save-every", "2", "--group", "1")    # one answer will do
    finish(toy, tmp_path / "whole", *flags, script="ppo.py")
    finish(toy, tmp_path / "killed", *flags, script="ppo.py", kills=1, seed=1)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(a[key], b[key]) for key in a)
    last = "checkpoint-000012/critic.safetensors"
    a, b = (load_file(tmp_path / name / last) for name in ("whole", "killed"))
    assert a["head"].any() and all(torch.equal(a[key], b[key]) for key in a)


def test_two_ranks_train_the_same_critic_as_one(toy, tmp_path):             # noqa: F811
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
    (("--cut-off", "mask"), "cut_off = mask"), (("--value-clip", "0"), "value_clip = 0"),
    (("--group", "1", "--equal-groups", "drop"), "equal_groups = drop"),
    (("--minibatches", "3"), "cannot be cut into 3")])
def test_mistakes_are_one_line(toy, tmp_path, flags, words):                # noqa: F811
    done = run(toy, *BASIC, "--out", tmp_path / "r", *flags, script="ppo.py")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()
