"""Files that people bring: problems in every public format, folders, ids, examples with an end."""
import json
import os
import sys

import pytest

from engine.examples import as_sequences, read_examples
from engine.files import data_files
from engine.problems import as_problem, read_problems
from engine.tokenizer import encode_prompts, load_tokenizer
from helpers import GOLDEN, read, run, write
from verify import reward

MATH = [{"problem": f"{i} + 1?", "level": "Level 5", "type": "Algebra",
         "solution": f"It is $\\boxed{{{i + 1}}}$."} for i in range(12)]
KK = {"quiz": "Who?", "names": ["Zoey", "Liam"], "solution": [True, False]}
OWN = {"task": "math", "prompt": "p", "gold": "1"}


def put(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return str(path)


def golds(path):
    return [problem["gold"] for problem in read_problems(str(path))]


# ---- public rows -----------------------------------------------------------------------------
def test_official_files_load_as_they_are(tmp_path):
    rows = [
        {"quiz": "Who?", "names": ["Zoey", "Liam"], "solution": [True, False],
         "knight_knave": {"a_knight": "a saint", "a_knave": "a sinner"}},
        {"problem": "1+1?", "solution": "so \\boxed{1} no \\boxed{\\frac{4}{2}}",
         "level": "Level 3"},
        {"problem": "2?", "solution": "...", "answer": "2", "unique_id": "u/1", "level": 5},
        {"question": "How many?", "answer": "3+4=7\n#### 1,007"},
        {"id": "mine", "task": "kk", "prompt": "p", "gold": "A is a knight"}]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    kk, math, math500, gsm8k, mine = read_problems(str(path))
    assert kk["gold"] == "Zoey is a saint, Liam is a sinner" and kk["level"] == 2
    assert "\\boxed{XX is a sinner, YY is a saint, ...}<|im_end|>\n<|im_start|>assistant\n" \
        in kk["prompt"]
    assert (math["task"], math["gold"], math["level"]) == ("math", "\\frac{4}{2}", 3)
    assert (math500["id"], math500["gold"], math500["level"]) == ("u/1", "2", 5)
    assert (gsm8k["task"], gsm8k["gold"]) == ("gsm8k", "1007")
    assert mine["prompt"] == "p" and len({row["id"] for row in (kk, math, math500, gsm8k)}) == 4
    base = read_problems(str(path), "base")[3]
    assert base["prompt"] == "Question:\nHow many?\nAnswer:\nLet's think step by step."


@pytest.mark.parametrize("row, expected", [     # id, task, gold, level
    ({"question": "q", "final_answer": "\\infty", "difficulty": 5.5, "topic": "x",
      "r1_solution_1": "s"}, ("x:1", "math", "\\infty", "5.5")),                    # DeepMath
    ({"question": "q", "final_answer": "0", "difficulty": -1.0}, ("x:1", "math", "0", -1)),
    ({"ID": "2024-II-4", "Problem": "q", "Solution": "s", "Answer": 33},            # AIME
     ("2024-II-4", "math", "33", None)),
    ({"id": 60, "problem": "q", "solution": "\\boxed{204}", "url": "u"}, (60, "math", "204", None)),
    ({"id": 7, "question": "q", "problem": 3, "answer": 70.0}, (7, "math", "70", None)),
    ({"problem": "q", "solution": "\\boxed{1}", "answer": None, "level": None},
     ("x:1", "math", "1", None)),
    ({"problem": "q", "solution": "\\boxed{1}", "level": "Level ?"}, ("x:1", "math", "1", "?")),
    ({"problem": "q", "solution": "\\boxed{1}", "level": "²"}, ("x:1", "math", "1", "²")),
    ({"question": "q", "answer": "2.5"}, ("x:1", "math", "2.5", None)),
    ({"question": "q", "answer": 10**400}, ("x:1", "math", str(10**400), None)),
    ({"question": "q", "answer": "so\n#### 1,000"}, ("x:1", "gsm8k", "1000", None)),
    ({**KK, "knight_knave": None}, ("x:1", "kk", "Zoey is a knight, Liam is a knave", 2)),
    ({**OWN, "level": 3.0}, ("x:1", "math", "1", 3)),
    ({**OWN, "id": "a", "level": "hard"}, ("a", "math", "1", "hard"))])
def test_rows_as_public_data_have_them(row, expected):
    problem = as_problem(row, "plain", "x:1")
    assert tuple(problem[field] for field in ("id", "task", "gold", "level")) == expected
    assert problem["prompt"].startswith("p" if "prompt" in row else row.get("quiz", "q"))


@pytest.mark.parametrize("knight, knave", [
    ("a saint", "a sinner"), ("a hero", "a villain"), ("an angel", "a devil"),
    ("an altruist", "an egoist"), ("a sage", "a fool"), ("a pioneer", "a laggard")])
def test_the_other_role_words_of_public_puzzles(knight, knave):
    row = {**KK, "knight_knave": {"a_knight": knight, "a_knave": knave}}
    problem = as_problem(row, "plain", "x:1")
    right, wrong = (f"\\boxed{{Liam is {a}, Zoey is {b}}}" for a, b in ((knave, knight),
                                                                        (knight, knave)))
    assert reward(problem, right, True) == 1 and reward(problem, wrong, True) == 0


@pytest.mark.parametrize("row, words", [
    ({"problem": "x", "solution": "no box"}, "not a problem"), ({}, "not a problem"),
    ({"question": 5, "answer": "5"}, "not a problem"),
    ({"question": "q", "answer": ["5"]}, "its answer is"),
    ({"question": "q", "answer": True}, "its answer is true"),
    ({"question": "q", "answer": float("nan")}, "its answer is NaN"),
    ({"question": "q", "answer": "so ####"}, "its gold is"),
    ({**OWN, "gold": 5}, "its gold is 5"), ({**OWN, "prompt": " "}, "its prompt is"),
    ({**OWN, "prompt": "\ud800"}, "its prompt is"), ({**OWN, "task": []}, "unknown task"),
    *(({**OWN, "id": wrong}, "its id is") for wrong in (["a"], {"a": 1}, 1.5, None, True)),
    *(({**OWN, "level": wrong}, "its level is") for wrong in ([1], {"a": 1}, True, float("inf"))),
    *(({**KK, "solution": wrong}, "its solution is") for wrong in (
        [True], [True] * 3, [1, 0], [True, None], ["knight", "knave"], {"Zoey": True}, None)),
    *(({**KK, "names": wrong}, "its names is") for wrong in (
        ["Zoey", "Zoey"], ["Zoey", 5], ["Zoey", ""], "ZL", [], None)),
    *(({**KK, "names": [wrong, "Liam"]}, "its gold is") for wrong in (
        "liam", "Tom and Jerry", "Smith, John")),
    ({**KK, "quiz": None}, "its quiz is"),
    ({**KK, "knight_knave": ["saint"]}, "its knight_knave is"),
    ({**KK, "knight_knave": {"a_knight": "a fool", "a_knave": "a fool"}}, "its knight_knave is"),
    ({**OWN, "task": "kk", "gold": "Tom and Jerry is a knight, what"}, "its gold is")])
def test_a_row_that_cannot_be_right_is_refused_by_line_and_field(tmp_path, row, words):
    path = write(tmp_path / "x.jsonl", [OWN, row])
    with pytest.raises(ValueError) as error:
        read_problems(path)
    assert str(error.value).startswith(f"{path}:2: {words}") and "\n" not in str(error.value)


# ---- formats and folders ---------------------------------------------------------------------
def test_one_file_in_every_format(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in MATH)
    forms = {"a.jsonl": lines, "lines.json": lines, "array.json": json.dumps(MATH),
             "pretty.json": json.dumps(MATH, indent=2), "array.jsonl": "\n" + json.dumps(MATH),
             "bom.json": "\ufeff" + json.dumps(MATH, indent=2)}
    for name, text in forms.items():
        assert golds(put(tmp_path / name, text)) == [str(i + 1) for i in range(12)], name
        assert [p["id"] for p in read_problems(str(tmp_path / name))][:2] == [f"{name}:1",
                                                                              f"{name}:2"]


def test_math_as_it_was_published(tmp_path):
    """A folder for each subject, and in it a file for each problem."""
    for subject in ("geometry", "algebra"):
        for i, row in enumerate(MATH):
            put(tmp_path / "train" / subject / f"{i}.json", json.dumps(row, indent=4))
    put(tmp_path / "train" / ".cache" / "x.json", "{}")
    put(tmp_path / "train" / "README.md", "#")
    problems = read_problems(str(tmp_path / "train"))
    assert [problem["id"] for problem in problems] == [
        f"train/{subject}/{i}.json:1" for subject in ("algebra", "geometry") for i in range(12)]
    assert problems[0]["level"] == 5 and "response" not in problems[0]
    done = run(tmp_path, "--source", "train", "--parts", "all=5:3", "--out", "data",
               script="scripts/problems.py")
    assert done.returncode == 0, done.stderr
    for row in read(tmp_path / "data" / "all.jsonl"):
        assert reward(row, row["response"], True) == 1


def test_ids_do_not_depend_on_where_a_folder_lies(tmp_path):
    for place in ("here", "elsewhere/deeper"):
        for name in ("x.jsonl", "sub/y.jsonl"):
            put(tmp_path / place / "data" / name, json.dumps(MATH[0]))
        put(tmp_path / place / "one.jsonl", json.dumps(MATH[0]))
        paths = [str(tmp_path / place / name) for name in ("data", "one.jsonl")]
        assert [one["id"] for one in read_problems(paths)] == [
            "data/sub/y.jsonl:1", "data/x.jsonl:1", "one.jsonl:1"]


@pytest.mark.extras
def test_parquet_and_its_shards(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet
    for i in range(11):
        rows = [{**MATH[i], "image": b"\xff"}, {**KK, "index": i}][i == 3:][:1]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"train-{i}-of-11.parquet")
    problems = read_problems(str(tmp_path))
    assert [one["gold"] for one in problems] == ["1", "2", "3", "Zoey is a knight, Liam is a knave",
                                                 *map(str, range(5, 12))]
    assert problems[10]["id"] == f"{tmp_path.name}/train-10-of-11.parquet:1" and json.dumps(problems)
    put(tmp_path / "bad.parquet", "PAR1")
    with pytest.raises(ValueError, match=f"^cannot read {tmp_path}/bad.parquet: ") as error:
        read_problems(str(tmp_path / "bad.parquet"))
    assert "\n" not in str(error.value)


def test_parquet_without_pyarrow_names_a_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="x.parquet: .*pip install pyarrow.*to_json.*lines=True"):
        read_problems(put(tmp_path / "x.parquet", "PAR1"))


