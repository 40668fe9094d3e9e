# %% [markdown]
# # Lesson 4: GRPO
#
# GRPO is the policy gradient of lesson 3 for a real language model. For every puzzle the model
# draws a *group* of answers, and each is compared with its own group. It needs no examples of
# good answers, only a rule that says right or wrong.
#
# You will see: groups and advantages; why the loss is 0 and the gradient is not; and the tiny
# model going from 28 % right answers to about 80 % in twelve steps. Watch *how* it does that.

# %% Setup
import torch

from lesson import (answers, bar, base, batches, check, move, optimizer_for, puzzles, reinforce,
                    right, save_policy, show_styles, steps)
from grpo import advantages, grpo_loss
from model import logprobs
from verify import styles

# %% [markdown]
# ## Groups
#
# Six puzzles, eight answers to each. A `#` is a right answer, a `.` a wrong one.

# %%
policy = base()
problems = puzzles(6, seed=40)
rollouts = answers(policy, problems, n=8, seed=1)
rewards = torch.tensor([one["reward"] for one in rollouts]).view(6, 8)
for problem, row in zip(problems, rewards.tolist()):
    print(f"    puzzle {problem['id']}:  {''.join('.#'[int(r)] for r in row)}")

# %% [markdown]
# The *advantage* of an answer says how much better it is than its group: its reward minus the
# mean of the group, divided by the standard deviation of the group (and 1e-6: 0 / 0 is nothing).
# Here the answer's own reward is in the mean. That only makes the gradient shorter, by the factor
# (n - 1) / n. The division gives the groups that teach advantages of about the same size.

# %% Exercise 1: advantages
def group_advantages(rewards):
    """[puzzles, answers] -> [puzzles, answers]: (r - mean) / (std + 1e-6), in each group."""
    ...     # EXERCISE. rewards.mean(-1, keepdim=True) is the mean of each row.


group_advantages = check(
    group_advantages,
    ((torch.tensor([[1.0, 0.0, 0.0, 0.0]]),), [[1.5, -0.5, -0.5, -0.5]],
     "The mean is 0.25 and torch's std is 0.5 (it divides by n - 1): (1 - 0.25) / 0.5 = 1.5."),
    ((torch.tensor([[1.0, 0.0], [1.0, 1.0]]),), [[0.7071, -0.7071], [0.0, 0.0]],
     "Each row is a group of its own: the second puzzle must not change the advantages of the"
     " first."))

# %% Exercise 2: which groups teach?
def teaching(rewards):
    """The share of groups that change the policy: those with an advantage that is not 0."""
    ...     # EXERCISE. rewards is a tensor [puzzles, answers] of zeros and ones.


teaching = check(
    teaching,
    ((torch.tensor([[1.0, 0.0], [0.0, 1.0]]),), 1.0,
     "Both groups have a right and a wrong answer, so 2 of 2 groups teach. Divide by the number of"
     " groups."),
    ((torch.tensor([[1.0, 0.0], [0.0, 0.0]]),), 0.5,
     "The second group is all wrong: all its advantages are 0, and it teaches nothing."),
    ((torch.tensor([[1.0, 1.0], [0.0, 0.0]]),), 0.0,
     "All right teaches as little as all wrong: nobody is better than the group."))

# %%
print(f"{teaching(rewards):.0%} of the six groups above teach something. Their advantages:")
print(group_advantages(rewards))

# %% [markdown]
# This is why puzzles must be neither too easy nor too hard for the model.
#
# ## The loss is 0, and the gradient is not
#
# The loss is minus the mean over all tokens of ratio * A, where A is the advantage of the token's
# answer and *ratio* = p_new(token) / p_old(token) says how the policy has changed since it drew
# the token. On the first update nothing has changed yet: every ratio is 1. But its gradient is not
# 0: the ratio is exp(new - old), where old = new.detach() in the code below is a constant of the
# same value. So the gradient of the ratio is 1 times that of new, the log p of the token.

# %%
A = advantages(rewards).flatten()


def loss_of(norm, denominator):
    """The loss of all answers. Its gradient is added to the weights' .grad."""
    loss = 0.0
    for which, tokens, mask in batches(rollouts):
        new = logprobs(policy, tokens, where=mask)
        part = grpo_loss(new, new.detach(), A[which], mask, norm=norm, denominator=denominator)
        part.backward()
        loss += float(part.detach())
    return loss


