"""effect.py against gradients made one by one, and against what it claims: how J really changes.

The world of the second half is one a person could write out: a model of 5 tokens, answers of at
most 3, each with a reward. So J, its gradient and every probability are exact sums.
"""
import copy
import itertools
import json
import math

import numpy
import pytest
import torch

import effect
import engine.flags
import model as M
from engine import logits
from engine.batches import Sequence, response_logprobs
from engine.tables import answers_needed, histogram, standard_error
from helpers import GOLDEN, read, write
from sample import Sample


def toy(vocab=40, dtype=torch.float64, seed=0, **changes):
    torch.manual_seed(seed)
    config = dict(vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    model = M.Transformer(M.Config(**{**config, **changes})).to(dtype)
    for parameter in model.parameters():        # far from flat, so that all terms count
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def settings(**changes):
    return effect.Settings(**{"model": "", "test": "", "data": [], "max_new_tokens": 3, **changes})


def some_sequences(vocab=40, n=12):
    rng = numpy.random.default_rng(1)
    return [Sequence(rng.integers(0, vocab, length).astype(numpy.int32), int(rng.integers(1, length)))
            for length in rng.integers(2, 20, n)]


def direction(model, seed=2):
    torch.manual_seed(seed)
    return {name: torch.randn_like(p) for name, p in model.named_parameters()}


def one_by_one(model, sequences, G):
    """< grad log p, G > with a backward pass for each sequence, and nothing of effect.py."""
    found = []
    for one in sequences:
        model.zero_grad()
        tokens = torch.from_numpy(one.tokens).long()[None]
        logp = model(tokens).log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])
        logp[one.start - 1:].sum().backward()
        found.append(sum(float((p.grad * G[name]).sum()) for name, p in model.named_parameters()
                         if p.grad is not None))
    model.zero_grad(set_to_none=True)
    return numpy.array(found)


# ---- exact -----------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", ({}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}))
def test_both_methods_give_the_inner_product(changes):
    model, sequences = toy(**changes), some_sequences()
    G = direction(model)
    exact = one_by_one(model, sequences, G)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for micro_tokens in (16384, 30):            # all at once, and few at a time
        jvp = effect.effects(model, sequences, G, settings(method="jvp", micro_tokens=micro_tokens))
        difference = effect.effects(model, sequences, G, settings(method="difference",
                                                                  micro_tokens=micro_tokens))
        assert numpy.abs(jvp / exact - 1).max() < 1e-6
        assert numpy.abs(difference / exact - 1).max() < 1e-3
    for name, p in model.named_parameters():    # the weights are what they were, and trainable
        assert torch.equal(p, before[name]) and p.requires_grad and isinstance(p, torch.nn.Parameter)


def test_single_precision_is_enough():
    model, sequences = toy(), some_sequences()
    G = direction(model)
    exact = one_by_one(model, sequences, G)
    single = copy.deepcopy(model).float()
    G = {name: g.float() for name, g in G.items()}
    for method, limit in (("jvp", 1e-4), ("difference", 1e-2)):
        found = effect.effects(single, sequences, G, settings(method=method))
        assert numpy.abs(found - exact).max() < limit * numpy.abs(exact).mean(), method


def test_the_vocabulary_in_pieces(monkeypatch):
    """Regression: the slope of log p must not depend on how many logits are held at once."""
    model, sequences = toy(), some_sequences()
    G = direction(model)
    whole = effect.effects(model, sequences, G, settings(method="jvp"))
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", 3 * 40)
    assert numpy.allclose(effect.effects(model, sequences, G, settings(method="jvp")), whole, rtol=1e-12)


def test_a_gradient_of_zero_is_no_effect():
    model = toy()
    G = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for method in ("jvp", "difference"):
        assert not effect.effects(model, some_sequences(), G, settings(method=method)).any()