def test_the_order_of_a_folder_is_natural(tmp_path):
    names = ["2.json", "10.json", "a1/b2.jsonl", "a1/b10.jsonl", "a1/b010.jsonl", "a10.json",
             "b/1.parquet"]
    for name in reversed(names):
        put(tmp_path / name, "")
    assert sorted(names) != names
    assert data_files([str(tmp_path)]) == [str(tmp_path / name) for name in (
        "2.json", "10.json", "a1/b2.jsonl", "a1/b010.jsonl", "a1/b10.jsonl", "a10.json",
        "b/1.parquet")]


@pytest.mark.parametrize("name, text, words", [
    ("x.jsonl", "", "{}: no problems"), ("x.json", "[]", "{}: no problems"),
    ("x.json", "", "{}: not JSON"), ("x.json", "null", "{}:1: not a JSON object"),
    ("x.json", json.dumps([MATH[0], 5]), "{}:2: not a JSON object"),
    ("x.json", json.dumps([MATH[0], {}], indent=1), "{}:2: not a problem"),
    ("x.json", '[\n{"a":]', "{}: not JSON: .*line 2"), ("x.json", "[" * 100_000, "{}: not JSON"),
    ("x.json", json.dumps(MATH[0], indent=1)[:-1], "{}: not JSON"),
    ("x.jsonl", '{"a": 1', "{}:1: not JSON")])
