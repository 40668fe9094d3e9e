# %% [markdown]
# # Lesson 1: a transformer says its next token
#
# A language model does one thing. It reads a list of tokens and gives a number to every token
# that could come next: the *logits*. All else in this course (answers, rewards, training) is
# built on it.
#
# You will see: the logits of a small model for a puzzle, what the *temperature* does to them, how
# a whole answer is drawn token by token, and why a *key/value cache* makes that fast and changes
# nothing.
#
# Run the cells from top to bottom (or `python course/1_next_token.py`). Where it says EXERCISE,
# replace the `...` with your code and run the cell again. The check below it says what it thinks.

# %% Setup
import time

import torch

from lesson import BASE, END, bars, check, encode_prompts, puzzles, steps, tokenizer
from model import load
from sample import generate

# %% [markdown]
# ## The model and its world
#
# The model has 0.9 million parameters. It has only ever seen puzzles of this kind: knights always
# tell the truth, knaves always lie, each person says one sentence. Who is what?

# %%
model = load(BASE)
[problem] = puzzles(1, seed=3)
[prompt] = encode_prompts(tokenizer, [problem["prompt"]])
print(problem["prompt"])
print("The right answer:", problem["gold"])
print(f"\nThe model reads {len(prompt)} tokens. The first ones:",
      [tokenizer.decode([token]) for token in prompt[:6]])

# %% [markdown]
# ## Logits
#
# For every position the model gives one logit for each of its 320 tokens. We look at the last
# position: what comes after the puzzle? Here are the five largest logits. They are numbers, not
# probabilities.

# %%
with torch.no_grad():
    logits = model(torch.tensor([prompt]))[0, -1]          # [B, T, V] -> [V]
top = logits.topk(5)
names = [repr(tokenizer.decode([i])) for i in top.indices.tolist()]
bars(dict(zip(names, top.values.tolist())), form="{:6.2f}")

# %% [markdown]
# To make probabilities of logits, take e to the power of each one, and divide by the sum: then
# they are positive and sum to 1. This is called *softmax*. The temperature T divides the logits
# first:
#
#     p_i = e^(logit_i / T) / (e^(logit_1 / T) + e^(logit_2 / T) + ...)

# %% Exercise 1: from logits to probabilities
def probabilities(logits, temperature):
    """The probability of each token. logits: a tensor [V]; temperature: a number above 0."""
    ...     # EXERCISE. Use torch.exp and .sum(), or torch.softmax.


probabilities = check(
    probabilities,
    ((torch.tensor([2.0, 0.0]), 1.0), [0.8808, 0.1192],
     "e^2 is 7.39 and e^0 is 1. Divide each by their sum, 8.39."),
    ((torch.tensor([2.0, 0.0]), 0.5), [0.9820, 0.0180],
     "With T = 0.5 the logits become 4 and 0, so the larger one wins more often. The temperature"
     " divides the logits, before the softmax."),
    ((torch.tensor([2.0, 0.0]), 4.0), [0.6225, 0.3775],
     "With T = 4 the logits become 0.5 and 0: both are nearly equally likely."))

# %% [markdown]
# Look at the two favourites. `\` begins a box: the model gives an answer at once, which is a
# guess. `A` begins a line of reasoning. So the first token decides how the whole answer is
# written.
#
# A low temperature makes the model careful: it nearly always takes its favourite. A high one
# makes it adventurous. With T = 1 the probabilities are those that the model was trained to give.

# %%
for temperature in (0.3, 1.0, 3.0):
    print(f"temperature {temperature}")
    p = probabilities(logits, temperature)
    bars(dict(zip(names, p[top.indices].tolist())))

# %% [markdown]
# ## To draw a token
#
# How does a computer draw token 2 with probability 0.3? Put the probabilities side by side on a
# line from 0 to 1 and throw a dart: a random number u, uniform between 0 and 1.
#
#     p = 0.5, 0.2, 0.3       0 |--- token 0 ---|- 1 -|-- 2 --| 1
#                                              0.5   0.7

