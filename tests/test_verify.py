"""verify.py against labelled answers, against hand-computed values, and against hostile text."""
import itertools
import json
import math
import os
import random
import subprocess
import sys
import textwrap
import time

import pytest

import verify as V

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
KK_GOLD = "Zoey is a knight, Liam is a knave"


def cases(name):
    with open(os.path.join(HERE, "cases", name), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# ---- which box counts ------------------------------------------------------------------------
@pytest.mark.parametrize("text, box", [
    ("", None), ("no box, 5", None), (r"\boxed", None), (r"\boxed 5", None), (r"\boxed{}", ""),
    (r"\boxed{5}", "5"), (r"\boxed {5}", "5"), (r"\fbox{5}", "5"), (r"so $\boxed{5}$.", "5"),
    (r"\boxed{1}, then \boxed{2}", "2"), (r"\boxed{1} and \boxed{2", "1"), (r"\boxed{2", None),
    (r"\boxed{\boxed{5}}", "5"), (r"\boxed{6 \boxed{5}}", "5"), (r"\boxed{1 \boxed{2} 3} 4", "2"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"} \boxed{5}}", "5"), (r"{ \boxed{5}", "5"),
    (r"\boxed{5\}", None), ("a\\\n\\boxed{\nx\n}", "\nx\n"), (r"\\\boxed{5}", "5"),
])
def test_last_boxed(text, box):
    assert V.last_boxed(text) == box


@pytest.mark.parametrize("depth", [1, 4, 40, 20_000])
def test_trap_box_regex_that_fails_at_nesting_depth_4(depth):
    """A regex for balanced braces is written for some depth; \\frac{\\sqrt{x^{2}}}{3} needs 4."""
    inside = "{" * depth + "5" + "}" * depth
    assert V.last_boxed("say \\boxed{" + inside + "} done}") == inside


def test_trap_an_early_right_box_followed_by_a_wrong_one():
    """Taking the first box, or any right box, is what a policy learns to print boxes for."""
    problem = {"task": "math", "gold": "5"}
    assert V.reward(problem, r"\boxed{6}, no: \boxed{5}", True) == 1.0
    assert V.reward(problem, r"\boxed{5}, no: \boxed{6}", True) == 0.0
    assert V.reward(problem, r"\boxed{5 \boxed{6}}", True) == 0.0
    assert V.reward(problem, r"\boxed{4} \boxed{5} \boxed{6}", True) == 0.0


def test_trap_a_truncated_answer_scored_at_evaluation_but_not_in_training():
    """Appending the end token to truncated text before scoring made the two disagree (PAPER: A)."""
    for problem, answer in (({"task": "math", "gold": "5"}, r"\boxed{5}"),
                            ({"task": "gsm8k", "gold": "5"}, r"\boxed{5}"),
                            ({"task": "kk", "gold": KK_GOLD}, r"\boxed{%s}" % KK_GOLD)):
        assert V.reward(problem, answer, True) == 1.0
        assert V.reward(problem, answer, False) == 0.0
        assert V.reward(problem, answer + "<|endoftext|>", False) == 0.0      # spelled, not sampled


def test_reward_of_an_unknown_task_is_an_error_not_zero():
    with pytest.raises(ValueError, match="chess"):
        V.reward({"task": "chess", "gold": "5"}, r"\boxed{5}", True)


# ---- Knights & Knaves ------------------------------------------------------------------------
def test_kk_labelled_cases():
    """All of them; the text's end token stands for `finished`."""
    wrong = []
    for case in cases("kk.jsonl"):
        finished = case["response"].endswith(("<|endoftext|>", "<|im_end|>"))
        got = V.reward({"task": "kk", "gold": case["gold"]}, case["response"], finished)
        if case["expected"] is not None and got != float(case["expected"]):
            wrong.append((case["tier"], case["category"], case["response"][-100:]))
    assert not wrong


@pytest.mark.parametrize("box, right", [
    (KK_GOLD, True), ("Liam is a knave, Zoey is a knight", True), ("Zoey is a knight.", False),
    ("Zoey is a knight and Liam is a knave.", True), (" zoey  IS a Knight,Liam is a KNAVE ", True),
    (r"\text{Zoey is a knight}, \textbf{Liam} is a knave", True),
    ("1. Zoey: knight; 2. Liam: knave", True),
    ("Zoey is a knight, Liam is a knave, Emma is a knight", False),
    ("Zoey is a knight, Liam is a knave, Zoey is a knight", False),
    ("Zoey is a knight, Liam is a knave, Liam is a knight", False),
    ("Zoey is a knight, Liam is not a knight", False),
    ("Zoey is a knight, Liam is a knave or not", False),
    ("Zoey is a knight or Liam is a knave", False), ("Zoey, Liam", False), ("knight, knave", False),
    ("Zoey is a knave, Liam is a knight", False), ("a knight is Zoey, a knave is Liam", False),
    ("Zoey is a knight, Liam is a knave is false", False), ("", False),
    ("Zoey is a saint, Liam is a knave", False),
])
def test_kk_by_hand(box, right):
    assert V.kk_correct("I say \\boxed{%s}." % box, KK_GOLD) is right


def test_trap_zoey_is_not_a_knight_she_is_a_knave_read_as_knight():
    """Looking for "Zoey ... knight" in the box accepts its denial."""
    for box in ("Zoey is not a knight, she is a knave, Liam is a knave",
                "Zoey is not a knight, Liam is a knave",
                "Zoey isn't a knight, Liam is a knave", "Zoey is never a knight, Liam is a knave",
                "not Zoey is a knight, Liam is a knave"):
        assert not V.kk_correct("\\boxed{%s}" % box, KK_GOLD)


def test_kk_roles_come_from_the_gold():
    gold = "Zoey is a saint, Liam is a sinner"
    assert V.kk_correct(r"\boxed{Liam is a sinner, Zoey is a saint}", gold)
    assert not V.kk_correct(r"\boxed{Liam is a knave, Zoey is a knight}", gold)
    assert V.kk_correct(r"\boxed{Ann is an angel}", "Ann is an angel")


# ---- equality: the labelled cases ------------------------------------------------------------
def math_verdicts(tier):
    for case in cases("math.jsonl"):
        if case["tier"] == tier and case["expected"] is not None and case["kind"] != "freeform":
            text = case.get("prediction", "")
            box = V.last_boxed(text) if case["kind"] == "response" else text
            yield case, box is not None and V.math_equal(box, case["gold"])


@pytest.mark.parametrize("tier, share, false_yes", [("core", 0.995, 0), ("extraction", 1.0, 0),
                                                    ("convention", 0.95, 0)])
def test_math_labelled_cases(tier, share, false_yes):
    """Wrong yeses are bounded apart: they are what RL finds.

    The 9 convention cases missed want several boxes read as one list; "the last box" says no.
    """
    verdicts = list(math_verdicts(tier))
    wrong = [(case["gold"], case["prediction"][-80:]) for case, got in verdicts
             if got != case["expected"]]
    yes = [(case["gold"], case["prediction"][-80:]) for case, got in verdicts
           if got and not case["expected"]]
    assert len(verdicts) > 150
    assert len(yes) <= false_yes, yes
    assert len(wrong) <= (1 - share) * len(verdicts), wrong


# ---- equality: by hand -----------------------------------------------------------------------
def hand_pairs():
    with open(os.path.join(HERE, "cases", "hand.txt"), encoding="utf-8") as file:
        equal, different = file.read().split("-" * 40 + "\n")
    for verdict, block in ((True, equal), (False, different)):
        for line in block.splitlines():
            if line and not line.startswith("#"):
                yield (*line.split(" | ", 1), verdict)


def test_hand_written_pairs():
    pairs = list(hand_pairs())
    wrong = [pair for pair in pairs if V.math_equal(pair[1].strip(), pair[0]) is not pair[2]]
    assert len(pairs) > 500 and not wrong


def refused(gold, *answers):
    accepted = [answer for answer in answers if V.math_equal(answer, gold)]
    assert not accepted, f"accepted for {gold}: {accepted}"


def accepted(gold, *answers):
    missed = [answer for answer in answers if not V.math_equal(answer, gold)]
    assert not missed, f"refused for {gold}: {missed}"


def test_trap_a_minus_sign_or_a_thousands_separator_stripped():
    """Normalisers that delete '-', ',' or '\\!' delete them where they carry the value."""
    refused("-7", "7", "+7")
    refused("7", "-7", "−7", r"\text{-}7")
    refused("1,234", "234", "1", "1234.5", "1,243", "12,34", "1.234")
    accepted("1,234", "1234", "1{,}234", r"1,\!234", r"1\,234")
    refused("(1,2)", "12", "1,2,", "(12)")


def test_trap_half_open_intervals_taken_for_each_other():
    """Stripping brackets, or comparing only the endpoints, makes (1,2] = [1,2)."""
    ends = [left + "1,2" + right for left in "([" for right in ")]"]
    for gold, answer in itertools.permutations(ends, 2):
        refused(gold, answer)
    accepted("(1,2]", "1 < x \\le 2", "x \\in (1, 2]", "2 \\ge x > 1")
    refused("[a,b)", "(a,b]")


def test_trap_10_point_is_not_10():
    """A trailing point must be dropped, not make the number unreadable."""
    accepted("10", "10.", "10.0", "$10$.", "10 .")
    accepted("10.", "10")


def test_trap_base_subscripts_ignored():
    refused("1011_2", "1011_3", "-1011_2", "1101_2", "1011^2", "10112")
    accepted("1011_2", "1011_{2}", "(1011)_2", r"1011_{\text{two}}", "1011")
    refused("1011", "1011_2")                           # there the base changes the value


def test_trap_rounded_to_6_decimals():
    """Comparing floats with a tolerance accepts every rounding, and roundings are easy to learn."""
    refused("\\pi", "3.14", "3.141593", "3.141592653589793", "3.14159265358979323846264338327950")
    refused("\\frac{1}{3}", "0.333333", "0.3333333333333333", ".33333333333333333333333333333333")
    refused("\\sqrt{2}", "1.414214", "1.4142135623730951")
    refused("9007199254740993", "9007199254740992")     # 2^53 + 1 is no double
    refused("5", "5.0000000000000000000000000000000000000001")
    accepted("\\frac{1}{8}", "0.125", "0.12500")


def test_trap_text_stripped_as_a_unit():
    """Deleting \\text{...} whole turns `gold \\text{ or } wrong` into something that passes."""
    refused("3", r"3 \text{ or } 4", r"3\text{ is wrong, it is }4", r"3 \text{ if } x > 4",
            r"\text{not } 3",
            r"3 \text{ and } 4", r"3\text{ never}")
    refused(r"\text{Alice}", r"\text{not Alice}", r"\text{Alice or Bob}",
            r"\text{Alice}, \text{Bob}")
    refused(r"5\text{ cm}", r"5\text{ m}", r"5\text{ cm}^2")
    accepted(r"5\text{ cm}", "5", r"5\,\mathrm{cm}", r"5\text{ centimeters}")
    accepted("5", r"5\text{ apples}")


def test_trap_code_in_answers_is_executed(tmp_path):
    """sympy's parse_expr calls eval on what a model writes; two graders in use do it."""
    canary = tmp_path / "canary"
    for code in (f"open('{canary}','w')", f"__import__('os').system('touch {canary}')",
                 f"exec(\"open('{canary}','w')\")", f"5;open('{canary}','w')", "exit()", "1/0"):
        V.math_equal(code, "5"), V.math_equal("5", code), V.kk_correct("\\boxed{%s}" % code, KK_GOLD)
    assert not canary.exists()
    source = open(V.__file__, encoding="utf-8").read()
    for word in ("eval(", "exec(", "__import__", "literal_eval", "sympy."):
        assert word not in source


def test_a_gold_that_is_a_printed_float_is_the_one_rounding_accepted():
    accepted("4.123105625617661", r"\sqrt{17}")
    refused("4.123105625617661", r"\sqrt{17.0000001}", "4.1231", "4.12310562561766")
    refused(r"\sqrt{17}", "4.123105625617661")
    refused("4.1231", r"\sqrt{17}")


def test_the_tree_reads_as_a_mathematician_would():
    def number(n):
        return ("number", V.Fraction(n))

    def tree(text):
        return V.read(V.tidy(text))[0]
    x = ("variable", "x")
    assert tree("-2^2") == ("*", number(-1), ("^", number(2), number(2)))
    assert tree("2^3^2") == ("^", number(2), ("^", number(3), number(2)))
    assert tree(r"\sin x^2") == ("function", "sin", ("^", x, number(2)))
    assert tree(r"\sin^2 x") == ("^", ("function", "sin", x), number(2))
    assert tree(r"\sin(x)x") == ("*", ("function", "sin", x), x)
    assert tree("1 < x \\le 2") == ("relation", "<≤", number(1), x, number(2))
    assert tree(r"\frac12") == ("*", number(1), ("^", number(2), number(-1)))
    assert V.read(r"5\text{ square feet}") == (number(5), {"foot^2"})


@pytest.mark.parametrize("text, real, imaginary", [
    ("\\sin 1", math.sin(1), 0), ("\\cos 100", math.cos(100), 0), ("\\tan 2", math.tan(2), 0),
    ("\\ln 10", math.log(10), 0), ("\\log 5", math.log10(5), 0), ("\\log_7 5", math.log(5, 7), 0),
    ("\\arctan 3", math.atan(3), 0), ("\\arcsin(1/3)", math.asin(1 / 3), 0),
    ("\\cot 1", 1 / math.tan(1), 0),
    ("\\arccos(-1/3)", math.acos(-1 / 3), 0), ("\\exp(-2)", math.exp(-2), 0), ("e^2", math.e**2, 0),
    ("5^{2/3}", 5 ** (2 / 3), 0), ("\\sqrt[3]{-7}", -7 ** (1 / 3), 0), ("\\sqrt{-7}", 0, 7**0.5),
    ("(1+i)^5", -4, -4), ("e^{2i}", math.cos(2), math.sin(2)), ("\\ln(-1)", 0, math.pi),
    ("i^i", math.exp(-math.pi / 2), 0), ("|3+4i|", 5, 0), ("\\lfloor -2.5 \\rfloor", -3, 0),
    ("\\lceil \\pi \\rceil", 4, 0), ("\\binom{7}{3}", 35, 0), ("6!", 720, 0), ("0^0", 1, 0)])
def test_values(text, real, imaginary):
    number = V.inexact(V.values(V.read(V.tidy(text))[0])[0])
    assert float(number.x) == pytest.approx(real, abs=1e-14, rel=1e-14)
    assert float(number.y) == pytest.approx(imaginary, abs=1e-14, rel=1e-14)


def test_fifty_digits_are_right():
    """Identities that only hold if log, exp, the angle and π are good to far beyond a double."""
    for text in (r"4\arctan\frac15-\arctan\frac{1}{239}-\frac{\pi}{4}", r"\sin^2 1+\cos^2 1-1",
                 r"e^{i\pi}+1",
                 r"\sqrt{2}\sqrt{3}-\sqrt{6}", r"\ln 6-\ln 2-\ln 3",
                 r"\cos\frac{\pi}{5}-\frac{1+\sqrt5}{4}"):
        number = V.inexact(V.values(V.read(V.tidy(text))[0])[0])
        assert max(abs(number.x), abs(number.y)) < V.Decimal("1e-45"), text


# ---- equality: properties --------------------------------------------------------------------
FRAGMENTS = """
    { } \\ \\frac{ \\frac \\sqrt{ \\boxed{ ( ) [ ] | ^ _ 9 99999 ! \\sin \\cos \\tan^{-1} \\ln
    \\log_ \\pm \\mp , x y n + - * / \\text{ \\text{or} \\text{cm} \\left( \\right]
    \\begin{pmatrix} \\end{pmatrix} & \\\\ √ . 0. \\overline{3} \\cup \\cap \\setminus
    \\mathbb{R} and 1/ e^ i \\pi $ % \\% \\{ \\} = < \\le \\ne \\in \\infty \\approx : " α ½ 2^
    \\circ ° \\emptyset 3 \\binom{5}{2} \\sum_{k=1}^{n} \\$ ^{ _{2} sqrt pi \\lfloor base
    million Ⅴ ٠ ² is knight a
    """.split() + [" ", "\n", "\ud800", "\0", " or ", " and "]


def random_text(rng):
    return "".join(rng.choice(FRAGMENTS) for _ in range(rng.choice((1, 3, 8, 20, 60))))


def check_any_two_strings(a, b):
    for verdict in (V.math_equal(a, b), V.math_equal(b, a), V.kk_correct(a, b)):
        assert isinstance(verdict, bool)
    assert V.last_boxed(a) is None or isinstance(V.last_boxed(a), str)
    assert V.reward({"task": "math", "gold": b}, a, True) in (0.0, 1.0)
    if a.strip():
        assert V.math_equal(a, a)


def test_random_latex_never_raises_and_equals_itself():
    rng = random.Random(0)
    for _ in range(4000):
        text = random_text(rng)
        check_any_two_strings(text, rng.choice((random_text(rng), text + rng.choice(FRAGMENTS))))


def test_equality_is_symmetric():
    """But for three conventions that read the gold: a base left out, a printed float, a choice."""
    pairs = [(case["gold"], case.get("prediction", "")) for case in cases("math.jsonl")
             if case["kind"] == "answer"] + [pair[:2] for pair in hand_pairs()]
    one_way = V.re.compile(r"\d\s*\)?\s*_|base|\.\d{14}|^\(?[A-J]\)?$")
    tried = [pair for pair in pairs if not any(map(one_way.search, pair))]
    assert len(tried) > 0.95 * len(pairs)
    for gold, answer in tried:
        assert V.math_equal(answer, gold) == V.math_equal(gold, answer), (gold, answer)


def test_golds_with_a_value_equal_themselves_rewritten():
    """Reflexivity past the shortcut for equal strings and trees: gold + 0 has the gold's value."""
    golds = {case["gold"] for case in cases("math.jsonl")} | {pair[0] for pair in hand_pairs()}
    tried = 0
    for gold in sorted(golds):
        try:
            tree = V.read(V.tidy(gold))[0]
        except V.Unreadable:
            continue
        scalar = tree[0] in ("number", "+", "*", "^", "function", "variable")
        if scalar and None not in V.values(tree):
            tried += 1
            accepted(gold, "0+" + gold)
            refused(gold, "0.0001+" + gold)
    assert tried > 150


def test_random_sums_and_products_are_equal_however_they_are_written():
    """Right answers in a random order and shape are accepted, with one number off refused."""
    rng = random.Random(1)
    for _ in range(200):
        terms = [(rng.randint(1, 9), rng.choice(("x", "y", "xy", "x^2", "\\sqrt{x}", "\\pi",
                                                 "\\sqrt{5}", "i")))
                 for _ in range(rng.randint(2, 4))]
        if len({name for _, name in terms}) < len(terms):
            continue

        def write(terms, dot=""):
            return "+".join(f"{n}{dot}{{{name}}}" for n, name in terms)
        gold = write(terms)
        shuffled = rng.sample(terms, len(terms))
        accepted(gold, write(shuffled, " \\cdot "), "2(" + write(shuffled) + ")/2",
                 "-(-(" + write(shuffled) + "))")
        off = [(n + (i == 0), name) for i, (n, name) in enumerate(shuffled)]
        refused(gold, write(off), write(shuffled[1:]), gold + "+1", "-(" + gold + ")")


def test_with_hypothesis():
    hypothesis = pytest.importorskip("hypothesis",
                                     reason="hypothesis is not installed: property search skipped")
    st = hypothesis.strategies
    text = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)),
                    max_size=30).map("".join)

    @hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @hypothesis.given(text, text)
    def search(a, b):
        check_any_two_strings(a, b)
    search()