def test_leave_one_out_by_hand():
    found = effect.leave_one_out(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert torch.allclose(found, torch.tensor([[1.0, -0.5, -0.5], [0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="at least 2"):
        effect.leave_one_out(torch.ones(3, 1))


def test_weighted_gradients_add_up():
    model, sequences = toy(), some_sequences(n=4)
    weights = [0.5, 0.0, -2.0, 1.0]
    found = effect.weighted_gradient(model, sequences, weights, settings(micro_tokens=25))
    G = direction(model)
    exact = one_by_one(model, sequences, G) @ weights
    assert math.isclose(effect.inner(found, G), exact, rel_tol=1e-9)
    assert all(p.grad is None for p in model.parameters())
    pool = effect.Pool("", [{}] * 4, sequences, numpy.ones((4, 1)))
    g = effect.weighted_gradient(model, sequences[1:2], [1.0], settings())
    assert math.isclose(pool.norm(model, 1, settings()), math.sqrt(effect.inner(g, g)))
    assert numpy.allclose(pool.effects(model, G, settings(method="jvp")),
                          one_by_one(model, sequences, G))


# ---- the truth it claims ---------------------------------------------------------------------
END, LONGEST, PROMPT = 0, 3, [3, 1]
ANSWERS = [[*body, END] for n in range(LONGEST) for body in itertools.product(range(1, 5), repeat=n)] \
    + [list(body) for body in itertools.product(range(1, 5), repeat=LONGEST)]
REWARDS = numpy.array([float(4 in answer and answer[-1] == END or answer == [2, 2, 2])
                       for answer in ANSWERS])
SEQUENCES = [Sequence(numpy.array(PROMPT + answer, dtype=numpy.int32), len(PROMPT))
             for answer in ANSWERS]


def small():
    return toy(vocab=5, hidden_size=16, num_hidden_layers=1, seed=3)


def chances(model):
    """The probability of every answer."""
    with torch.no_grad():
        logp, _ = response_logprobs(model, SEQUENCES, False)
    return logp.sum(-1).exp().double().numpy()


def exact_gradient(model):
    p = chances(model)
    assert abs(p.sum() - 1) < 1e-12         # every answer there is
    return effect.weighted_gradient(model, SEQUENCES, (p * REWARDS).tolist(), settings())


def test_effect_is_how_fast_the_reward_grows():
    """effect * step against J after a step of that size along the example's gradient."""
    model = small()
    G = exact_gradient(model)
    J = chances(model) @ REWARDS
    assert 0.05 < J < 0.95
    values = effect.effects(model, SEQUENCES, G, settings(method="jvp"))
    for i in (0, 3, 10, 40):
        g = effect.weighted_gradient(model, SEQUENCES[i:i + 1], [1.0], settings())
        errors = []
        for step in (1e-5, 1e-6, 1e-7):
            with torch.no_grad(), effect.changed_weights(model, lambda name, p: p + step * g[name]):
                errors.append(abs((chances(model) @ REWARDS - J) / step - values[i])
                              / abs(values[i]))
        assert errors[2] < 1e-3 and errors[2] < errors[1] / 5 < errors[0] / 25


def rollouts(model, n, group, seed):
    """(which answers, rewards), [n, group] each, drawn with their exact chances."""
    p = chances(model)
    which = numpy.random.default_rng(seed).choice(len(ANSWERS), (n, group), p=p / p.sum())
    return which, torch.tensor(REWARDS[which])


def mean_of(halves):
    return {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}


def sampled_world(monkeypatch, model, seed):
    """effect.py's own sampling and rewards, in this world; `drawn` tells which answers it had."""
    drawn = []

    def generate(model, prompts, *, n, **_):
        which, _ = rollouts(model, len(prompts), n, seed)
        drawn.append(which)
        return [[Sample(ANSWERS[i], [0.0] * len(ANSWERS[i]), ANSWERS[i][-1] == END) for i in row]
                for row in which]

    monkeypatch.setattr(effect, "encode_prompts", lambda _, prompts: [PROMPT] * len(prompts))
    monkeypatch.setattr(effect, "generate", generate)
    monkeypatch.setattr(effect, "stop_ids", lambda *_: {END})
    monkeypatch.setattr(effect, "response_text", lambda _, sample: json.dumps(sample.tokens))
    monkeypatch.setattr(effect, "reward", lambda problem, text, finished:
                        REWARDS[ANSWERS.index(json.loads(text))])
    return None, drawn


def test_the_estimate_of_the_gradient_is_unbiased(monkeypatch):
    """600 groups of 4, seen along one direction: within 5 standard errors, odds of 6e-7."""
    model = small()
    G = exact_gradient(model)
    along = effect.effects(model, SEQUENCES, G, settings(method="jvp"))     # <grad log p, G> of each
    words, drawn = sampled_world(monkeypatch, model, seed=5)
    halves, about = effect.reward_gradient(model, [{"prompt": ""}] * 600, words, settings(group=4))
    found = effect.inner(mean_of(halves), G)
    worth = effect.leave_one_out(torch.tensor(REWARDS[drawn[0]])).numpy()
    groups = (worth * along[drawn[0]]).mean(1)
    assert math.isclose(found, groups.mean(), rel_tol=1e-6)                 # what was meant
    error = groups.std(ddof=1) / math.sqrt(600)
    assert abs(found - effect.inner(G, G)) < 5 * error < 0.5 * effect.inner(G, G)
    assert about["answers"] == 2400 and abs(about["reward"] - chances(model) @ REWARDS) < 0.06
    # The baseline must leave the answer itself out: with the plain mean of the group the estimate
    # is (K - 1) / K of the truth, beyond the error allowed above.
    assert abs(found * 3 / 4 - effect.inner(G, G)) > 2 * error


def test_the_gradient_of_an_odd_number_of_problems(monkeypatch):
    """Each problem counts the same, though one half has 2 of them and the other 1."""
    model = small()
    G = exact_gradient(model)
    along = effect.effects(model, SEQUENCES, G, settings(method="jvp"))
    words, drawn = sampled_world(monkeypatch, model, seed=6)
    halves, _ = effect.reward_gradient(model, [{"prompt": ""}] * 3, words, settings(group=4))
    worth = effect.leave_one_out(torch.tensor(REWARDS[drawn[0]])).numpy()
    groups = (worth * along[drawn[0]]).mean(1)
    of_halves = (groups[::2].mean() + groups[1::2].mean()) / 2
    assert abs(of_halves / groups.mean() - 1) > 0.1         # It would be seen.
    assert math.isclose(effect.inner(mean_of(halves), G), groups.mean(), rel_tol=1e-6)


def test_rows_without_an_id_are_told_apart_by_their_prompt():
    rows = [{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": ""}, {"prompt": ""}]
    one, two = (effect.Pool(name, rows, [], numpy.ones((5, 1))).ids() for name in ("x", "y"))
    assert one[:3] == two[:3] == ["a", "a", "b"] and len({*one[3:], *two[3:]}) == 4
    assert effect.Pool("x", [{"id": 7, "prompt": "a"}], [], numpy.ones((1, 1))).ids() == ["7"]


def test_answers_that_built_the_gradient_look_better_than_they_are(monkeypatch):
    """The self-term: A * V is measured on the answers of G itself, and on new ones."""
    model = small()
    words, drawn = sampled_world(monkeypatch, model, seed=7)
    halves, _ = effect.reward_gradient(model, [{"prompt": ""}] * 8, words, settings(group=4))
    G = mean_of(halves)
    along = effect.effects(model, SEQUENCES, G, settings(method="jvp"))
    truth = effect.inner(exact_gradient(model), G)          # what A * V is on the whole
    own = (effect.leave_one_out(torch.tensor(REWARDS[drawn[0]])).numpy() * along[drawn[0]]).mean(1)
    which, rewards = rollouts(model, 4000, 4, seed=8)
    new = (effect.leave_one_out(rewards).numpy() * along[which]).mean(1)
    error = new.std() / math.sqrt(len(new))
    assert abs(new.mean() - truth) < 5 * error              # odds of 6e-7
    assert math.isclose(own.mean(), effect.inner(G, G), rel_tol=1e-6)
    assert own.mean() > truth + 10 * error


def test_how_many_answers_are_needed():
    """Signal and noise as vectors: the cosine that was promised comes out."""
    rng = numpy.random.default_rng(0)
    truth = rng.normal(size=4000)
    noise = lambda n: rng.normal(size=4000) * math.sqrt(6 / n)      # noqa: E731
    cosine = lambda a, b: a @ b / math.sqrt((a @ a) * (b @ b))      # noqa: E731
    halves = numpy.mean([cosine(truth + noise(1), truth + noise(1)) for _ in range(20)])
    more = answers_needed(halves, 0.9)
    found = numpy.mean([cosine(truth + noise(2 * more), truth) for _ in range(20)])
    assert abs(found - 0.9) < 0.01
    assert answers_needed(0.0) == answers_needed(-0.1) == math.inf
    assert answers_needed(1.0) < 1e-6


# ---- tables and choices ----------------------------------------------------------------------
def test_standard_error_counts_problems_not_copies():
    values = numpy.random.default_rng(0).normal(size=400)
    ids = [str(i) for i in range(400)]
    single = standard_error(values, ids, 0)
    assert abs(single / (values.std() / 20) - 1) < 0.15
    assert math.isclose(standard_error(values.repeat(3), [i for i in ids for _ in range(3)], 0),
                        single, rel_tol=1e-9)
    assert standard_error(values[:2], ["a", "a"], 0) == 0.0


def test_the_best_are_chosen():
    rows = [{"id": one, "effect": v, "per_token": -v} for one, v in
            (("a", 5.0), ("a", 4.0), ("b", 3.0), ("c", -1.0))]

    def chosen(**changes):
        return [row["effect"] for row in effect.best(rows, settings(select="x", **changes))]

    assert chosen(share=0.5) == [5.0, 4.0] and chosen(per_problem=1) == [5.0, 3.0, -1.0]
    assert chosen(share=0.5, per_problem=1) == [5.0, 3.0]
    assert chosen(share=0.25, by="per_token") == [-1.0]
    assert chosen(share=0.5, lowest=True) == [-1.0, 3.0]
    assert chosen(share=0.01) == [5.0] and len(chosen()) == 4       # a share keeps at least one


def test_the_histogram_is_on_one_axis():
    text = histogram([("low", numpy.full(50, -1.0)), ("high", numpy.full(50, 3.0))], bins=4)
    low, high, axis = text.splitlines()
    assert low == "low   |█   |" and high == "high  |   █|" and "-1" in axis and "+3" in axis
    histogram([("same", numpy.zeros(3))])            # and no width of zero


# ---- the command -----------------------------------------------------------------------------
def command(capsys, *flags):
    """Run it in this process: exit code, and what was printed."""
    code = 0
    try:
        settings = engine.flags.parse(effect.Settings, "", argv=[*map(str, flags)])
        engine.flags.command(effect.main, settings)
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.fixture
def files(tmp_path):
    test = [{"id": f"t{i}", "task": "kk", "prompt": f"A: A is a knight{' ' * i}\n?\n",
             "gold": "A is a knight"} for i in range(4)]
    data = [{"id": f"d{i}", "prompt": "A: B\n?\n", "response": f"\\boxed{{{i}}}"} for i in range(3)]
    return write(tmp_path / "test.jsonl", test), write(tmp_path / "data.jsonl", data)


def flags(test, data, *more):
    return ("--model", GOLDEN, "--test", test, "--data", data,
            "--max-new-tokens", 4, "--group", 2, *more)


def test_a_test_that_is_never_solved_has_no_gradient(files, monkeypatch, capsys):
    code, _, err = command(capsys, *flags(*files))
    assert code == 2 and "no answer to the test problems is right" in err
    monkeypatch.setattr(effect, "reward", lambda *_: 1.0)
    code, _, err = command(capsys, *flags(*files))
    assert code == 2 and "all answers to the test problems are right" in err


def test_a_run_by_its_words_files_and_numbers(files, tmp_path, monkeypatch, capsys):
    test, data = files
    coins = itertools.cycle((0.0, 1.0, 1.0))
    monkeypatch.setattr(effect, "reward", lambda *_: next(coins))
    more = ("--out", tmp_path / "out", "--select", tmp_path / "best.jsonl", "--share", 0.67, "--all-cosines",
            "--device", "cpu")
    code, out, err = command(capsys, *flags(test, data, *more))
    assert code == 0, err
    assert "G from 8 answers to 4 problems" in err and out.startswith("data  ")
    rows = read(tmp_path / "out/data.effects.jsonl")
    assert [row["id"] for row in rows] == ["d0", "d1", "d2"]
    assert all(abs(row["cosine"]) <= 1 and row["length"] > 1 for row in rows)
    summary = json.load(open(tmp_path / "out/summary.json"))["data"][0]
    assert math.isclose(summary["effect"], sum(row["effect"] for row in rows) / 3, rel_tol=1e-9)
    best = read(tmp_path / "best.jsonl")
    assert [row["effect"] for row in best] == sorted((row["effect"] for row in rows))[:0:-1]
    assert all("response" in row for row in best)           # a file to fine-tune on
    coins = itertools.cycle((0.0, 1.0, 1.0))
    one_pass = command(capsys, *flags(test, data, "--no-halves", "--device", "cpu",
                                                   "--out", tmp_path / "one"))
    assert one_pass[0] == 0
    found = json.load(open(tmp_path / "one/summary.json"))["data"][0]["effect"]
    assert math.isclose(found, summary["effect"], rel_tol=1e-2)


def test_mistakes_are_one_line(files, tmp_path, monkeypatch, capsys):
    test, data = files
    shared = write(tmp_path / "shared.jsonl", [{"id": "t1", "prompt": "x", "response": "y"}])
    long = write(tmp_path / "long.jsonl", [{"prompt": "x" * 999, "response": "y" * 999}])
    empty = write(tmp_path / "empty.jsonl", [])
    monkeypatch.setattr(effect, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    for given, words in (
            (flags(test, shared), "t1 is a problem of"),
            (flags(test, long), "none of 1 examples"), (flags(test, empty), "no examples"),
            (flags(test, data, "--group", 1), "group = 1"),
            (flags(test, data, "--share", 0.5), "--select FILE goes with"),
            (flags(test, data, "--select", tmp_path / "s"), "--select FILE goes with"),
            (flags(test, data, "--select", tmp_path / "s", "--share", 0.1, "--by", "cosine"),
             "--all-cosines"),
            (flags(test, tmp_path / "none.jsonl"), "cannot read")):
        code, _, err = command(capsys, *given)
        assert code == 2 and words in err and err.count("\n") == 1, err


# ---- problems for RL -------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_effect_of_a_problem_is_its_policy_gradient_times_G(monkeypatch, temperature):
    """Against gradients of sum of A_k log p(o_k) / K, one by one, at the sampling temperature."""
    model = small()
    words, drawn = sampled_world(monkeypatch, model, seed=9)
    G = direction(model)
    for group, method in ((4, "jvp"), (3, "difference")):
        given = settings(group=group, temperature=temperature, method=method, problems="pool.json")
        problems = [{"id": i, "prompt": ""} for i in range(20)]
        pool = effect.problem_pool(model, problems, words, given)
        found = pool.effects(model, G, given)
        rewards = torch.tensor(REWARDS[drawn[-1]])
        exact, A = [], effect.leave_one_out(rewards).numpy()
        for which, weights in zip(drawn[-1], A):
            model.zero_grad()
            for i, weight in zip(which, weights):
                tokens = torch.tensor([PROMPT + ANSWERS[i]])
                logp = (model(tokens) / temperature).log_softmax(-1)[0, 1:-1]
                (logp.gather(-1, tokens[0, 2:, None]).sum() * weight / group).backward()
            exact.append(sum(float((p.grad * G[name]).sum())
                             for name, p in model.named_parameters()))
            norm = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5
        model.zero_grad(set_to_none=True)
        assert numpy.allclose(found, exact, rtol=1e-3, atol=1e-6) and numpy.abs(found).max() > 0.01
        assert math.isclose(pool.norm(model, 19, given), norm, rel_tol=1e-6, abs_tol=1e-9)
        equal = (rewards == rewards[:, :1]).all(1).numpy()
        assert equal.any() and not found[equal].any()       # nothing to learn, exactly
        assert [row["solved"] for row in pool.rows] == rewards.mean(1).tolist()
        assert pool.name == "pool"


def test_one_step_of_rl_on_a_problem_raises_the_reward_by_its_effect(monkeypatch):
    """In expectation over its answers a problem's effect is <its gradient, G>, the growth of J."""
    model = small()
    words, _ = sampled_world(monkeypatch, model, seed=11)
    G = exact_gradient(model)
    given = settings(group=4, method="jvp")
    pool = effect.problem_pool(model, [{"id": i, "prompt": ""} for i in range(600)], words, given)
    found = pool.effects(model, G, given)
    error = found.std(ddof=1) / math.sqrt(600)
    assert abs(found.mean() - effect.inner(G, G)) < 5 * error < 0.5 * effect.inner(G, G)


def test_problems_are_chosen_by_effect(files, tmp_path, monkeypatch, capsys):
    test, data = files
    pool = write(tmp_path / "pool.jsonl", [
        {"id": f"p{i}", "task": "kk", "prompt": f"B: A{' ' * i}\n", "gold": "A is a knave"}
        for i in range(8)])
    coins = itertools.cycle((0.0, 1.0, 1.0))
    monkeypatch.setattr(effect, "reward", lambda *_: next(coins))
    given = flags(test, data)[:4] + ("--problems", pool, "--max-new-tokens", 4, "--group", 2,
                                     "--device", "cpu", "--out", tmp_path / "o")
    best, worst = tmp_path / "best.jsonl", tmp_path / "worst.jsonl"
    code, out, err = command(capsys, *given, "--select", best, "--share", 0.25)
    assert code == 0 and "pool" in out, err
    rows = sorted((row["effect"] for row in read(tmp_path / "o/pool.effects.jsonl")), reverse=True)
    assert len(rows) == 8 and [row["effect"] for row in read(best)] == rows[:2]
    assert all(0 <= row["solved"] <= 1 for row in effect.read_problems(str(best)))  # for grpo.py
    coins = itertools.cycle((0.0, 1.0, 1.0))
    code, out, err = command(capsys, *given, "--select", worst, "--share", 0.25, "--lowest")
    assert code == 0 and [row["effect"] for row in read(worst)] == rows[:5:-1], err
    for more, words in (((), "give --data, or --problems"),
                        (("--problems", test), "t0 is a problem of")):
        code, _, err = command(capsys, *flags(test, data)[:4], *more)
        assert code == 2 and words in err and err.count("\n") == 1, err
