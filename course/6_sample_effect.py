# %% [markdown]
# # Lesson 6: sample effect
#
# Lesson 5 ended with a riddle: two sets of right answers, and only one of them helps. Can one
# know *beforehand* which data will help, without training on it? The *sample effect* is a number
# for that.
#
# You will see five sets of 64 answers. You say which will help. Then the effect of each is computed
# at the base, before any training. Then we train on each, and compare.

# %% Setup
import numpy
import torch

from lesson import (BASE, answers, bars, base, check, fine_tune, puzzles, right, steps, tokenizer,
                    written)
from effect import Sequence, Settings, effects, reward_gradient, weighted_gradient

# %% [markdown]
# ## Five sets
#
# Four are right answers to the same puzzles in different styles, written by a program. The fifth
# are wrong answers of the base itself.

# %%
problems = puzzles(steps(64, 4), seed=60)
sets = {style: [written(problem, style) for problem in problems]
        for style in ("guess", "table", "worked", "search")}
wrong = [one for one in answers(base(), puzzles(steps(100, 16), seed=61)) if one["reward"] == 0]
sets["wrong"] = wrong[:len(problems)]
for name, examples in sets.items():
    print(f"--- {name}\n{examples[0]['response']}")

# %% [markdown]
# **What do you expect?** The set `guess` has right answers without any reason. Trained on which set
# will the base be right most often? On which least? Write the names in your order, the best first.

# %%
my_order = []           # YOURS: for example ["table", "guess", "search", "wrong", "worked"]
if my_order and sorted(my_order) != sorted(sets):
    print(f"    This is not an order of the five sets {', '.join(sets)}: {', '.join(my_order)}")

# %% [markdown]
# ## The idea
#
# J is the mean reward of the model on test puzzles, and G is its gradient: the direction in which
# the weights should move (lesson 3). To train on an example o moves the weights along another
# direction: the gradient of log p(o). If the two directions agree, training on o raises J. How
# much they agree is their *inner product*: multiply the two gradients weight by weight, and take
# the sum.
#
#     effect(o) = < gradient of log p(o), G >

# %% Exercise 1: the inner product
def inner(g, h):
    """The sum over all weights of g * h. Both are dictionaries: name of a parameter -> tensor."""
    ...     # EXERCISE


x, y = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, -1.0]])
inner = check(
    inner,
    (({"a": x}, {"a": x}), 5.0, "1 * 1 + 2 * 2."),
    (({"a": x, "b": y}, {"a": x, "b": y}), 15.0, "All parameters count: 5 from a, 10 from b."),
    (({"a": x}, {"a": torch.tensor([-2.0, 1.0])}), 0.0,
     "The two directions have nothing in common. Do not take absolute values."),
    (({"a": 2 * x}, {"a": x}), 10.0,
     "Twice as long a gradient has twice the effect: do not divide by the lengths. (That would be"
     " the cosine.)"))

# %% [markdown]
# ## G, from the base's own answers
#
# The base answers 48 test puzzles, 8 times each. `reward_gradient` makes G of them, as in lesson
# 3. It does so in two halves, from different puzzles. If the two halves did not agree, G would be
# noise.

# %%
model = base()
settings = Settings(model=BASE, test="", group=steps(8, 4), max_new_tokens=300)
halves, about = reward_gradient(model, puzzles(steps(48, 6), seed=62), tokenizer, settings)
G = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
print(f"{about['answers']} answers, {about['reward']:.0%} right; the halves of G have a cosine of"
      f" {about['split_half_cosine']:.2f} (1: the same direction, 0: nothing in common)")

# %% [markdown]
# ## A shortcut
#
# The gradient of every single example would be expensive. But an inner product with G is a slope:
# how fast log p(o) grows when the weights move along G. And a slope can be measured by two small
# steps, one forward and one back.

# %% Exercise 2: a slope
def slope(f, s):
    """How fast f grows at 0, from its values at s and at -s."""
    ...     # EXERCISE. f is a function of one number.


def line(x):
    return 3 * x + 1


def square(x):
    return (x + 1) ** 2


slope = check(
    slope,
    ((line, 0.5), 3.0, "f(0.5) = 2.5 and f(-0.5) = -0.5. They are 2 * s = 1 apart."),
    ((square, 0.5), 2.0,
     "f(0.5) = 2.25, f(-0.5) = 0.25. With f(0) in the place of f(-s) you would get 2.5: a step to"
     " one side alone sees the curve, too."))

# %% [markdown]
# Both ways for one example. `moved(s)` is its log p after the weights moved by s * G.

# %%
def sequence(rollout):
    ids = numpy.array(rollout["prompt_tokens"] + rollout["tokens"], dtype=numpy.int32)
    return Sequence(ids, len(rollout["prompt_tokens"]))


one = sequence(sets["worked"][0])


def moved(s):
    copy = base()
    with torch.no_grad():
        for name, weight in copy.named_parameters():
            weight += s * G[name]
        logits = copy(torch.tensor(one.tokens[None, :-1]).long())[0].double()
    targets = torch.tensor(one.tokens[1:]).long()
    return float(logits.log_softmax(-1)[range(len(targets)), targets][one.start - 1:].sum())


gradient = weighted_gradient(model, [one], [1.0], settings)
print(f"inner product {inner(gradient, G):.4f}, slope {slope(moved, 0.003):.4f}")

# %% [markdown]
# ## Which set helps?
#
# The effect of a set is the mean of its examples' effects. `effects` uses the shortcut for a
# whole set.

# %%
effect = {name: float(effects(model, [sequence(one) for one in examples], G, settings).mean())
          for name, examples in sets.items()}
for name, value in sorted(effect.items(), key=lambda item: -item[1]):
    print(f"    {name:7} {value:+7.3f}")

# %% [markdown]
# Now train the base on each set, and test. This is what the effect has to foretell.

# %%
test = puzzles(steps(100, 4), seed=7)
before = right(answers(base(), test, n=2, seed=5))
after = {name: right(answers(fine_tune(base(), examples), test, n=2, seed=5))
         for name, examples in sets.items()}
print(f"right before training: {before:.0%}. After training on ...")
bars(dict(sorted(after.items(), key=lambda item: -item[1])))


def pairs_in_order(first_to_last):
    """Of all pairs of sets, how many stand in the same order as after training."""
    pairs = [(a, b) for i, a in enumerate(first_to_last) for b in first_to_last[i + 1:]]
    return sum(after[a] > after[b] for a, b in pairs), len(pairs)


said = sorted(effect, key=effect.get, reverse=True)
print("The effect puts {} of {} pairs of sets in the right order.".format(*pairs_in_order(said)))
if sorted(my_order) == sorted(sets):
    print("Your order: {} of {}.".format(*pairs_in_order(my_order)))

# %% [markdown]
# ## To think about
#
# The effect is measured at the weights of the base, for one small step. Training goes many steps.
# When would you trust it less? And an example of twice the length has about twice the gradient:
# what would you divide by if you compared a set of short answers with one of long ones?
# (results/effect.md)
