# %% [markdown]
# # Lesson 3: the policy gradient
#
# A reward says how good an answer was, but not which weights to change. How can one learn from
# it? J is the mean reward of a model. Its *gradient* says for each weight how fast J grows if
# that weight grows a little. You will see it computed exactly, for a model so tiny that we can
# list *all* its answers; and how well a few samples estimate it, with and without a *baseline*.

# %% Setup
import torch

from lesson import bar, bars, check, differentiable, steps  # first: it knows where the rest is
from model import Config, Transformer, logprobs

# %% [markdown]
# ## A model with 27 answers
#
# An answer has 3 letters, each a, b or c. The rule likes answers where no letter follows itself,
# such as aba: reward 1. All others, such as abb, get 0.

# %%
def tiny(seed=1):
    torch.manual_seed(seed)
    return Transformer(Config(
        vocab_size=3, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5))


letters = torch.cartesian_prod(*[torch.arange(3)] * 3)                       # [27, 3]
texts = ["".join("abc"[i] for i in row) for row in letters]
tokens = torch.cat([torch.zeros(27, 1, dtype=torch.int64), letters], dim=1)  # token 0: a prompt
rewards = torch.tensor([float(text[0] != text[1] != text[2]) for text in texts])


def logp_of_answers(model):
    """log p of each of the 27 answers: the sum of the log p of its letters."""
    return logprobs(model, tokens).sum(1)


model = tiny()
p = logp_of_answers(model).exp().detach()
print("The most likely answers:")
bars({f"{texts[i]}, reward {rewards[i]:.0f}": float(p[i]) for i in p.argsort(descending=True)[:6]})

# %% Exercise 1: the mean reward
def mean_reward(p, rewards):
    """J: the mean reward of answers that are drawn with probabilities p. Both are tensors [n]."""
    ...     # EXERCISE


tracked = torch.ones(2, requires_grad=True)
mean_reward = check(
    mean_reward,
    ((torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])), 0.5, "Half of the answers get 1."),
    ((torch.tensor([0.9, 0.1]), torch.tensor([1.0, 0.0])), 0.9,
     "An answer counts as much as it is likely: multiply each reward by its p, then take the sum."
     " Not the mean: p sums to 1 already."),
    ((tracked, tracked), differentiable, "Do not use float() or .item()."))

# %% [markdown]
# ## The exact gradient
#
# J is a formula of the weights, so PyTorch can differentiate it. A few steps along this gradient
# and the rule likes nearly all that the model would write. No answer was ever drawn.

