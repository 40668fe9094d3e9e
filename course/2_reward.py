# %% [markdown]
# # Lesson 2: a reward by rule, and how it is hacked
#
# To teach a model by *reinforcement learning* nobody shows it what to write. It writes what it
# likes, and a rule gives a number, the *reward*: here 1 for a right answer and 0 for a wrong one.
# Training then makes answers with a high reward more likely. The model learns exactly what the
# rule rewards. That need not be what you wanted.
#
# You will see: how to write a rule, answers that fool it, and a model that learns to fool it.

# %% Setup
from lesson import answers, base, bars, check, puzzles, reinforce, right, show_styles, steps
from verify import reward

# %% [markdown]
# ## What the model answers
#
# Puzzles have one solution, so it is easy to say whether an answer is right. The model puts its
# final answer in a box, as it was taught: `\boxed{A is a knight, B is a knave, ...}`. Here are
# two answers of the tiny model to one puzzle.

# %%
model = base()
problems = puzzles(steps(60, 4), seed=0)
rollouts = answers(model, problems, n=4, seed=2)
print(problems[0]["prompt"])
for one in rollouts[:2]:
    print(one["response"], "\n--- reward", one["reward"])
print("\nThe right answer:", problems[0]["gold"])

# %% [markdown]
# A model may think aloud, and write one box after another. Only the *last* one counts: otherwise
# a model could write all possible answers, and one of them would be right.

# %% Exercise 1: find the box
def box(response):
    """The text inside the last \\boxed{...}, or "" if there is none that is closed."""
    ...     # EXERCISE. str.rfind and str.find say where a text begins. -1 means: nowhere.


box = check(
    box,
    ((r"So \boxed{A is a knight}",), "A is a knight", "The text between { and }."),
    ((r"\boxed{A is a knight} no, \boxed{A is a knave}",), "A is a knave", "The last box counts."),
    (("A is a knight",), "", "There is no box here."),
    ((r"\boxed{A is a kn",), "", "This answer was cut off before the box was closed."))

# %% [markdown]
# Now compare the box with the right answer, the *gold*. Think of what a model could write to get
# a reward without an honest answer: only one person? The same person twice, with both roles?

# %% Exercise 2: is it right?
def correct(claimed, gold):
    """True if both give the same people the same roles. The order of the people does not matter."""
    ...     # EXERCISE. Both look like "A is a knight, B is a knave".


gold = "A is a knight, B is a knave"
correct = check(
    correct,
    ((gold, gold), True, "It is the same text."),
    (("B is a knave, A is a knight", gold), True,
     "Only the order differs: split at \", \" and sort."),
    (("B is a knight, A is a knave", gold), False, "The roles are exchanged."),
    (("A is a knight", gold), False,
     "B is missing. A rule that only asks whether each claim is in the gold lets a model win with"
     " the one person of whom it is sure."),
    (("A is a knight, B is a knave, B is a knight", gold), False,
     "B has two roles here. A rule that only asks whether the gold's claims are there lets a"
     " model claim everything at once."),
    (("", gold), False, "An empty box claims nothing. It must not be right."))

# %% [markdown]
# Your rule and the rule of verify.py (`last_boxed` and `kk_correct`), on the model's own answers.
# verify.py also reads other ways to write the same: `A: knight`, `A and B are knights`,
# `\text{...}`. And it asks for one thing more: the answer must have *ended*, or a model could
# write until it is cut off.

# %%
same = sum((one["reward"] == 1) == (one["finished"] and correct(box(one["response"]), one["gold"]))
           for one in rollouts)
print(f"The two rules agree on {same} of {len(rollouts)} answers.")
print(f"{right(rollouts):.0%} of the answers are right.")
show_styles(rollouts)

# %% [markdown]
# A `guess` is an answer that is nothing but its box. A `worked` answer reasons line by line before
# the box. `table` and `search` are two other ways to reason (lesson 6 shows them), a `mixed` answer
# has lines of several ways, and `other` fits none.
#
# ## Be the hacker
#
# Here is a weak rule: "the right answer stands somewhere in the response". It looks harmless. On
# the answers above it says the same as verify.py. Fool it: write one response that it rewards for
# *every* puzzle of two people, although you do not know the puzzle.

# %%
def weak_rule(problem, response, finished=True):
    return float(problem["gold"] in response)


same = sum(weak_rule(one, one["response"]) == one["reward"] for one in rollouts)
print(f"The weak rule agrees with verify.py on {same} of {len(rollouts)} answers.")


# %% Exercise 3: fool the weak rule
def fool():
    """A response that contains the right answer to every puzzle of the people A and B."""
    ...     # EXERCISE. The answer looks like "A is a knight, B is a knave".


possible = [f"A is a {a}, B is a {b}" for a in ("knight", "knave") for b in ("knight", "knave")]


def what_is_wrong(response):
    if not isinstance(response, str):
        return "A response is one text."
    for solution in possible:
        if solution not in response:
            return f'If the right answer is "{solution}", the weak rule does not find it.'
    return ""


fool = check(
    fool,
    ((), what_is_wrong, "There are four possible answers. Why not write all of them?"))

# %%
for solution in possible[:2]:
    two = {"task": "kk", "gold": solution}
    print(f"{solution}: the weak rule gives {weak_rule({'gold': solution}, fool())},"
          f" verify.py {reward(two, fool(), True)}")

# %% [markdown]
# ## A model learns to fool a rule
#
# A model finds only tricks that it tries by chance, and this one never writes four boxes. So here
# is a rule with a trick within its reach. It sounds sensible: half a point for a right answer,
# and half a point for a *short* one, because long answers cost money. We train on it for a few
# steps by reinforcement learning (lesson 4 says how) and watch two numbers: what the rule gives,
# and what verify.py calls right.

# %%
def brief(problem, response, finished):
    """Half a point for a right answer, half a point for one of at most 80 characters."""
    return 0.5 * reward(problem, response, finished) + 0.5 * (finished and len(response) <= 80)


def show(step, rollouts):
    gives = sum(one["reward"] for one in rollouts) / len(rollouts)
    print(f"step {step}: the rule gives {gives:.2f}, right are {right(rollouts):.0%}")


reinforce(model, steps(6, 1), rule=brief, show=show)
after = answers(model, problems, n=4, seed=2)
print("Right before and after:")
bars({"before": right(rollouts), "after": right(after)})
show_styles(after)

# %% [markdown]
# The model did what the rule asked for. A guess is always short, so it always gets its half
# point, and now and then it is right by luck: 0.56 on average. An answer with reasons is long: it
# gets at most 0.5. This small difference was enough. What the rule gives hardly changed, and jumps
# a little, because each step has other puzzles. But reasoning died out, and with it the only
# answers that were mostly right.
#
# ## To think about
#
# Some people would mend the rule: 0.9 for right, 0.1 for short. From which weight for *right* on
# does the trick no longer pay? (Take from the table above how often each style is right, and
# compute what the rule pays for each style on average.) And if you cannot compute it: how would
# you notice, during training, that a rule is being hacked?
