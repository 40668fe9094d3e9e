"""verify.py and answers/ against labelled answers, hand-computed values, and hostile text."""
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import textwrap
import time
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

import verify
from answers.latex import LONGEST, tidy
from answers.numbers import CONTEXT, POINTS, inexact, place, value_at
from answers.tree import read
from answers.words import Unreadable
from verify import (effective_samples, kk_correct, last_boxed, majority, math_equal, pass_at_k,
                    reward, roles, wilson)

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
KK_GOLD = "Zoey is a knight, Liam is a knave"
FRAGMENTS = """
    { } \\ \\frac{ \\frac \\sqrt{ \\boxed{ ( ) [ ] | ^ _ 9 99999 ! \\sin \\cos \\tan^{-1} \\ln
    \\log_ \\pm \\mp , x y n + - * / \\text{ \\text{or} \\text{cm} \\left( \\right]
    \\begin{pmatrix} \\end{pmatrix} & \\\\ √ . 0. \\overline{3} \\cup \\cap \\setminus
    \\mathbb{R} and 1/ e^ i \\pi $ % \\% \\{ \\} = < \\le \\ne \\in \\infty \\approx : " α ½ 2^
    \\circ ° \\emptyset 3 \\binom{5}{2} \\sum_{k=1}^{n} \\$ ^{ _{2} sqrt pi \\lfloor base
    million Ⅴ ٠ ² is knight a
    """.split() + [" ", "\n", "\ud800", "\0", " or ", " and "]
BOMBS = [
    "{", "}", "\\", "\\\\", "\\{", "\\boxed{", "\\boxed ", "\\frac{", "\\frac1", "\\sqrt{",
    "\\sqrt", "(", "(1,", "[0,1]\\cup", "|", "^", "9^", "2^{", "_", "x_{", "9", "0.", ".",
    "\\overline{", "1/", "x+", "-", "!", "9!", "\\sin", "5\\sin1+", "\\pm", "1\\pm", ",", "1,",
    "1 ", "and ", "5 or ", "\\text{", "\\text{a}", "\\begin{pmatrix}", "1&", "1\\\\", "α", "½",
    "√", "\ud800", "\x00", "$", "%", "<x<", "=x", "\n", " ", "a is a b, ", "a is ", "(1) ",
    "is a knight, ", "mm ", "million ", "**", '"', "\\,", "\\color{", "''", "1 1/1 ", "\\circ",
    "a.", "\\log_{2}"]
CODE = ["open('canary','w')", "__import__('os').system('touch canary')", "5;open('canary','w')",
        "exec(\"open('canary','w')\")", "(lambda:open('canary','w'))()", "exit()", "1/0",
        "globals().update(canary=1)", "setattr(__import__('verify'),'canary',1)"]


