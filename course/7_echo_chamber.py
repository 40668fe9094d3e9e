# %% [markdown]
# # Lesson 7: the echo chamber
#
# Does reinforcement learning teach a model something new, or does it only make it say more often
# what it could say already? In this lesson you change what the model has learned *before* GRPO,
# and look at what GRPO makes of it. And you measure with pass@k: the chance that one of k answers
# is right.
#
# You will see: pass@1 rises a lot and pass@32 does not; the style that wins can be read off the
# model before; and where the good style is missing, GRPO gains next to nothing, and loses
# chances.
#
# It takes 80 seconds, and 40 more if lesson 4 has not trained the policy yet.

# %% Setup
from collections import Counter             # for the exercises
from math import comb

from lesson import (answers, bar, base, check, fine_tune, policy, puzzles, reinforce, show_styles,
                    steps, written)
from verify import last_boxed, styles

# %% [markdown]
# ## One of k
#
# Draw n answers to a puzzle; c of them are right. If you may show k of the n, what is the chance
# that at least one of them is right? Count the ways to choose k answers that are all wrong.

# %% Exercise 1: pass@k
def one_of(n, c, k):
    """The chance that k of n answers, chosen without putting back, hold one of the c right ones."""
    ...     # EXERCISE. comb(n, k) counts the ways to choose k of n. Turn the question round.


one_of = check(
    one_of,
    ((4, 1, 1), 0.25, "One answer of four is right, and you show one."),
    ((4, 1, 2), 0.5,
     "There are comb(4, 2) = 6 pairs; comb(3, 2) = 3 of them are all wrong. If you get 0.4375: 1"
     " - (1 - c/n)^k would put an answer back before the next is drawn."),
    ((4, 3, 2), 1.0, "Only one answer is wrong, so of two at least one is right."),
    ((32, 0, 8), 0.0, "None is right."))

# %% Exercise 2: the vote
def vote(boxes, gold):
    """1.0 if the most frequent of these answers is the gold one, else 0.0."""
    ...     # EXERCISE. Counter(boxes).most_common(1) is [(answer, how often)].


vote = check(
    vote,
    ((["x", "x", "y"], "x"), 1.0, "x has two votes of three."),
    ((["x", "y", "y"], "x"), 0.0, "y wins. It does not help that somebody said x."),
    ((["x", "y", "z", "x"], "x"), 1.0, "x has the most votes, if not more than half."))

# %% [markdown]
# ## Before and after GRPO
#
# 16 puzzles, 32 answers to each, from the base and from the policy of lesson 4.

# %%
N, test = steps(32, 4), puzzles(steps(16, 3), seed=70)


def measure(name, model):
    """Print pass@k and the vote, and return the styles."""
    rollouts = answers(model, test, n=N, seed=9)
    groups = [rollouts[i:i + N] for i in range(0, len(rollouts), N)]
    print(name)
    for k in [k for k in (1, 2, 4, 8, 16, 32) if k <= N]:
        chances = [one_of(N, int(sum(one["reward"] for one in group)), k) for group in groups]
        mean = sum(chances) / len(chances)
        print(f"    pass@{k:<3} {mean:4.0%} {bar(mean)}")
    votes = [vote([last_boxed(one["response"]) for one in group], group[0]["gold"])
             for group in groups]
    print(f"    vote     {sum(votes) / len(votes):4.0%} {bar(sum(votes) / len(votes))}")
    show_styles(rollouts)
    return styles(rollouts)


before = measure("The base", base())
measure("After GRPO", policy())

# %% [markdown]
# pass@1 is what GRPO trains, and it is far higher. But with 32 tries the base solves everything,
# too: a guess is right once in eight. The right answers were all there; GRPO moved them to the
# front.
#
# ## Which style wins?
#
# Advantages compare answers to the same puzzle. So a style grows if its answers are more often
# right than the other answers. How frequent it is decides how soon it grows, as long as it is
# drawn at all.

# %% Exercise 3: foretell
def winner(styles):
    """The style that GRPO will choose: of those with a share of at least 2 %, the one that is most
    often right.

    styles: name -> {"share": ..., "right": ...}, both between 0 and 1.
    """
    ...     # EXERCISE


def of(share, right):
    return {"share": share, "right": right}


winner = check(
    winner,
    (({"guess": of(0.7, 0.1), "worked": of(0.3, 0.9)},), "worked",
     "The most frequent style need not win: it wins who is right more often."),
    (({"guess": of(0.9, 0.1), "table": of(0.09, 0.5), "mixed": of(0.01, 1.0)},), "table",
     "One answer in a hundred is too rare to count on: ask for a share of 2 % first."),
    (({"guess": of(1.0, 0.1)},), "guess", "There is no choice."))

# %%
print("For the base:", winner(before))

# %% [markdown]
# ## Another past
#
# Now we give the base another past, by fine-tuning it on a *mixture*: right answers in given
# shares of styles. Then GRPO begins from there. One mixture has a few worked answers, the other
# none.

# %%
def with_past(shares, epochs):
    """The base, fine-tuned on 200 right answers: this many of each style in a hundred."""
    problems = puzzles(steps(200, 10), seed=71)
    past = [style for style, count in shares.items() for _ in range(count)]     # 100 names
    examples = [written(problem, past[i * 37 % 100]) for i, problem in enumerate(problems)]
    return fine_tune(base(), examples, epochs)


def show(step, rollouts):
    if step % 4 == 0:
        now = {name: style["share"] for name, style in styles(rollouts).items()}
        shares = ", ".join(f"{name} {share:.0%}" for name, share in now.items())
        print(f"    GRPO, step {step:2}: {shares}", flush=True)


foretold, came = {}, {}
pasts = {"few": ({"guess": 75, "table": 10, "worked": 15}, 4), "none": ({"guess": 100}, 10)}
for name, (shares, epochs) in pasts.items():
    model = with_past(shares, epochs)
    foretold[name] = winner(measure(f"\nA past of {shares}", model))
    reinforce(model, steps(10, 1), show=show, seed=5)
    after = measure("After GRPO", model)
    came[name] = max(after, key=lambda style: after[style]["share"])

# %% [markdown]
# ## The echo
#
# With a few worked answers GRPO finds them, and repeats them until they are most of what it says.
# Without them it has nothing good to repeat: pass@1 stays where it was, and pass@32 *falls*.
# Guesses that were right by luck were made more likely, so the model now gives the same guess again
# and again.

# %%
for name in came:
    print(f"    {name}: foretold {foretold[name]}, came {came[name]}")

# %% [markdown]
# ## To think about
#
# Try a past of ({"guess": 90, "table": 10}, 4). Why does the style that was not in it come back?
#
# "GRPO teaches nothing new" is what we saw in this small world, in a few steps. What would have
# to be true of a model and of a training run so that something new *could* appear? And if you use
# a model with 32 tries and a checker: would you rather have the base, or the policy?
