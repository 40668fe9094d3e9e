"""The lessons run, their exercises tell right from wrong, and say why.

A lesson is run as a script, all cells or some. To put a solution, or a wrong one, in the place of an exercise, the
lines of the function of that name are exchanged.
"""
import ast
import os
import pathlib
import re
import runpy
import sys
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
COURSE = ROOT / "course"
LESSONS = sorted(path.name for path in COURSE.glob("[0-9]_*.py"))
ROOMS = {"model", "verify", "grpo", "sft", "ppo", "distill", "effect", "sample", "kk_gen"}


@pytest.fixture(scope="module", autouse=True)
def course():
    """lesson.py, as the lessons import it, with little training."""
    before = os.environ.get("COURSE_QUICK")
    os.environ["COURSE_QUICK"] = "1"
    sys.path.insert(0, str(COURSE))
    import lesson
    yield lesson
    sys.path.remove(str(COURSE))
    if before is None:
        del os.environ["COURSE_QUICK"]


def functions(source: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def exercises(source: str) -> list[str]:
    """The names of the functions that a student fills in."""
    return [name for name, node in functions(source).items()
            if "# EXERCISE" in "\n".join(source.splitlines()[node.lineno - 1:node.end_lineno])]


def filled(source: str, answers: str) -> str:
    """The lesson with these functions in the place of its own of the same names."""
    lines, new = source.splitlines(), answers.splitlines()
    for name, node in functions(answers).items():
        old = functions("\n".join(lines))[name]
        lines[old.lineno - 1:old.end_lineno] = new[node.lineno - 1:node.end_lineno]
    imports = [line for line in new if line.startswith(("import ", "from "))]
    return "\n".join(imports + lines)


def cells(source: str) -> list[tuple[str, str]]:
    """(title, code) of every cell. What stands before the first is part of the setup."""
    parts = re.split(r"^# %%(.*)$", source, flags=re.MULTILINE)
    titles = ["Setup", *(title.strip() for title in parts[1::2])]
    return list(zip(titles, parts[::2]))


def verdicts(course, source: str, all_cells: bool = False) -> dict[str, str]:
    """Run the setup and the exercises, or all cells. What each check said."""
    course.verdicts.clear()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write("\n".join(code for title, code in cells(source)
                             if all_cells or title.startswith(("Setup", "Exercise"))))
        file.flush()
        runpy.run_path(file.name, run_name="__main__")
    return dict(course.verdicts)


def read(name: str, folder: str = "") -> str:
    return (COURSE / folder / name).read_text()


@pytest.mark.parametrize("name", LESSONS)
def test_the_solutions_are_right_and_the_whole_lesson_runs_with_them(course, name):
    lesson, solutions = read(name), read(name, "solutions")
    assert list(functions(solutions)) == exercises(lesson)
    said = verdicts(course, filled(lesson, solutions), all_cells=True)
    assert list(said) == exercises(lesson)
    assert all(text.startswith("right") for text in said.values()), said


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_runs_without_its_exercises_and_says_what_is_left(course, name):
    lesson = read(name)
    said = verdicts(course, lesson, all_cells=True)
    assert 2 <= len(said) <= 3 and list(said) == exercises(lesson)
    assert all(text.startswith("not done yet") for text in said.values()), said


# Lesson, what a student writes, and words of the message that say why it is wrong.
WRONG = [
    (1, "def probabilities(logits, T): return logits.softmax(-1)", "divides the logits"),
    (1, "def probabilities(logits, T): return logits.tolist()", "the lesson needs a tensor"),
    (1, "def probabilities(logits, T): return logits / T", "Divide each by their sum"),
    (1, "def probabilities(logits, T): return (logits * T).softmax(-1)", "divides the logits"),
    (1, "def draw(p, u): return int(p.argmax())", "greedy"),
    (1, "def draw(p, u): return int((p.cumsum(0) < u).sum())", "begins where the one before it"),
    (1, "def positions(n, new): return n * new, n + new", "only drawn"),
    (1, "def positions(n, new): return n * new, n + new - 1", "3 \\+ 1"),
    (2, "def box(r): return r.split('boxed{')[1].split('}')[0]", "The last box counts"),
    (2, "def box(r): return r[r.rfind('boxed{') + 6:r.rfind('}')]", "no box here"),
    (2, "def box(r): return r.split('boxed{')[-1].split('}')[0]", "no box here"),
    (2, "def correct(c, g): return c == g", "Only the order differs"),
    (2, "def correct(c, g): return all(part in g for part in c.split(', '))", "B is missing"),
    (2, "def correct(c, g): return set(g.split(', ')) <= set(c.split(', '))", "two roles"),
    (2, "def fool(): return 'A is a knight, B is a knave'", "the weak rule does not find it"),
    (2, "def fool(): return 'A is a knight, A is a knave, B is a knave'", "four possible answers"),
    (3, "def mean_reward(p, r): return (p * r).mean()", "Half of the answers|multiply each"),
    (3, "def mean_reward(p, r): return r.mean()", "as much as it is likely"),
    (3, "def objective(logp, r, b): return (logp * r).mean()", "Subtract the baseline"),
    (3, "def objective(logp, r, b): return ((r - b) * logp).sum()", "the mean over the answers"),
    (3, "def above_the_others(r): return r - r.mean()", "compared with itself"),
    (3, "def above_the_others(r): return r - (r.sum() - r) / len(r)", "by n - 1, not by n"),
    (4, "def group_advantages(r): return (r - r.mean()) / (r.std() + 1e-6)", "a group of its own"),
    (4, "def group_advantages(r): return r - r.mean(-1, keepdim=True)", "torch's std is 0.5"),
    (4, "def group_advantages(r): return (r - r.mean(-1)) / (r.std(-1) + 1e-6)", "of its own"),
    (4, "def teaching(r): return float(r.any(-1).float().mean())", "All right teaches as little"),
    (4, "def teaching(r): return float(r.mean())", "a right and a wrong answer"),
    (4, "def teaching(r): return int((r.any(-1) & ~r.all(-1)).sum())", "Divide by the number"),
    (4, "def gain(ratio, A, clip): return ratio.clamp(1 - clip, 1 + clip) * A", "hidden"),
    (4, "def gain(ratio, A, clip): return ratio * A", "factor of 1.2"),
    (5, "def keep_correct(rows): return [one for one in rows if one['reward']]", "comes twice"),
    (5, "def keep_correct(rows): return rows", "c is wrong"),
    (5, "def keep_correct(rows):\n"
     "    first = {one['id']: one for one in reversed(rows)}\n"
     "    return [one for one in first.values() if one['reward']]", "keep the second"),
    (5, "def token_advantages(t, s): return s - t", "more likely than the student"),
    (5, "def token_advantages(t, s): return t.exp() - s.exp()", "more likely than the student"),
    (6, "def inner(g, h): return float((g['a'] * h['a']).sum())", "All parameters count"),
    (6, "def inner(g, h): return sum(float((g[n] * h[n]).abs().sum()) for n in g)", "absolute"),
    (6, "def slope(f, s): return (f(s) - f(-s)) / s", "2 \\* s"),
    (6, "def slope(f, s): return (f(s) - f(0)) / s", "one side"),
    (7, "def one_of(n, c, k): return 1 - (1 - c / n) ** k", "put an answer back"),
    (7, "def one_of(n, c, k): return c / n", "comb\\(4, 2\\)"),
    (7, "def vote(boxes, gold): return float(gold in boxes)", "does not help that somebody"),
    (7, "def vote(boxes, gold): return float(boxes.count(gold) > len(boxes) / 2)", "than half"),
    (7, "def winner(styles): return max(styles, key=lambda n: styles[n]['share'])", "need not win"),
    (7, "def winner(styles): return max(styles, key=lambda n: styles[n]['right'])", "too rare"),
]


@pytest.mark.parametrize("number, answer, why", WRONG)
def test_a_wrong_answer_is_told_why(course, number, answer, why):
    [name] = functions(answer)
    said = verdicts(course, filled(read(LESSONS[number - 1]), answer))[name]
    assert not said.startswith(("right", "not done")) and re.search(why, said), said
    assert said.endswith("Until then the lesson uses the solution.")


def test_every_exercise_has_two_wrong_answers():
    tried = [name for _, answer, _ in WRONG for name in functions(answer)]
    assert all(tried.count(name) >= 2 for lesson in LESSONS for name in exercises(read(lesson)))


def test_a_mistake_in_the_code_is_shown_and_stops_nothing(course):
    said = verdicts(course, filled(read(LESSONS[2]), "def mean_reward(p, r): return p * nothing"))
    assert "NameError" in said["mean_reward"] and "not done yet" in said["objective"]


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_short_and_uses_the_front_rooms_only(name):
    lines = read(name).splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 100
    assert lines[0] == "# %% [markdown]" and f"Lesson {name[0]}" in lines[1]
    imported = {node.module if isinstance(node, ast.ImportFrom) else alias.name
                for node in ast.walk(ast.parse(read(name)))
                if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    others = imported - ROOMS - {"lesson", "torch", "numpy"}
    assert others <= set(sys.stdlib_module_names), others
    assert f"{name[0]} " in read("README.md")


def test_there_are_seven():
    assert [name[0] for name in LESSONS] == list("1234567")
    assert sorted(path.name for path in (COURSE / "solutions").glob("*.py")) == LESSONS