# %%
def gradient_of(number, model):
    """Its gradient for all weights of the model, as one long vector."""
    parts = torch.autograd.grad(number, list(model.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def exact_gradient(model):
    J = mean_reward(logp_of_answers(model).exp(), rewards)
    return float(J.detach()), gradient_of(J, model)


def climb(model, gradient, rate):
    """Change each weight by rate * its part of the gradient."""
    parts = gradient.split([w.numel() for w in model.parameters()])
    with torch.no_grad():
        for weight, part in zip(model.parameters(), parts):
            weight += rate * part.view_as(weight)


learner = tiny()
for step in range(61):
    J, gradient = exact_gradient(learner)
    if step % 12 == 0:
        print(f"    step {step:2}  J = {J:.3f}  {bar(J)}")
    climb(learner, gradient, 0.2)

# %% [markdown]
# ## From samples
#
# Nobody can list all answers of a real model. But a few answers that it draws are an estimate:
#
#     gradient of J  =  the mean over drawn answers o of   r(o) * gradient of log p(o)
#
# For J is the sum of p(o) r(o), and the gradient of p is p times the gradient of log p. And "the
# sum of p(o) times something" is the mean of that something over answers that are drawn.
#
# In words: make each answer that you drew more likely, the more so the higher its reward. We may
# subtract the same number, a *baseline*, from all rewards: on average it changes nothing, since
# the probabilities always sum to 1. Answers below the baseline then become less likely.

# %% Exercise 2: the objective for samples
def objective(logp, rewards, baseline):
    """The number whose gradient is the estimate. logp and rewards of the drawn answers, [n]."""
    ...     # EXERCISE. PyTorch will differentiate it; write only the formula.


two = torch.tensor([-1.0, -2.0])
objective = check(
    objective,
    ((two, torch.tensor([1.0, 0.0]), 0.0), -0.5,
     "Reward times log p, and the mean over the answers: (1 * -1 + 0 * -2) / 2."),
    ((two, torch.tensor([1.0, 0.0]), 0.5), 0.25,
     "Subtract the baseline from each reward first: (0.5 * -1 + -0.5 * -2) / 2."),
    ((tracked, torch.ones(2), 0.0), differentiable, "Do not use float() or .item()."))

# %% [markdown]
# A good baseline is the mean reward; but with the answer's own reward in it, the estimate is too
# small. So compare each answer with the mean of the *others*.

# %% Exercise 3: leave one out
def above_the_others(rewards):
    """For each of n answers: its reward minus the mean reward of the n - 1 others, [n]."""
    ...     # EXERCISE. The sum of the others is rewards.sum() - rewards.


above_the_others = check(
    above_the_others,
    ((torch.tensor([1.0, 0.0]),), [1.0, -1.0],
     "The only other answer has 0, so 1 - 0. If you subtract the mean of all, the answer is"
     " compared with itself, too, and you get 0.5. The sum of the others is divided by n - 1, not"
     " by n."),
    ((torch.tensor([1.0, 0.0, 0.0, 0.0]),), [1.0, -0.3333, -0.3333, -0.3333],
     "The three others of the first have 0 on average; those of the second 1/3. Divide by n - 1."))

# %% [markdown]
# effect.py has the same for groups of answers, as `leave_one_out`.
#
# ## How noisy is it?
#
# We draw 8 answers, estimate the gradient, and do this 2,000 times. How far from the exact
# gradient is one estimate, and how far is the mean of all? Distances are squared, and divided by
# the squared length of the exact gradient. If estimates are right on average, the mean has about
# 1/2,000 of the noise, give or take a factor of two.
#
# A second rule gives 10 to every answer, and 11 to those that we like. To a person nothing has
# changed. To an estimate without a baseline it is a disaster.

# %%
def noise(r, weigh, draws):
    """The noise of the mean of all estimates, and that of one."""
    picked = torch.multinomial(p, draws * 8, replacement=True).view(draws, 8)
    weights = torch.stack([weigh(row) for row in r[picked]])                 # [draws, 8]
    estimates = (weights[..., None] * scores[picked]).mean(1)                # [draws, weights]
    size = (exact ** 2).sum()
    return (float(((estimates.mean(0) - exact) ** 2).sum() / size),
            float(((estimates - exact) ** 2).sum(1).mean() / size))


scores = torch.stack([gradient_of(logp, model) for logp in logp_of_answers(model)])
exact = exact_gradient(model)[1]
kinds = {"no baseline": lambda row: row, "leave one out": above_the_others}
for r in (rewards, rewards + 10):
    print(f"  rewards {r.min():.0f} and {r.max():.0f}:")
    for name, weigh in kinds.items():
        off, noisy = noise(r, weigh, steps(2000, 200))
        print(f"    {name:14} noise of one estimate {noisy:7.1f}, of the mean of all {off:.3f}")

# %% [markdown]
# ## Learning from samples
#
# Now as it is really done: draw 8 answers, go one step, draw again. With rewards 10 and 11.

# %%
def learn(weigh, seed):
    learner = tiny()
    torch.manual_seed(seed)
    for _ in range(steps(60, 5)):
        logp = logp_of_answers(learner)
        drawn = torch.multinomial(logp.detach().exp(), 8, replacement=True)
        number = objective(logp[drawn], weigh(rewards[drawn] + 10), 0.0)
        climb(learner, gradient_of(number, learner), 0.3)
    return exact_gradient(learner)[0]


for name, weigh in kinds.items():
    ends = [f"{learn(weigh, seed):.2f}" for seed in range(5)]
    print(f"    {name:14} J at the end of five runs: {', '.join(ends)}")

# %% [markdown]
# ## To think about
#
# The baseline does not change the mean of the estimates, only their noise. Why then do learners
# without a baseline end near 0? (If all rewards are large, what happens to an answer that was
# drawn, good or bad? And what is drawn next?)