loss = loss_of("sequence", denominator=len(rollouts))
norm = sum(float(w.grad.square().sum()) for w in policy.parameters()) ** 0.5
print(f"every answer counts alike: loss {loss:+.6f}, length of its gradient {norm:.3f}")
policy.zero_grad()
loss = loss_of("token", denominator=sum(len(one["tokens"]) for one in rollouts))
print(f"every token counts alike:  loss {loss:+.6f}")

# %% [markdown]
# With norm = sequence every answer counts alike. The advantages of a group sum to 0, so the loss
# is 0, however good or bad the policy is. But its *gradient* is that of lesson 3: log p of each
# answer, times its advantage. With norm = token (the usual choice of grpo.py) a long answer
# counts more. Then the loss only says whether the better answers are the longer ones. So do not
# watch the loss: watch the reward.
#
# ## The clip
#
# One may use the same answers for several updates. Then the ratios leave 1, and the old answers
# say less and less about the new policy. GRPO (like PPO) therefore takes, for each token, the
# smaller one of ratio * A and (ratio limited to [1 - clip, 1 + clip]) * A. So nothing is gained
# by moving a ratio further than the clip, but a *wrong* move counts in full.

# %% Exercise 3: the clip
def gain(ratio, A, clip):
    """min(ratio * A, clamped ratio * A), for tensors ratio and A [n]."""
    ...     # EXERCISE. ratio.clamp(low, high) limits a tensor; torch.minimum takes the smaller one.


one = torch.ones(1)
gain = check(
    gain,
    ((1.1 * one, 2.0 * one, 0.2), [2.2],
     "A ratio of 1.1 is within 0.8 and 1.2: the gain is 1.1 * 2."),
    ((1.5 * one, 2.0 * one, 0.2), [2.4],
     "The token is good and has become 1.5 times as likely. Only a factor of 1.2 counts: 1.2 * 2."),
    ((0.5 * one, 2.0 * one, 0.2), [1.0],
     "A good token has become *less* likely: that is a wrong move, and it must count in full, 0.5"
     " * 2. If you only clamp, you get 1.6 and the mistake is hidden."),
    ((0.5 * one, -1.0 * one, 0.2), [-0.8],
     "A bad token is half as likely now: enough. Only 0.8 counts."))

# %% [markdown]
# ## One step, by hand
#
# We have the gradient already. One step of the optimizer, and we ask for the log p of the same
# answers again. Right answers should have become more likely, wrong ones less.

# %%
def logp_of(model):
    values = torch.zeros(len(rollouts))
    with torch.no_grad():
        for which, tokens, mask in batches(rollouts):
            values[which] = logprobs(model, tokens, where=mask).sum(1)
    return values


before = logp_of(policy)
move(policy, optimizer_for(policy, lr=1e-4))
change = logp_of(policy) - before
print(f"mean change of log p: right answers in groups that teach {change[A > 0].mean():+.2f},"
      f" wrong ones {change[A < 0].mean():+.2f}")

# %% [markdown]
# ## Twelve steps
#
# Now the loop: draw, reward, advantages, one update, again. `reinforce` in lesson.py is just the
# cells above in a loop, with 16 new puzzles and 128 answers in each step. It takes half a minute
# or more. Each line shows the reward, and the shares of two styles of answers: `worked` and
# `guess`. It is about 16 other puzzles than the line before, so it jumps by several points.

# %%
def show(step, rollouts):
    of = {name: style["share"] for name, style in styles(rollouts).items()}
    print(f"  step {step:2}  right {right(rollouts):4.0%} {bar(right(rollouts), width=20):20}"
          f"  worked {of.get('worked', 0):4.0%} {bar(of.get('worked', 0), width=20):20}"
          f"  guess {of.get('guess', 0):4.0%} {bar(of.get('guess', 0), width=20)}", flush=True)


policy = base()
reinforce(policy, steps(12, 1), show=show)
save_policy(policy)                         # Lessons 5 and 7 begin with it.

# %% [markdown]
# ## What has it learned?

# %%
test = puzzles(steps(100, 4), seed=7)
for name, model in (("the base", base()), ("after GRPO", policy)):
    rollouts = answers(model, test, n=2, seed=5)
    print(f"{name}: {right(rollouts):.0%} right")
    show_styles(rollouts)

# %% [markdown]
# Compare how often `worked` answers are right, before and after: about the same! GRPO did not
# make the model better at working puzzles out. It made it *do so*: a style that was rare and good
# became the usual one. All of that could be read off the base beforehand.
#
# ## To think about
#
# Suppose that the base never wrote a worked answer at all. What would the advantages then be
# about, and where would GRPO end? (Lesson 7 tries it.) And what could you do so that it has
# something to work with?