# %% Exercise 2: draw
def draw(p, u):
    """The number of the token that the dart u hits. p: a tensor [V] that sums to 1; 0 <= u < 1."""
    ...     # EXERCISE. torch.cumsum(p, 0) gives where each token's part ends.


three = torch.tensor([0.5, 0.2, 0.3])
draw = check(
    draw,
    ((three, 0.1), 0, "The dart lands in the first part, which goes from 0 to 0.5."),
    ((three, 0.6), 1,
     "The parts end at 0.5, 0.7 and 1. 0.6 is beyond the first end, but not beyond the second. Do"
     " not take the most likely token: that is greedy decoding."),
    ((three, 0.95), 2, "0.95 is beyond the first two ends. Count the ends that u has passed."),
    ((three, 0.5), 1, "A part begins where the one before it ends: 0.5 belongs to token 1."))

# %% [markdown]
# A loop around this is a language model that writes: draw a token, append it, ask again. Stop at
# the end token. Here are three answers to the same puzzle. Only the darts differ.

# %%
def write(tokens, rng, longest=200):
    """Draw an answer the slow way: the whole text goes through the model for every new token."""
    tokens = list(tokens)
    while len(tokens) < len(prompt) + longest and tokens[-1] != END:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1]
        tokens.append(int(draw(probabilities(logits, 1.0), float(torch.rand(1, generator=rng)))))
    return tokens


for seed in (0, 1, 3):
    text = write(prompt, torch.Generator().manual_seed(seed), longest=steps(200, 20))
    print(f"--- seed {seed}\n{tokenizer.decode([t for t in text[len(prompt):] if t != END])}")

# %% [markdown]
# ## The key/value cache
#
# `write` computes all tokens again for each new one. That is a waste. In a transformer, a token
# looks only at the tokens before it, through their *keys* and *values*, and these never change.
# So they can be kept: then each new token is one position of work, and not the whole text.

# %% Exercise 3: count the work
def positions(prompt_length, new):
    """How many positions the model computes to draw `new` tokens: (without cache, with cache)."""
    ...     # EXERCISE. Think of a prompt of 3 tokens and 2 new ones first, on paper.


positions = check(
    positions,
    ((3, 1), (3, 3),
     "For one new token the prompt must be read once in both ways: 3 positions. The new token"
     " itself need not be computed; it is only drawn."),
    ((3, 2), (7, 4),
     "Without a cache: 3 positions, then 3 + 1. With it: the 3 of the prompt, then only the 1 new"
     " token. The last token that is drawn is never read."),
    ((34, 200), (26700, 233),
     "Without a cache: 34 + 35 + ... + 233, because the text grows by one token each time. With"
     " it: 34, then 199 times 1."))

# %% [markdown]
# Do both give the same? We take the most likely token each time (*greedy*), so that no dart is
# needed. The slow way is written out here. The fast one is `sample.generate`.

# %%
def greedy(tokens, new):
    """Without a cache."""
    for _ in range(new):
        with torch.no_grad():
            tokens = tokens + [int(model(torch.tensor([tokens]))[0, -1].argmax())]
    return tokens


new = steps(400, 20)        # The model would stop earlier. We let it go on, to measure time.
begin = time.process_time()
slow = greedy(prompt, new)[len(prompt):]
middle = time.process_time()
[[sample]] = generate(model, [prompt], max_new_tokens=new, temperature=0, stop=set())
end = time.process_time()
print("positions: {:,} without cache, {:,} with".format(*positions(len(prompt), new)))
print(f"seconds:   {middle - begin:.2f} without cache, {end - middle:.2f} with")
print("the same tokens:", slow == sample.tokens)

# %% [markdown]
# ## To think about
#
# The cache saves nearly all positions, but not the same share of the time. Where does the rest of
# the time go? (What has to be read from memory for one token, and what for a hundred at once?)
# And what would you do to use that: how could one draw answers to a hundred puzzles at the same
# time? `Cache` and `Schedule` in sample.py are one answer.