# ---- hostile text ----------------------------------------------------------------------------
def test_adversarial_cases():
    """Verdicts as labelled, in a process of its own: bounded in time and memory, nothing written."""
    program = textwrap.dedent("""
        import json, os, resource, sys
        sys.path.insert(0, sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        import verify
        whole = lambda pieces: "".join(text * count for text, count in pieces)
        for line in open(sys.argv[2], encoding="utf-8"):
            case = json.loads(line)
            text, gold = whole(case["pieces"]), case["gold"]
            if "gold_pieces" in case:
                gold = whole(case["gold_pieces"])
            if case["kind"] == "response":
                got = verify.reward({"task": "math", "gold": gold}, text, True) == 1.0
            else:
                got = verify.math_equal(text, gold)
            assert case["expected"] in (None, got), case["id"]
            verify.math_equal(gold, text), verify.kk_correct(text, gold), verify.last_boxed(text)
            verify.kk_correct("\\\\boxed{" + text + "}", gold)
        assert not os.path.exists("/tmp/verify-canary") or not os.listdir("/tmp/verify-canary")
        """)
    subprocess.run([sys.executable, "-c", program, ROOT,
                    os.path.join(HERE, "cases", "adversarial.jsonl")],
                   check=True, timeout=60)


BOMBS = [
    "{", "}", "\\", "\\\\", "\\{", "\\boxed{", "\\boxed ", "\\frac{", "\\frac1", "\\sqrt{",
    "\\sqrt", "(", "(1,", "[0,1]\\cup", "|", "^", "9^", "2^{", "_", "x_{", "9", "0.", ".",
    "\\overline{", "1/", "x+", "-", "!", "9!", "\\sin", "5\\sin1+", "\\pm", "1\\pm", ",", "1,",
    "1 ", "and ", "5 or ", "\\text{", "\\text{a}", "\\begin{pmatrix}", "1&", "1\\\\", "α", "½",
    "√", "\ud800", "\x00", "$", "%", "<x<", "=x", "\n", " ", "a is a b, ", "a is ", "(1) ",
    "is a knight, ", "mm ", "million ", "**", '"', "\\,", "\\color{", "''", "1 1/1 ", "\\circ",
    "a.", "\\log_{2}"]