def test_files_that_hold_no_problems(tmp_path, name, text, words):
    path = put(tmp_path / name, text)
    with pytest.raises(ValueError, match="^" + words.format(path)):
        read_problems(path)


def test_a_folder_that_holds_no_problems(tmp_path):
    put(tmp_path / "notes.txt", "x")
    put(tmp_path / ".cache" / "x.jsonl", json.dumps(OWN))
    with pytest.raises(ValueError, match=f"^{tmp_path}: this folder holds no"):
        read_problems(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_other_encodings_end_in_one_line(tmp_path, encoding):
    text = "".join(json.dumps({**OWN, "prompt": "café"}, ensure_ascii=False) + "\n" for _ in "ab")
    with pytest.raises(ValueError, match="^.*x.jsonl:(1: not JSON| not UTF-8).*$"):
        read_problems(put(tmp_path / "x.jsonl", text, encoding))


# ---- ids -------------------------------------------------------------------------------------
def test_files_of_one_name_have_different_ids(tmp_path):
    """pass@8 of 32 problems with 16 ids is that of 16 problems with 16 samples."""
    paths = [put(tmp_path / name / "train.jsonl", json.dumps(OWN)) for name in ("a", "b", "a/a")]
    assert read_problems(paths[0])[0]["id"] == "train.jsonl:1"
    assert [one["id"] for one in read_problems(paths[:2])] == ["a/train.jsonl:1",
                                                               "b/train.jsonl:1"]
    assert len({one["id"] for one in read_problems(paths)}) == 3
    (tmp_path / "b" / "again.jsonl").symlink_to(paths[0])
    for same in ("b/../a/train.jsonl", "b/again.jsonl"):
        with pytest.raises(ValueError, match="^/.*/a/train.jsonl: is given twice$"):
            read_problems([paths[0], str(tmp_path / same)])


def test_an_id_that_comes_twice_is_refused_with_both_lines(tmp_path):
    own = [{**OWN, "id": name} for name in ("a", 1, "b.jsonl:1")]
    a = write(tmp_path / "a.jsonl", own)
    for rows in ([{**OWN, "id": "a"}], [{**OWN, "id": 1}], [{**OWN, "id": "1"}], [OWN]):
        b = write(tmp_path / "b.jsonl", [*rows])
        with pytest.raises(ValueError, match=f"^{b}:1: its id .* is that of {a}:[123], too$"):
            read_problems([a, b])
    with pytest.raises(ValueError, match=f"^{a}:4: its id 'a' is that of {a}:1, too$"):
        read_problems(write(tmp_path / "a.jsonl", [*own, own[0]]))


@pytest.mark.parametrize("script, flags", [
    ("sample.py", ("--data", "x.jsonl", "--out", "r.jsonl")),
    ("effect.py", ("--test", "x.jsonl", "--data", "x.jsonl")),
    ("grpo.py", ("--data", "x.jsonl", "--out", "run", "--max-prompt-tokens", 8,
                 "--max-new-tokens", 8)),
    ("scripts/problems.py", ("--source", "x.jsonl", "--parts", "all=0", "--out", "data"))])
def test_every_command_refuses_them_alike(tmp_path, script, flags):
    write(tmp_path / "x.jsonl", [{**OWN, "id": "a", "response": "x"}] * 2)
    model = () if script.startswith("scripts") else ("--model", GOLDEN)
    done = run(tmp_path, *model, *flags, script=script)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "x.jsonl:2: its id 'a' is that of x.jsonl:1, too" in done.stderr


# ---- examples --------------------------------------------------------------------------------
@pytest.mark.parametrize("row, response, finished", [
    ({"response": "a knave<|endoftext|>"}, "a knave", True),
    ({"response": "a knave<|endoftext|> \n", "finished": False}, "a knave", True),
    ({"response": "a knave<|im_end|>\n"}, "a knave", True),
    ({"response": "a knave", "finished": False}, "a knave", False),
    ({"response": "a knave\n"}, "a knave\n", True),
    ({"response": "a knave\n<|endoftext|>"}, "a knave\n", True),
    ({"response": "a <|endoftext|> knave"}, "a <|endoftext|> knave", True),
    ({"response": "a <|endoftext|><|endoftext|>"}, "a <|endoftext|>", True),        # once
    ({"response": "<|endoftext|>"}, "", True),
    ({"text": "a knave<|endoftext|>"}, "a knave", True)])
def test_an_end_that_is_spelled_is_not_doubled(tmp_path, row, response, finished):
    path = write(tmp_path / "x.jsonl", [{"prompt": "who is ", **row}])
    examples, tokenizer = read_examples([path]), load_tokenizer(GOLDEN)
    assert examples[0][1]["response"] == response
    end = tokenizer.token_to_id("<|endoftext|>")
    sequence, = as_sequences(examples, tokenizer, end, 512)
    answer = tokenizer.encode(response, add_special_tokens=False).ids + [end] * finished
    assert list(sequence.tokens[-len(answer):]) == answer


def test_a_rollout_that_spells_its_end_keeps_its_tokens(tmp_path):
    tokenizer = load_tokenizer(GOLDEN)
    end = tokenizer.token_to_id("<|endoftext|>")
    ids = tokenizer.encode("a<|endoftext|>").ids
    path = write(tmp_path / "x.jsonl", [{"prompt": "p", "response": "a<|endoftext|>",
                                         "tokens": [*ids, end], "finished": True}])
    sequence, = as_sequences(read_examples([path]), tokenizer, end, 512)
    assert list(sequence.tokens[sequence.start:]) == [*ids, end]


def test_examples_come_in_every_format(tmp_path):
    rows = [{"prompt": "p", "response": str(i)} for i in range(3)]
    put(tmp_path / "d" / "a.json", json.dumps(rows, indent=1))
    put(tmp_path / "d" / "b.jsonl", json.dumps({"text": "t"}))
    examples = read_examples([str(tmp_path / "d")])
    assert [row["response"] for _, row in examples] == ["0", "1", "2", "t"]
    assert [os.path.basename(place) for place, _ in examples] == ["a.json:1", "a.json:2",
                                                                  "a.json:3", "b.jsonl:1"]


def test_a_solution_without_a_box_is_no_response(tmp_path):
    write(tmp_path / "x.jsonl", [{"problem": "p", "solution": "It is 5.", "answer": 5},
                                 {"Problem": "p", "Solution": "\\boxed{5}", "Answer": 5}])
    run(tmp_path, "--source", "x.jsonl", "--parts", "all=0", "--no-shuffle", "--out", "data",
        script="scripts/problems.py")
    assert [row.get("response") for row in read(tmp_path / "data" / "all.jsonl")] == [
        None, "\\boxed{5}"]


# ---- one newline -----------------------------------------------------------------------------
def test_exactly_one_newline_stands_between_assistant_and_the_answer(tmp_path):
    """Spelled as token ids, in every stage of the paper's experiments: its K&K examples of SFT have
    the newline in the response, its MATH examples and all prompts of RL have it in the prompt."""
    from engine.examples import train_tokenizer
    train_tokenizer(["assistant"] * 9, 320).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    start, end = map(tokenizer.token_to_id, ("<|im_start|>", "<|im_end|>"))
    opening = [end, *tokenizer.encode("\n").ids, start, *tokenizer.encode("assistant\n").ids]
    newline = tokenizer.encode("\n").ids[0]

    def examples(name):
        return read_examples([str(tmp_path / name)])

    run(tmp_path, "--people", 2, "--num", 3, "--cot", "search", "--out", "kk.jsonl",
        script="kk_gen.py")
    write(tmp_path / "m.jsonl", [{"problem": "p", "solution": "So \\boxed{5}."}])
    run(tmp_path, "--source", "m.jsonl", "--parts", "math=0", "--out", ".",
        script="scripts/problems.py")
    for name, in_response in (("kk.jsonl", True), ("math.jsonl", False)):
        for one in as_sequences(examples(name), tokenizer, 0, 5000):
            ids, begin = one.tokens.tolist(), one.start + in_response
            assert ids[begin - len(opening):begin] == opening and ids[begin] != newline
            assert ids[-1] == 0 and ids.count(0) == 1           # <|endoftext|>, once
    for template, file in (("chat", "kk.jsonl"), ("chat", "m.jsonl")):
        bare = [{key: value for key, value in row.items() if key not in (
            "task", "prompt", "gold", "response")} for row in read(tmp_path / file)]
        write(tmp_path / "bare.jsonl", bare)
        for problem in read_problems(str(tmp_path / "bare.jsonl"), template):
            assert encode_prompts(tokenizer, [problem["prompt"]])[0][-len(opening):] == opening