# ---- helpers ---------------------------------------------------------------------------------
def cases(name):
    with open(os.path.join(HERE, "cases", name), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def math_verdicts(tier):
    for case in cases("math.jsonl"):
        if case["tier"] == tier and case["expected"] is not None and case["kind"] != "freeform":
            text = case.get("prediction", "")
            box = last_boxed(text) if case["kind"] == "response" else text
            yield case, box is not None and math_equal(box, case["gold"])


def hand_pairs():
    """(gold, answer, verdict) of the pairs written by hand."""
    with open(os.path.join(HERE, "cases", "hand.txt"), encoding="utf-8") as file:
        equal, different = file.read().split("-" * 40 + "\n")
    for verdict, block in ((True, equal), (False, different)):
        for line in block.splitlines():
            if line and not line.startswith("#"):
                yield (*line.split(" | ", 1), verdict)


def refused(gold, *answers):
    wrong = [answer for answer in answers if math_equal(answer, gold)]
    assert not wrong, f"accepted for {gold}: {wrong}"


def accepted(gold, *answers):
    wrong = [answer for answer in answers if not math_equal(answer, gold)]
    assert not wrong, f"refused for {gold}: {wrong}"


def tree(text):
    return read(tidy(text))[0]


def number(text):
    """The value of a text without variables, as two Decimals."""
    with localcontext(CONTEXT):
        z = inexact(value_at(tree(text), 0))
    return z.real, z.imag


def random_text(rng):
    return "".join(rng.choice(FRAGMENTS) for _ in range(rng.choice((1, 3, 8, 20, 60))))


def check_any_two_strings(a, b):
    """No function raises, and an answer equals itself."""
    for verdict in (math_equal(a, b), math_equal(b, a), kk_correct(a, b)):
        assert isinstance(verdict, bool)
    assert reward({"task": "math", "gold": b}, a, True) in (0.0, 1.0)
    last_boxed(a), roles(a)
    if a.strip():
        assert math_equal(a, a)


def rollout(**changes):
    return {"id": "a", "task": "math", "prompt": "?", "gold": "1/2", "level": 1,
            "response": r"\boxed{0.5}", "tokens": [1, 2, 3], "logprobs": [0.0] * 3,
            "finished": True, "reward": 1.0, "step": 0, **changes}


def command(tmp_path, rows, *flags):
    path = tmp_path / "rollouts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    done = subprocess.run([sys.executable, os.path.join(ROOT, "verify.py"), str(path), *flags],
                          cwd=tmp_path, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


# ---- which box counts ------------------------------------------------------------------------
@pytest.mark.parametrize("text, box", [
    ("", None), ("no box, 5", None), (r"\boxed", None), (r"\boxed 5", "5"), (r"so $\boxed -12$.", "-12"),
    (r"\boxed{5} in \boxed form", "5"), (r"\[\boxed 3.\]", "3"), (r"$\boxed 12.5$", None),
    (r"$\boxed 1/2$", None), (r"$\boxed 1,000$", None), (r"$\boxed 50\%$", None),
    (r"\boxed{7}. I put it in \boxed 1 time", "7"), (r"\boxed{}", ""),
    (r"\boxed{5}", "5"), (r"\boxed {5}", "5"), (r"\fbox{5}", "5"), (r"so $\boxed{5}$.", "5"),
    (r"\boxed{1}, then \boxed{2}", "2"), (r"\boxed{1} and \boxed{2", "1"), (r"\boxed{2", None),
    (r"\boxed{\boxed{5}}", "5"), (r"\boxed{6 \boxed{5}}", "5"), (r"\boxed{1 \boxed{2} 3} 4", "2"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"} \boxed{5}}", "5"), (r"{ \boxed{5}", "5"),
    (r"\boxed{5\}", None), ("a\\\n\\boxed{\nx\n}", "\nx\n"), (r"\\\boxed{5}", "5"),
])
def test_last_boxed(text, box):
    assert last_boxed(text) == box


@pytest.mark.parametrize("depth", [1, 4, 40, 20_000])
def test_trap_box_regex_that_fails_at_nesting_depth_4(depth):
    """A regex for balanced braces is written for some depth; \\frac{\\sqrt{x^{2}}}{3} needs 4."""
    inside = "{" * depth + "5" + "}" * depth
    assert last_boxed("say \\boxed{" + inside + "} done}") == inside


def test_trap_an_early_right_box_followed_by_a_wrong_one():
    """Taking the first box, or any right box, is what a policy learns to print boxes for."""
    problem = {"task": "math", "gold": "5"}
    assert reward(problem, r"\boxed{6}, no: \boxed{5}", True) == 1.0
    assert reward(problem, r"\boxed{5}, no: \boxed{6}", True) == 0.0
    assert reward(problem, r"\boxed{5 \boxed{6}}", True) == 0.0
    assert reward(problem, r"\boxed{4} \boxed{5} \boxed{6}", True) == 0.0


def test_trap_a_truncated_answer_scored_at_evaluation_but_not_in_training():
    """The paper's code added the end token to truncated text before it scored it at evaluation."""
    for problem, answer in (({"task": "math", "gold": "5"}, r"\boxed{5}"),
                            ({"task": "gsm8k", "gold": "5"}, r"\boxed{5}"),
                            ({"task": "kk", "gold": KK_GOLD}, r"\boxed{%s}" % KK_GOLD)):
        assert reward(problem, answer, True) == 1.0
        assert reward(problem, answer, False) == 0.0
        assert reward(problem, answer + "<|endoftext|>", False) == 0.0      # spelled, not sampled


def test_reward_of_an_unknown_task_is_an_error_not_zero():
    with pytest.raises(ValueError, match="chess"):
        reward({"task": "chess", "gold": "5"}, r"\boxed{5}", True)


# ---- Knights & Knaves ------------------------------------------------------------------------
def test_kk_labelled_cases():
    """All of them; the text's end token stands for `finished`."""
    wrong = []
    for case in cases("kk.jsonl"):
        finished = case["response"].endswith(("<|endoftext|>", "<|im_end|>"))
        scored = reward({"task": "kk", "gold": case["gold"]}, case["response"], finished)
        if case["expected"] is not None and scored != float(case["expected"]):
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
    assert kk_correct("I say \\boxed{%s}." % box, KK_GOLD) is right


def test_trap_zoey_is_not_a_knight_she_is_a_knave_read_as_knight():
    """Looking for "Zoey ... knight" in the box accepts its denial."""
    for box in ("Zoey is not a knight, she is a knave, Liam is a knave",
                "Zoey is not a knight, Liam is a knave",
                "Zoey isn't a knight, Liam is a knave", "Zoey is never a knight, Liam is a knave",
                "not Zoey is a knight, Liam is a knave"):
        assert not kk_correct("\\boxed{%s}" % box, KK_GOLD)


def test_kk_roles_come_from_the_gold():
    gold = "Zoey is a saint, Liam is a sinner"
    assert kk_correct(r"\boxed{Liam is a sinner, Zoey is a saint}", gold)
    assert not kk_correct(r"\boxed{Liam is a knave, Zoey is a knight}", gold)
    assert kk_correct(r"\boxed{Ann is an angel}", "Ann is an angel")


KK_THREE = "Zoey is a knight, Emma is a knight, Liam is a knave"


@pytest.mark.parametrize("box", [
    r"- Zoey is a knight\\ - Emma is a knight\\ - Liam is a knave",
    "Zoey (knight), Emma (a knight), Liam (knave)",
    "1. Zoey: knight\n2. Emma: knight\n3. Liam: knave",
    "Zoey is a knight. Emma is a knight. Liam is a knave.",
    "Zoey is the knight, Emma is the knight, and Liam is the knave",
    "Zoey and Emma are knights, Liam is a knave",
    r"\begin{aligned} &\text{Zoey is a knight} \\ &\text{Emma: knight} \\ &\text{Liam: knave}"
    r" \end{aligned}",
    r"\begin{cases} \text{Zoey: knight} \\ \text{Emma: knight} \\ \text{Liam: knave} \end{cases}",
    "Zoey~is~a~knight,~Emma~is~a~knight,~Liam~is~a~knave",
    "Liam is a knave. Zoey, Emma are both knights"])
def test_kk_other_ways_to_write_the_same(box):
    assert kk_correct("\\boxed{%s}" % box, KK_THREE)


@pytest.mark.parametrize("box", [
    "Zoey and Emma are not knights, Liam is a knave", "Zoey or Emma are knights, Liam is a knave",
    "Zoey, Emma is a knight, Liam is a knave", "Zoey and Emma are knights",
    "Zoey, Emma and Liam are knights",
    "Zoey and Zoey are knights, Emma is a knight, Liam is a knave",
    "Zoey (not knight), Emma (knight), Liam (knave)",
    "Zoey is a knight, Emma is probably a knight, Liam is a knave",
    "Zoey and Emma are knights, Liam and Emma are knaves",
    "Zoey is a knight. Emma is a knight. Liam is a knave. Or not.",
    "Zoey and Emma are knights, Liam"])
def test_kk_hedges_denials_and_repeated_people_are_wrong(box):
    assert not kk_correct("\\boxed{%s}" % box, KK_THREE)


@pytest.mark.parametrize("name, same", [
    ("Ren\u00e9", "Rene\u0301"), ("\u0130pek", "\u0130pek"), ("\u0130pek", "i\u0307pek"),
    ("O'Neil", "o'neil"), ("Anne-Marie", "ANNE-MARIE")])
def test_kk_names_in_unicode(name, same):
    assert kk_correct("\\boxed{%s is a knight}" % same, f"{name} is a knight")


@pytest.mark.parametrize("task, gold, readable", [
    ("kk", KK_GOLD, True), ("kk", "Ann and Bob is a knight", False),
    ("kk", "Bob, Jr. is a knight", False),
    ("kk", "Zoey", False), ("kk", "Zoey is a knight, Zoey is a knave", False), ("kk", "", False),
    ("math", "?", True), ("gsm8k", "5", True), ("math", " ", False)])
def test_a_gold_that_no_answer_can_match(task, gold, readable):
    assert verify.readable_gold({"task": task, "gold": gold}) is readable


# ---- equality: the labelled cases ------------------------------------------------------------
@pytest.mark.parametrize("tier, wrong_no", [("core", 0), ("extraction", 0), ("convention", 9)])
def test_math_labelled_cases(tier, wrong_no):
    """No wrong yes at all: reinforcement learning would find it.

    The 9 convention cases missed want several boxes read as one list. Here the last box counts.
    """
    verdicts = list(math_verdicts(tier))
    wrong = [(case["gold"], case.get("prediction", "")[-80:], verdict) for case, verdict in verdicts
             if verdict != case["expected"]]
    assert len(verdicts) > 150
    assert not [pair for pair in wrong if pair[-1]]
    assert len(wrong) <= wrong_no, wrong


# ---- equality: by hand -----------------------------------------------------------------------
def test_hand_written_pairs():
    pairs = list(hand_pairs())
    wrong = [pair for pair in pairs if math_equal(pair[1].strip(), pair[0]) is not pair[2]]
    assert len(pairs) > 500 and not wrong


KINDS = {       # kind: pairs of gold and answer that are equal, then pairs that are different
    "exact numbers stay exact": ([
        ("2^{2025}-2^{2024}", "2^{2024}"), ("e^{i\\pi}+1", "0"), ("(1+i)^{2024}", "2^{1012}"),
        ("10^{40}\\pi", "\\pi\\cdot 10^{40}"),
        ("\\sqrt{x^4+1}-x^2", "\\frac{1}{\\sqrt{x^4+1}+x^2}"), ("\\lfloor(\\sqrt{2})^2\\rfloor", "2")], [
        ("2^{2024}", "2^{2024}-1"), ("2^{100000}", "2^{100000}+1"), ("0", "\\frac{1}{2^{2024}}"),
        ("0", "e^{-100}"), ("\\pi", "\\pi+10^{-35}"), ("\\pi", "\\pi(1+10^{-60})"),
        ("10^{60}", "\\sqrt{10^{120}+1}"), ("1", "1-e^{-200}"), ("1", "e^{10^{-60}}"),
        ("(0,2^{2024})", "(0,2^{2024}-1)"), ("f(2^{2024})", "f(2^{2024}-1)"),
        ("\\sin x", "\\sin x+10^{-90}"), ("5", "10^{60}\\sin\\pi"), ("\\sin\\pi", "e^{-150}"),
        ("\\sqrt{2}", "1." + str(math.isqrt(2 * 10**200))[1:]),
        ("(1+\\frac{\\pi}{10^{35}})^2", "1+2\\cdot\\frac{\\pi}{10^{35}}")]),
    "powers of units": ([
        ("45", "45\\text{ units}^2"), ("45\\text{ units}^2", "45\\text{ square units}"),
        ("21", "21^{\\text{st}}"), ("2025", "45^2")], [
        ("2025", "45\\text{ units}^2"), ("45\\text{ units}^2", "2025"),
        ("45\\text{ square units}", "45\\text{ units}^3"), ("5", "5^{t}")]),
    "steps": ([
        ("\\lceil x\\rceil", "-\\lfloor -x\\rfloor"), ("(-1)^n", "(-1)^{n+2}"),
        ("\\lfloor x+1\\rfloor", "\\lfloor x\\rfloor+1")], [
        ("\\lceil n/2\\rceil", "\\lfloor n/2\\rfloor+1"), ("\\lfloor x\\rfloor+1",
        "\\lceil x\\rceil"),
        ("\\lfloor n/5\\rfloor", "\\lfloor (n+1)/5\\rfloor"), ("(-1)^n", "1"),
        ("\\lfloor n/10\\rfloor", "\\lceil n/10\\rceil-1"), ("(-1)^n", "(-1)^{n(n+1)/2}")]),
    "no thousands in brackets": ([
        ("(1,100,2)", "(1, 100, 2)"), ("[0,100]", "0\\le x\\le 100"), ("2,100", "2100"),
        ("\\frac{1,000}{3}", "1000/3"), ("(5, 1,000)", "(5,1000)")], [
        ("[0,100]", "100"), ("100", "(0,100)"), ("1100", "(1,100)"), ("100", "0,100"),
        ("\\{1,100\\}", "1100"), ("f(1,100)", "f(1100)"), ("(1100,2)", "(1,100,2)")]),
    "bends": ([
        ("|x-10|", "|10-x|"), ("\\sqrt{x^2y^2}", "|xy|"), ("|x|^2", "x^2")], [
        ("|x-10|", "10-x"), ("|x-5000|", "5000-x"), ("|x+20|", "x+20"), ("|ab|", "ab"),
        ("|x-2|+|x-3|", "|2x-5|"), ("\\sqrt{(x-12)^2}", "12-x"), ("|x_1x_2|", "x_1x_2"),
        ("|x-10|<3", "10-x<3"), ("a|b|", "|a|b")]),
    "ratios and times": ([
        ("1:2:3", "2:4:6"), ("2:3:4", "10:15:20"), ("2:3", "\\frac{2}{3}"), ("9:16",
        "\\frac{9}{16}"),
        ("7\\text{ p.m.}", "7:00\\text{ PM}"), ("a:b=2:3", "4:6"), ("7:05", "07:05")], [
        ("1:2:3", "1:3:2"), ("4:30", "2:15"), ("2:15", "4:30"), ("4:30", "\\frac{2}{15}"),
        ("7:05", "7:5"),
        ("7\\text{ p.m.}", "7:00\\text{ AM}"), ("1:2", "0:0"), ("1:2:3", "\\frac{1}{6}")]),
    "letters after a value": ([
        ("4abcd", "4dcba"), ("2\\sin x", "2sinx"), ("5\\cdot 10^{12}", "5 trillion"),
        ("12\\text{ cm}", "12cm"),
        ("35", "35 students"), ("20", "20 gallons of water"), ("6", "6 red marbles")], [
        ("4", "4abcd"), ("4", "4 abcd"), ("2", "2sinx"), ("\\frac{1}{2}", "\\frac{1}{2}abcd"),
        ("5", "5 trillion"), ("5", "5 tenths"), ("5", "5\\text{ thousandths}"), ("7",
        "7\\text{ x}"),
        ("7", "7\\text{M}"), ("5", "5\\text{ twenty}")]),
    "nouns": ([
        ("6", "6\\text{ months}"), ("5", "\\$5 \\text{ per month}"), ("6", "6\\text{ red marbles}"),
        ("6", "6\\text{ ordered pairs}"), ("6", "6\\text{ paths}"), ("900",
        "900\\text{ three-digit numbers}"),
        ("5\\text{ apples}", "5\\text{ red apples}"), ("7", "7\\text{ o'clock}")], [
        ("5\\text{ cm}", "5\\text{ m}"), ("5\\text{ feet}", "5\\text{ inches}"),
        ("5\\text{ feet}", "5\\text{ months}"),
        ("5\\text{ red balls}", "5\\text{ blue balls}"), ("\\$5", "\\$5\\text{ per hour}"),
        ("3", "3\\text{ is wrong}"), ("3", "3\\text{ or }4"), ("3", "3\\text{ fourths}"),
        ("3", "3\\text{ or more}"), ("3", "3\\text{ cubed}"), ("3", "3\\text{ point five}")]),
    "a number after a value": ([
        ("(n-2)2^n+1", "1+2^n(n-2)"), ("n2^{n-1}", "2^{n-1}n"), ("120", "\\frac{10!}{3!7!}"),
        ("2^{10}5^{3}", "128000"), ("3\\pmod 7", "3"), ("3\\pmod 7",
        "x\\equiv 10 (\\text{mod } 7)"),
        ("3", "10\\bmod 7")], [
        ("3", "3 3"), ("20", "2^{1}0"), ("10", "(2) 5"), ("12", "x12"), ("53", "5!3"),
        ("3\\pmod 7", "3\\pmod 8"), ("7", "3\\pmod 7"), ("3", "10\\pmod 7"), ("3", "3\\pmod 2")]),
    "values with a name": ([
        ("7", "f(2)=7"), ("5", "|z|=5"), ("-2", "\\det A=-2"), ("f(2)=7", "7"), ("7", "f'(2)=7"),
        ("\\frac{1}{2}", "P(A\\cup B)=\\frac{1}{2}"), ("5", "\\lim_{x\\to 0} f(x)=5"), ("109",
        "m+n=109"),
        ("\\frac{3}{5}", "\\sin\\theta=\\frac{3}{5}")], [
        ("2", "f(2)=7"), ("10", "2x=10"), ("5", "x+1=5"), ("5", "\\sin x=5"), ("f(2)=7", "f(3)=7"),
        ("x+y=7", "7"), ("7", "f(2)<7"), ("5", "x^2=5")]),
    "words and layout around a value": ([
        ("6", "\\textbf{(A)}\\ 6"), ("\\textbf{(A)}\\ 6", "A"), ("A", "(A) 6"), ("6",
        "There are 6 ways"),
        ("6", "\\text{There are } 6 \\text{ ways}"), ("6",
        "\\begin{aligned} x &= 3+3 \\\\ &= 6 \\end{aligned}"),
        ("x=6,y=7", "\\begin{aligned} x &= 6 \\\\ y &= 7 \\end{aligned}")], [
        ("A", "\\textbf{(B)}\\ 6"), ("6", "\\textbf{(A)}\\ 7"), ("A",
        "\\textbf{(A)}\\ \\textbf{(B)}"),
        ("5", "(A)+5"), ("6", "\\text{There are not } 6 \\text{ ways}"), ("6",
        "\\text{at least } 6"),
        ("6", "\\begin{aligned} x &= 6 \\\\ y &= 7 \\end{aligned}")]),
    "other notations": ([
        ("\\frac{3}{16}", "0.0011_2"), ("120", "{10\\choose3}"), ("(n+1)!", "(n+1)n!"),
        ("3\\times 10^8", "3e8"),
        ("\\binom{n}{k}", "\\frac{n!}{k!(n-k)!}"), ("(3,\\infty)",
        "\\{x\\in\\mathbb{R}\\mid x>3\\}"),
        ("\\begin{cases} x & \\text{if } x>0 \\\\ 0 & \\text{if } x\\le 0 \\end{cases}",
         "\\begin{cases} 0, & x\\le 0 \\\\ x, & x>0 \\end{cases}")], [
        ("0.0011_2", "0.0011_3"), ("(n+1)!", "n!+1"), ("0.002", "2e-3"), ("\\{x\\mid x>3\\}",
        "\\{x\\mid x<3\\}"),
        ("\\begin{cases} x & \\text{if } x>0 \\\\ 0 & \\text{if } x\\le 0 \\end{cases}",
         "\\begin{cases} x & \\text{if } x\\le 0 \\\\ 0 & \\text{if } x>0 \\end{cases}")]),
    # "units" names no unit, so it is as if it was left out. But a power must be that of the gold.
    "neutral units": ([("5\\text{ cm}", "5\\text{ units}"), ("5\\text{ units}", "5\\text{ cm}")], [
        ("5\\text{ cm}", "5\\text{ square units}"), ("5\\text{ cm}^2", "5\\text{ units}^3")]),
    "words that are products or ordinals": ([
        ("6", "6 cosets"), ("5", "5 secs"), ("4", "4 cats"), ("3", "3\\text{ logs}"),
        ("9", "9\\text{ ninth graders}"), ("12", "12 third graders"), ("3", "3^{rd}")], [
        ("2", "2 logs"), ("2", "2 sins"), ("4", "4 abcs"), ("8", "2^{3rd}"),
        ("8", "2^{3\\text{ cm}}"),
        ("3", "3\\text{ fifths}"), ("1", "1\\text{ third cup}"),
        ("3", "3\\text{ third cups are}")]),
    "the variable of a set": ([
        ("x>3", "\\{x : 2x>6\\}"), ("x>3", "\\{x \\mid x>3\\}"),
        ("\\{1,2\\}", "\\{x : x=1 \\text{ or } x=2\\}"), ("\\emptyset", "\\{x : x=1, x=2\\}"),
        ("(1,2)", "\\{x : x>1, x<2\\}"), ("\\{(x,y) : x+y=1\\}", "\\{(x,y) : y+x=1\\}"),
        ("x=1, x=2", "x=1\\text{ and }x=2")], [
        ("\\{x : x>3\\}", "\\{y : x>3\\}"), ("x>3", "\\{y : x>3\\}"),
        ("\\{1,2\\}", "\\{x : x=1, x=2\\}"), ("\\{x : x>3\\}", "\\{x : x\\ge 3\\}")]),
    "chains": ([
        ("4", "x=2+2=4"), ("100\\pi", "V=\\pi r^2h=100\\pi"), 
        ("\\frac{1}{2}", "x=0.5=\\frac{1}{2}")], [
        ("4", "x=3=4"), ("3", "x=3=4"), ("4", "x=4=3"), ("4", "x=1+1=3=4")]),
    "thousands in brackets": ([
        ("1000000", "(1,000,000)"), ("1000", "(1,000)"), ("(2,1000000)", "(2,1,000,000)")], [
        ("1100", "(1,100)"), ("100", "(0,100)"), ("1000000", "(1,000,001)")]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_answers(kind):
    equal, different = KINDS[kind]
    assert not [pair for pair in equal if not math_equal(pair[1], pair[0])], "wrong no"
    assert not [pair for pair in different if math_equal(pair[1], pair[0])], "wrong yes"


def test_letters_have_every_two_signs():
    """|ab| is ab wherever both have the same sign."""
    names = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    for a, b in itertools.combinations(names, 2):
        signs = {(place(a, point) > 0, place(b, point) > 0) for point in range(POINTS)}
        assert len(signs) == 4, (a, b)


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
    accepted("x > 1", "(1, \\infty)", "1 < x", "x \\in (1, \\infty)")
    refused("x > 1", "y > 1", "x \\ge 1", "x < 1")
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
            r"\text{not } 3", r"3 \text{ and } 4", r"3\text{ never}")
    refused(r"\text{Alice}", r"\text{not Alice}", r"\text{Alice or Bob}",
            r"\text{Alice}, \text{Bob}")
    refused(r"5\text{ cm}", r"5\text{ m}", r"5\text{ cm}^2")
    accepted(r"5\text{ cm}", "5", r"5\,\mathrm{cm}", r"5\text{ centimeters}")
    accepted("5", r"5\text{ apples}")


def test_a_gold_that_is_a_printed_float_is_the_one_rounding_accepted():
    accepted("4.123105625617661", r"\sqrt{17}")
    refused("4.123105625617661", r"\sqrt{17.0000001}", "4.1231", "4.12310562561766")
    refused(r"\sqrt{17}", "4.123105625617661")
    refused("4.1231", r"\sqrt{17}")


def test_the_tree_reads_as_a_mathematician_would():
    x, minus, one, two, three, five = ("variable", "x"), *(
        ("number", Fraction(n)) for n in (-1, 1, 2, 3, 5))
    assert tree("-2^2") == ("*", minus, ("^", two, two))
    assert tree("2^3^2") == ("^", two, ("^", three, two))
    assert tree(r"\sin x^2") == ("function", "sin", ("^", x, two))
    assert tree(r"\sin^2 x") == ("^", ("function", "sin", x), two)
    assert tree(r"\sin(x)x") == ("*", ("function", "sin", x), x)
    assert tree("1 < x \\le 2") == ("relation", "<≤", one, x, two)
    assert tree(r"\frac12") == ("*", one, ("^", two, minus))
    assert tree(r"1\frac{2}{3}") == ("+", one, ("*", two, ("^", three, minus)))
    assert tree(r"2 \pm x") == ("list", ",", ("+", two, x), ("+", two, ("*", minus, x)))
    assert tree(r"\begin{pmatrix}1&2\\3&5\end{pmatrix}") == (
        "group", "(", ")", ("group", "(", ")", one, two), ("group", "(", ")", three, five))
    assert read(r"5\text{ square feet}") == (five, {"foot^2"})


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
    assert [*map(float, number(text))] == pytest.approx([real, imaginary], abs=1e-14, rel=1e-14)


def test_fifty_digits_are_right():
    """Identities that only hold if log, exp, the angle and π are good to far beyond a double."""
    for text in (r"4\arctan\frac15-\arctan\frac{1}{239}-\frac{\pi}{4}", r"\sin^2 1+\cos^2 1-1",
                 r"e^{i\pi}+1",
                 r"\sqrt{2}\sqrt{3}-\sqrt{6}", r"\ln 6-\ln 2-\ln 3",
                 r"\cos\frac{\pi}{5}-\frac{1+\sqrt5}{4}"):
        assert max(map(abs, number(text))) < Decimal("1e-45"), text


# ---- equality: properties --------------------------------------------------------------------
def test_random_latex_never_raises_and_equals_itself():
    rng = random.Random(0)
    for _ in range(4000):
        text = random_text(rng)
        check_any_two_strings(text, rng.choice((random_text(rng), text + rng.choice(FRAGMENTS))))


def test_equality_is_symmetric():
    """Three conventions look at the gold only: a base left out, a printed float, a choice."""
    pairs = [(case["gold"], case.get("prediction", "")) for case in cases("math.jsonl")
             if case["kind"] == "answer"] + [pair[:2] for pair in hand_pairs()]
    one_way = re.compile(r"\d\s*\)?\s*_|base|\.\d{14}|^\(?[A-J]\)?$")
    tried = [pair for pair in pairs if not any(map(one_way.search, pair))]
    assert len(tried) > 0.95 * len(pairs)
    for gold, answer in tried:
        assert math_equal(answer, gold) == math_equal(gold, answer), (gold, answer)


def test_golds_with_a_value_equal_themselves_rewritten():
    """Reflexivity past the shortcut for equal strings and trees: gold + 0 has the gold's value."""
    golds = {case["gold"] for case in cases("math.jsonl")} | {pair[0] for pair in hand_pairs()}
    tried = 0
    for gold in sorted(golds):
        try:
            gold_tree = tree(gold)
        except Unreadable:
            continue
        scalar = gold_tree[0] in ("number", "+", "*", "^", "function", "variable")
        if scalar and None not in [value_at(gold_tree, point) for point in range(POINTS)]:
            tried += 1
            accepted(gold, "0+" + gold)
            refused(gold, "0.0001+" + gold)
    assert tried > 150


def test_random_sums_and_products_are_equal_however_they_are_written():
    """Right answers in a random order and shape are accepted, with one number off refused."""
    rng, tried = random.Random(1), 0
    for _ in range(200):
        terms = [(rng.randint(1, 9), rng.choice(("x", "y", "xy", "x^2", "\\sqrt{x}", "\\pi",
                                                 "\\sqrt{5}", "i")))
                 for _ in range(rng.randint(2, 4))]
        if len({name for _, name in terms}) < len(terms):
            continue
        tried += 1

        def write(terms, dot=""):
            return "+".join(f"{n}{dot}{{{name}}}" for n, name in terms)
        gold = write(terms)
        shuffled = rng.sample(terms, len(terms))
        accepted(gold, write(shuffled, " \\cdot "), "2(" + write(shuffled) + ")/2",
                 "-(-(" + write(shuffled) + "))")
        off = [(n + (i == 0), name) for i, (n, name) in enumerate(shuffled)]
        refused(gold, write(off), write(shuffled[1:]), gold + "+1", "-(" + gold + ")")
    assert tried > 100


@pytest.mark.extras
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
HOSTILE = textwrap.dedent(r"""
    # Arguments: the repository, the file of cases, the strings of code. Prints what went wrong.
    import json, os, resource, sys
    sys.path.insert(0, sys.argv[1])
    import verify
    from answers import equal, latex, numbers, tree, words

    def whole(pieces):
        return "".join(text * count for text, count in pieces)

    def grade(kind, text, gold):
        for box in (text, "\\boxed{" + text + "}"):
            verify.kk_correct(box, gold), verify.last_boxed(box)
            answered = verify.reward({"task": "math", "gold": gold}, box, True) == 1.0
            if kind == "response":
                return answered
        verify.math_equal(gold, text)
        return verify.math_equal(text, gold)

    cases = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
    cases = [(case["kind"], whole(case["pieces"]),
              whole(case.get("gold_pieces", [[case["gold"], 1]])), case["expected"])
             for case in cases]
    cases += [("answer", code, "5", None) for code in json.loads(sys.argv[3])]
    modules = (verify, equal, latex, numbers, tree, words)
    names = [set(vars(module)) for module in modules]
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    events, wrong = [], []
    sys.addaudithook(lambda event, _: events.append(event) if event.startswith(
        ("exec", "compile", "import", "open", "os.", "subprocess.")) else None)
    for kind, text, gold, expected in cases:
        verdict = grade(kind, text, gold)
        if events or expected not in (None, verdict):
            wrong.append((text[:99], gold[:99], verdict, sorted(set(events))))
            events.clear()
    wrong += [sorted(set(vars(module)) ^ before) for module, before in zip(modules, names)
              if set(vars(module)) != before]
    wrong += os.listdir()
    unseen = []
    for code in json.loads(sys.argv[3]):            # Would it be seen if somebody read it as code?
        events.clear()
        compile(code, "", "exec")
        unseen += [] if events else [code]
    print(json.dumps([len(cases), wrong, unseen]))
    """)


def test_adversarial_cases_and_code(tmp_path):
    """Verdicts as labelled, in a process of its own: bounded in time and memory, nothing executed.

    sympy's parse_expr calls eval on what a model writes. Here, Python reports to an audit hook
    whatever compiles, runs, imports or opens something. At the end the same strings are compiled on
    purpose, to show that the hook would have seen it.
    """
    done = subprocess.run([sys.executable, "-c", HOSTILE, ROOT,
                           os.path.join(HERE, "cases", "adversarial.jsonl"), json.dumps(CODE)],
                          cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    count, wrong, unseen = json.loads(done.stdout)
    assert (count > 100, wrong, unseen) == (True, [], [])


@pytest.mark.parametrize("length", [100_000, LONGEST - 10])
def test_trap_hangs_on_a_million_backslashes(length):
    """Every function on a string of every bomb. The promise is 50 ms each, and bench/verify.py
    measures it. The bound here is 20 times that: it only tells linear from quadratic."""
    slowest = (0.0, "")
    for bomb in BOMBS:
        text = bomb * (length // len(bomb))
        for run in (lambda: last_boxed(text),
                    lambda: kk_correct("\\boxed{" + text + "}", KK_GOLD),
                    lambda: math_equal(text, "5"), lambda: math_equal("x+1", text),
                    lambda: math_equal(text, text + "+0"),
                    lambda: reward({"task": "math", "gold": "5"}, "\\boxed{" + text + "}", True)):
            start = time.perf_counter()
            run()
            slowest = max(slowest, (time.perf_counter() - start, bomb))
    assert slowest[0] < 1.0, slowest


@pytest.mark.parametrize("formula", [
    "i^i+", "\\arctan 3+", "\\sec x", "\\log_{2}", "(x+\\sqrt2)^{19}", "α", "e^{x}+",
    "\\sqrt{x}+", "1\\pm\\sin x+"])
def test_long_formulas_take_no_longer_than_short_ones(formula):
    """Up to 0.5 s when each of the many functions was computed at every point."""
    for length in (100, 300, 490):
        text = formula * (length // len(formula)) + "x"
        start = time.process_time()
        math_equal(text, text + "+0"), math_equal("x=" + text, "y=" + text + "1")
        assert time.process_time() - start < 0.25      # for four texts, on a busy machine


def test_towers_factorials_and_deep_nests_are_no_numbers():
    """9^9^9^9, (10^9)!, and Python's own limits: 4,300 digits to an int, 1,000 frames."""
    for text in ("9^9^9^9", "2^{10^{10}}", "10^{10^{100}}", "(10^9)!", "10^9!", "9!!!!!",
                 "\\binom{10^9}{10^8}",
                 "9" * 400 + "^{" + "9" * 50 + "}", "\\exp(\\exp(\\exp(100)))", "\\sin(10^{50})",
                 "\\ln 0", "1/0"):
        assert math_equal(text, text)
        refused("5", text, text + "+5", "5^{" + text + "}")
    assert value_at(tree("\\sin(10^{20})"), 0) is None      # too many turns for 110 digits
    accepted("1", "(" * 30 + "1" + ")" * 30)
    refused("1", "(" * 50 + "1" + ")" * 50)
    for opening, closing in ("()", ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("2^{", "}"), ("|", "|"),
                             ("-(", ")")):
        refused("5", opening * 60 + "1" + closing * 60)
    assert math_equal("9" * 5000, "9" * 5000) and not math_equal("9" * 5000, "9" * 4999 + "8")
    accepted("9" * 400, "9" * 400 + ".0")
    refused("9" * 400, "9" * 399 + "8")


def test_numbers_whose_difference_is_too_large_are_different():
    """Each is below the largest Decimal, but not what lies between them. This once raised."""
    huge = "e^{1000000}e^{1000000}e^{302585.09}"
    assert value_at(tree(f"5{huge}"), 0) is not None and value_at(tree(f"99{huge}"), 0) is None
    refused(f"-5{huge}", f"6{huge}")
    refused(f"x<{huge}", f"-x<{huge}")
    refused(f"[5{huge}, 6{huge}]", f"[4{huge}, 6{huge}]")


def test_deep_callers_do_not_make_it_overflow():
    """A parser that recurses freely works in the shell and fails under a trainer's own stack."""
    def call(depth):
        return call(depth - 1) if depth else [math_equal(text, "5") for text in texts]
    texts = [bomb * (LONGEST // len(bomb)) for bomb in BOMBS] + [
        "1-" * 240 + "1", "1/" * 240 + "1", "A∪B∩" * 120 + "A", "9" + "!" * 480, "x^2" * 150,
        "1=" * 240 + "1"]
    assert not any(call(500))


# ---- tables ----------------------------------------------------------------------------------
def test_pass_at_k_by_hand():
    assert pass_at_k(1, 1, 1) == 1.0 and pass_at_k(1, 0, 1) == 0.0
    assert pass_at_k(4, 1, 2) == 0.5                   # 3 of the 6 pairs hold the right one
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)    # all pairs but the 3 among 3 wrong ones
    assert pass_at_k(10, 3, 8) == 1.0                  # 7 wrong ones cannot fill 8 places
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    for n, c, k in ((4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1), (0, 0, 1)):
        with pytest.raises(ValueError):
            pass_at_k(n, c, k)


def test_pass_at_k_is_the_share_of_all_choices():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
            share = sum(map(max, draws)) / len(draws)
            assert pass_at_k(n, c, k) == pytest.approx(share), (n, c, k)


def test_majority_by_hand():
    assert majority(["1/2", "0.5", "2"], [1, 1, 0]) == 1.0             # equals vote together
    assert majority(["1/2", "2", "2.0"], [1, 0, 0]) == 0.0
    assert majority(["1", "2"], [1, 0]) == 0.5                         # a tie is shared
    assert majority(["2", "1"], [0, 1]) == 0.5                         # whatever the order
    assert majority(["1", "2", "3"], [0, 1, 0]) == pytest.approx(1 / 3)
    assert majority([None, None, "1"], [0, 0, 1]) == 1.0               # no answer, no vote
    assert majority([None], [0]) == 0.0 and majority([], []) == 0.0
    with pytest.raises(ValueError):
        majority(["1"], [])


def test_majority_reads_every_answer_once():
    """All pairs of 1,024 different answers took a minute when each pair was read anew."""
    start = time.process_time()
    for form in ("{0}", "({0},{1})", "x={0}", "y={0}x+1", "\\text{{the word {0}}}", "\\frac{{{0}",
                 "\\sqrt{{{0}}}+1"):
        majority([form.format(n, n * n) for n in range(200)], [0.0] * 200)
    assert time.process_time() - start < 8             # 12 s if every pair is read anew


def test_levels_of_any_kind_can_be_sorted():
    levels = [1, "a", None, True, "", 0, 2.5, "1"]
    rows = verify.rows_of([rollout(id=str(n), level=level) for n, level in enumerate(levels)])
    assert [row["level"] for row in rows] == [0, 1, 2.5, "1", "a", "all", None, ""]


def test_wilson_by_hand():
    """Newcombe 1998, table I: 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_samples_of_one_problem_are_not_independent_trials():
    assert effective_samples([[1.0], [0.0], [1.0]]) == 3                   # one sample per problem
    assert effective_samples([[1.0] * 8, [0.0] * 8]) == 2                  # eight copies tell no more
    assert effective_samples([[1.0] * 8, [1.0] * 8]) == 2                  # nor here, as far as we know
    # p = 6/12. The sums are 4, 1, 1, where 2 is expected: (4 + 1 + 1) / 12² · 3/2 is p (1 - p) / 4.
    assert effective_samples([[1.0] * 4, [1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0]]) == pytest.approx(4)
    rng = random.Random(0)
    alike = [[float(rng.random() < 0.5) for _ in range(8)] for _ in range(200)]
    assert 1200 < effective_samples(alike) <= 1600                         # luck only: nearly all count


# ---- the command -----------------------------------------------------------------------------
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
    # Pairs (right, wrong) and (right, cut off): a tie, then the only vote. All four: two to one.
    assert [first[f"majority@{k}"] for k in (1, 2, 4)] == pytest.approx([0.5, 0.75, 1.0])
    assert by["math", "all"]["accuracy"] == 0.25 and by["math", "all"]["pass@4"] == 0.5
    knights = by["kk", 2]
    assert knights["accuracy"] == knights["majority@2"] == 1.0 and "pass@4" not in knights


def test_points_are_a_unit_and_a_point_is_not():
    assert math_equal(r"12 \text{ points}", "12") and math_equal("12 points", "12")
    assert not math_equal("3 point 5", "3")


def test_a_numbered_list_of_roles_on_one_line():
    for box in ("(1) Zoey is a knight (2) Liam is a knave", "1. Zoey is a knight 2. Liam is a knave",
                "1) Zoey is a knight, 2) Liam is a knave", "Zoey is a knight, Liam is a knave"):
        assert verify.roles(box) == {"zoey": "knight", "liam": "knave"}, box
    assert verify.roles("(1) Zoey is a knight (2) Zoey is a knave") is None


def test_votes_of_a_mixed_file_are_counted_by_the_task_of_each_problem():
    halves = [rollout(id="m", response=f"\\boxed{{{box}}}", gold="1/2", reward=right)
              for box, right in (("1/2", 1.0), ("0.5", 1.0), ("2", 0.0), ("2", 0.0))]
    knights = [rollout(id="k", task="kk", gold=KK_GOLD, response="\\boxed{%s}" % KK_GOLD, reward=1.0)
               for _ in range(4)]
    for rows in (halves + knights, knights + halves):
        assert verify.summary(rows)["majority@4"] == 0.75       # 1/2 and 0.5 vote together: a tie


def test_styles_and_how_often_they_are_right():
    box = "\\boxed{%s}" % KK_GOLD
    table = "A=T B=T: A ok, B no\nA=T B=F: A ok, B ok\n"
    kk = [rollout(task="kk", response=text, reward=right) for text, right in (
        (box, 1.0), (box, 0.0), (table + box, 1.0), ("What?\n" + box, 0.0))]
    assert verify.styles(kk) == {"guess": {"share": 0.5, "right": 0.5},
                                 "other": {"share": 0.25, "right": 0.0},
                                 "table": {"share": 0.25, "right": 1.0}}
    for text, name in (("\nSo it is $2$.\n$\\boxed{2}$", "prose"), ("I do not know", "prose"),
                       ("\n$$\\boxed{2}", "bare"),
                       ("def answer():\n    return 2\n\\boxed{2}", "code"),
                       ("Look:\n```python\nx = 2\n```\n\\boxed{2}", "code"), ("", "prose")):
        assert verify.style(rollout(response=text)) == name, text
    for text, name in (("2 + 3 = 5. \\boxed{5}", "equation"), ("2 + 3", "prose"),
                       ("2 + 3 = 5. 5 + 0 = 5. \\boxed{5}", "steps")):
        assert verify.style(rollout(response=text, operations="++")) == name, text
    for text in ("\n" * 10**6, " \n" * 10**6, " " * 10**6):      # linear, or this takes an hour
        assert verify.style(rollout(response=text)) == "prose"


def test_table_is_aligned():
    row = {"task": "math", "level": 1, "n": 40, "accuracy": 0.5, "low": 0.345, "high": 0.655,
           "cut_off": 0.0, "length": 12.6, "pass@1": 0.5, "pass@2": 0.75, "majority@2": 0.625}
    other = {"task": "kk", "level": None, "n": 7, "accuracy": 1.0, "low": 0.6, "high": 1.0,
             "cut_off": 0.125, "length": 100.0}
    assert verify.table([row, other]).splitlines() == [
        "task  level   n  accuracy   95 % interval  cut off  length  pass@1  pass@2  majority@2",
        "math  1      40     50.0%   34.5% - 65.5%     0.0%      13   50.0%   75.0%       62.5%",
        "kk    -       7    100.0%  60.0% - 100.0%    12.5%     100"]


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
    ([rollout(), rollout(task="kk", gold="Zoey")], "rollouts.jsonl:2: 'gold'"),
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
