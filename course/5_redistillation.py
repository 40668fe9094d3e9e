# %% [markdown]
# # Lesson 5: re-distillation
#
# GRPO needed some 1,500 sampled answers for what lesson 4 showed. Now take 150 *correct* answers
# of the policy that came out, and fine-tune the *original* base model on them, as if a teacher
# had written them. This is called re-distillation.
#
# You will see: it is as good as GRPO, at once. Correct answers in another style, to the same
# puzzles, do not do it. And a third way, *on-policy distillation*, where the student writes and
# the teacher only says what it thinks of every token.
#
# It takes about 65 seconds, and 40 more if lesson 4 has not trained the policy yet.

# %% Setup
import torch

from lesson import (answers, bars, base, batches, check, fine_tune, move, optimizer_for, policy,
                    puzzles, right, show_styles, steps, written)
from grpo import grpo_loss
from model import logprobs

# %%
teacher = policy()
test = puzzles(steps(100, 4), seed=7)
found = {}              # what we will compare: a name, and the share of right answers


def measure(name, model):
    rollouts = answers(model, test, n=2, seed=5)
    found[name] = right(rollouts)
    print(f"{name}: {found[name]:.0%} right")
    show_styles(rollouts)


measure("base", base())
measure("GRPO policy", teacher)

# %% [markdown]
# ## The data
#
# The policy answers 220 puzzles. Wrong answers must go. And if a puzzle has several right
# answers, we keep only one: easy puzzles would otherwise fill the set.

# %% Exercise 1: choose
def keep_correct(rollouts):
    """The rollouts with reward 1, at most one for each puzzle (the first), in their order."""
    ...     # EXERCISE. A rollout is a dictionary: one["id"] is the puzzle, one["reward"] 0 or 1.


a, a2, b, c = ({"id": name[0], "reward": r, "name": name}
               for name, r in (("a", 0), ("a2", 1), ("b", 1), ("c", 0)))
keep_correct = check(
    keep_correct,
    (([b],), [b], "It is right, and the only one."),
    (([b, c],), [b], "c is wrong: a model must not learn from it."),
    (([a, a2],), [a2],
     "The first answer to puzzle a is wrong, the second is right: keep the second."),
    (([b, a2, b],), [b, a2],
     "Puzzle b comes twice: keep one answer to it. A set of the ids that you have already kept"
     " helps."))

# %%
sampled = answers(teacher, puzzles(steps(220, 16), seed=50), n=1, seed=3)
own = keep_correct(sampled)[:150]
another = [written(one, "search") for one in own]     # right, to the same puzzles, by a program
print(f"{len(own)} of the policy's own answers. One of them, and another's to the same puzzle:\n")
print(own[0]["response"], "\n")
print(another[0]["response"])

# %% [markdown]
# ## Fine-tuning
#
# SFT makes the tokens of given answers more likely: its loss is minus the mean of their log p.
# That is the gradient of GRPO if every advantage were 1. We train the base on both sets, in the
# same way.

# %%
measure("re-distilled", fine_tune(base(), own))
measure("another's answers", fine_tune(base(), another))

# %% [markdown]
# Both sets are *right* answers to the same puzzles. But the base is hardly able to write the
# second kind without a mistake. It learns the form of the search, and not to search: 150 examples
# are not enough for a new skill. The policy's own answers use a skill that the base has already.
# They only tell it to use it. Ask the base: how likely does it find each kind of answer?

# %%
def surprise(model, rollouts):
    """Mean of -log p for each token: low if the model might have written this itself."""
    total = tokens_seen = 0.0
    with torch.no_grad():
        for _, tokens, mask in batches(rollouts):
            total -= float(logprobs(model, tokens, where=mask).sum())
            tokens_seen += int(mask.sum())
    return total / tokens_seen


bars({"own answers": surprise(base(), own), "another's": surprise(base(), another)}, form="{:6.3f}")

# %% [markdown]
# ## On-policy distillation
#
# In re-distillation the student reads what the teacher wrote. One can also do it the other way
# round: the *student* writes, and the teacher reads, and says of each token how likely it finds
# it. A token that the teacher likes better than the student does gets a positive advantage. No
# rule and no reward is needed, and every token has its own advantage, so every answer teaches.

# %% Exercise 2: the advantage of a token
def token_advantages(teacher_logp, student_logp):
    """How much better the teacher likes each token: log p_teacher - log p_student."""
    ...     # EXERCISE


token_advantages = check(
    token_advantages,
    ((torch.tensor([-0.1, -2.0]), torch.tensor([-1.0, -0.5])), [0.9, -1.5],
     "The teacher finds the first token more likely than the student does, so its advantage is"
     " positive."),
    ((torch.tensor([-0.7]), torch.tensor([-0.7])), [0.0],
     "They agree: there is nothing to learn here."))

# %% [markdown]
# The loop is that of GRPO, with these advantages. `Distillation.credit` in distill.py is the
# same, with a discount for those who want a token to answer for the tokens after it, too.

# %%
student = base()
optimizer = optimizer_for(student, lr=3e-4)
for step in range(steps(12, 1)):
    rollouts = answers(student, puzzles(steps(64, 4), seed=7000 + step), n=1, seed=step)
    total, gap = sum(len(one["tokens"]) for one in rollouts), 0.0
    for which, tokens, mask in batches(rollouts):
        new = logprobs(student, tokens, where=mask)
        with torch.no_grad():
            A = token_advantages(logprobs(teacher, tokens, where=mask), new)
        gap -= float((A * mask).sum()) / total
        grpo_loss(new, new.detach(), A, mask, denominator=total).backward()
    move(student, optimizer)
    if step % 3 == 0:
        print(f"    step {step:2}: distance to the teacher {gap:.3f} per token,"
              f" right {right(rollouts):.0%}")
measure("on-policy distilled", student)

# %% [markdown]
# ## Side by side

# %%
bars(found)
print(f"\nAnswers used: GRPO {12 * 128:,}, re-distillation {len(own)} of {len(sampled)} sampled,"
      f" on-policy distillation {12 * 64}.")

# %% [markdown]
# ## To think about
#
# Re-distillation needs the policy, and the policy needed GRPO. So what is it good for? (For
# example: 150 texts can be read, mixed with sets for other skills, and used on another copy of the
# base.) And what does it say about what GRPO had learned, if 150 answers are
# enough to pass it on?