@pytest.mark.parametrize("length", [100_000, V.LONGEST - 10])
def test_trap_hangs_on_a_million_backslashes(length):
    """Every function on a string of every bomb. The promise is 50 ms each (bench/verify.py measures
    it); the bound here only tells linear from quadratic: 20 times that for the slowest."""
    slowest = (0.0, "")
    for bomb in BOMBS:
        text = bomb * (length // len(bomb))
        for run in (lambda: V.last_boxed(text),
                    lambda: V.kk_correct("\\boxed{" + text + "}", KK_GOLD),
                    lambda: V.math_equal(text, "5"), lambda: V.math_equal("x+1", text),
                    lambda: V.math_equal(text, text + "+0"),
                    lambda: V.reward({"task": "math", "gold": "5"}, "\\boxed{" + text + "}", True)):
            start = time.perf_counter()
            run()
            slowest = max(slowest, (time.perf_counter() - start, bomb))
    assert slowest[0] < 1.0, slowest


def test_towers_factorials_and_deep_nests_are_no_numbers():
    """9^9^9^9, (10^9)!, and Python's own limits: 4,300 digits to an int, 1,000 frames."""
    for text in ("9^9^9^9", "2^{10^{10}}", "10^{10^{100}}", "(10^9)!", "10^9!", "9!!!!!",
                 "\\binom{10^9}{10^8}",
                 "9" * 400 + "^{" + "9" * 50 + "}", "\\exp(\\exp(\\exp(100)))", "\\sin(10^{50})",
                 "\\ln 0", "1/0"):
        assert V.math_equal(text, text)
        refused("5", text, text + "+5", "5^{" + text + "}")
    assert V.values(V.read("\\sin(10^{20})")[0]) == (None,)    # too many turns for 50 digits
    accepted("1", "(" * 30 + "1" + ")" * 30)
    for opening, closing in ("()", ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("2^{", "}"), ("|", "|"),
                             ("-(", ")")):
        refused("5", opening * 60 + "1" + closing * 60)
    assert V.math_equal("9" * 5000, "9" * 5000) and not V.math_equal("9" * 5000, "9" * 4999 + "8")
    accepted("9" * 400, "9" * 400 + ".0")
    refused("9" * 400, "9" * 399 + "8")


def test_deep_callers_do_not_make_it_overflow():
    """A parser that recurses freely works in the shell and fails under a trainer's own stack."""
    def call(depth):
        return call(depth - 1) if depth else [V.math_equal(text, "5") for text in texts]
    texts = [bomb * (V.LONGEST // len(bomb)) for bomb in BOMBS] + [
        "1-" * 240 + "1", "1/" * 240 + "1", "A∪B∩" * 120 + "A", "9" + "!" * 480, "x^2" * 150,
        "1=" * 240 + "1"]
    assert not any(call(500))


# ---- tables ----------------------------------------------------------------------------------
def test_pass_at_k_by_hand():
    assert V.pass_at_k(1, 1, 1) == 1.0 and V.pass_at_k(1, 0, 1) == 0.0
    assert V.pass_at_k(4, 1, 2) == 0.5                   # 3 of the 6 pairs hold the right one
    assert V.pass_at_k(5, 2, 2) == pytest.approx(0.7)    # all pairs but the 3 among 3 wrong ones
    assert V.pass_at_k(10, 3, 8) == 1.0                  # 7 wrong ones cannot fill 8 places
    assert V.pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    for n, c, k in ((4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1), (0, 0, 1)):
        with pytest.raises(ValueError):
            V.pass_at_k(n, c, k)


def test_pass_at_k_is_the_share_of_all_choices():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
            share = sum(map(max, draws)) / len(draws)
            assert V.pass_at_k(n, c, k) == pytest.approx(share), (n, c, k)


def test_majority_by_hand():
    assert V.majority(["1/2", "0.5", "2"], [1, 1, 0]) == 1.0             # classes, not strings
    assert V.majority(["1/2", "2", "2.0"], [1, 0, 0]) == 0.0
    assert V.majority(["1", "2"], [1, 0]) == 0.5                         # a tie is shared
    assert V.majority(["2", "1"], [0, 1]) == 0.5                         # whatever the order
    assert V.majority(["1", "2", "3"], [0, 1, 0]) == pytest.approx(1 / 3)
    assert V.majority([None, None, "1"], [0, 0, 1]) == 1.0               # no answer, no vote
    assert V.majority([None], [0]) == 0.0 and V.majority([], []) == 0.0
    with pytest.raises(ValueError):
        V.majority(["1"], [])


def test_wilson_by_hand():
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611."""
    assert V.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert V.wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert V.wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_samples_of_one_problem_are_not_independent_trials():
    assert V.trials([[1.0], [0.0], [1.0]]) == 3                   # one sample per problem
    assert V.trials([[1.0] * 8, [0.0] * 8]) == 2                  # eight copies tell no more
    assert V.trials([[1.0] * 8, [1.0] * 8]) == 2                  # nor here, as far as we know
    rng = random.Random(0)
    alike = [[float(rng.random() < 0.5) for _ in range(8)] for _ in range(200)]
    assert 1200 < V.trials(alike) <= 1600                         # luck only: nearly all count


# ---- the command -----------------------------------------------------------------------------
def rollout(**changes):
    return {"id": "a", "task": "math", "prompt": "?", "gold": "1/2", "level": 1,
            "response": r"\boxed{0.5}",
            "tokens": [1, 2, 3], "logprobs": [0.0] * 3, "finished": True, "reward": 1.0, "step": 0,
            **changes}


def command(tmp_path, rows, *flags):
    path = tmp_path / "rollouts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    done = subprocess.run([sys.executable, os.path.join(ROOT, "verify.py"), str(path), *flags],
                          cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_command_prints_the_table_and_writes_it(tmp_path):
    wrong = {"response": r"\boxed{2}", "tokens": [1], "reward": 0.0}
    rows = [rollout(), rollout(**wrong), rollout(), rollout(finished=False, reward=0.0),
            *(rollout(id="b", level=2, **wrong) for _ in range(4)),
            *(rollout(id="c", task="kk", gold=KK_GOLD, level=2,
                      response="\\boxed{%s}" % KK_GOLD) for _ in range(2))]
    code, out, err = command(tmp_path, rows, "--out", "table.json")
    assert (code, err) == (0, "")
    lines = [line.split("  ") for line in out.splitlines()]
    assert [line[0].strip() for line in lines[:5]] == ["task", "math", "math", "math", "kk"]
    assert out.splitlines()[5:] == ["math, level 1: bare 100.0% (right 50.0%)",
                                    "math, level 2: bare 100.0% (right 0.0%)",
                                    "math, level all: bare 100.0% (right 25.0%)",
                                    "kk, level 2: guess 100.0% (right 100.0%)"]
    report = json.loads((tmp_path / "table.json").read_text())
    assert report["stored_differ"] == 0
    by = {(row["task"], row["level"]): row for row in report["rows"]}
    first = by["math", 1]
    assert (first["n"], first["problems"], first["accuracy"], first["cut_off"]) == (4, 1, 0.5, 0.25)
    assert first["length"] == pytest.approx(2.5)
    assert [first[f"pass@{k}"] for k in (1, 2, 4)] == pytest.approx([0.5, 5 / 6, 1.0])
    # pairs (right, wrong) and (right, cut off): a tie, then the one vote; all four: two votes to one
    assert [first[f"majority@{k}"] for k in (1, 2, 4)] == pytest.approx([0.5, 0.75, 1.0])
    assert by["math", "all"]["accuracy"] == 0.25 and by["math", "all"]["pass@4"] == 0.5
    knights = by["kk", 2]
    assert knights["accuracy"] == knights["majority@2"] == 1.0 and "pass@4" not in knights


def test_styles_and_how_often_they_are_right():
    box = "\\boxed{%s}" % KK_GOLD
    table = "A=T B=T: A ok, B no\nA=T B=F: A ok, B ok\n"
    kk = [rollout(task="kk", response=text, reward=right) for text, right in (
        (box, 1.0), (box, 0.0), (table + box, 1.0), ("What?\n" + box, 0.0))]
    assert V.styles(kk) == {"guess": {"share": 0.5, "right": 0.5},
                            "other": {"share": 0.25, "right": 0.0},
                            "table": {"share": 0.25, "right": 1.0}}
    for text, name in (("\nSo it is $2$.\n$\\boxed{2}$", "prose"), ("I do not know", "prose"),
                       ("\n$$\\boxed{2}", "bare"), ("def answer():\n    return 2\n\\boxed{2}", "code"),
                       ("Look:\n```python\nx = 2\n```\n\\boxed{2}", "code"), ("", "prose")):
        assert V.style(rollout(response=text)) == name, text
    for text in ("\n" * 10**6, " \n" * 10**6, " " * 10**6):      # linear, or this takes an hour
        assert V.style(rollout(response=text)) == "prose"


def test_command_does_not_trust_stored_rewards(tmp_path):
    code, out, _ = command(tmp_path, [rollout(reward=0.0), rollout(id="b", finished=False)])
    assert code == 0 and "2 of 2 stored rewards differ" in out and "50.0%" in out


@pytest.mark.parametrize("rows, message", [
    (["not json"], "rollouts.jsonl:1: not JSON"),
    ([rollout(), "[1]"], "rollouts.jsonl:2: not a JSON object"),
    ([rollout(), {"id": 1}],
     "rollouts.jsonl:2: no field 'task', 'gold', 'response', 'finished', 'tokens'"),
    ([rollout(response=None)], "rollouts.jsonl:1: 'response' is not a str"),
    ([rollout(finished="yes")], "rollouts.jsonl:1: 'finished' is not a bool"),
    ([rollout(gold=5)], "rollouts.jsonl:1: 'gold' is not a str"),
    ([rollout(level=[])], "rollouts.jsonl:1: 'level'"),
    ([rollout(task="chess")], "rollouts.jsonl:1: task 'chess'"), ([], "holds no rollouts")])
def test_command_names_the_malformed_line(tmp_path, rows, message):
    code, out, err = command(tmp_path, rows)
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1


def test_command_refuses_wrong_flags_and_missing_files(tmp_path):
    code, out, err = command(tmp_path, [rollout()], "--level", "3")
    assert (code, out) == (2, "") and "--level" in err
    missing = subprocess.run([sys.executable, os.path.join(ROOT, "verify.py"),
                              str(tmp_path / "none.jsonl")],
                             capture_output=True, text=True)
    assert missing.returncode == 2 and "none.jsonl" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
