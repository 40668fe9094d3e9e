"""cli.py: what a person gets wrong is one line and exit code 2; official files load as they are."""
import dataclasses
import json
import os

import pytest

import cli


@dataclasses.dataclass
class Settings:
    data: str                   # what to read
    top_p: float = 1.0          # mass to keep, 100 % is all
    #                             of it
    limit: int | None = None    # at most
    names: list[str] = dataclasses.field(default_factory=list)   # several
    fast: bool = False          # or not


def line_of(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_flags_come_from_the_dataclass():
    found = cli.parse(Settings, "", argv="--data x --top-p 0.5 --names a b --fast".split())
    assert found == Settings("x", 0.5, None, ["a", "b"], True)
    assert cli.parse(Settings, "", "data", ["y", "--limit", "3"]) == Settings("y", limit=3)


def test_help_is_the_comment_behind_the_field(capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(Settings, "", argv=["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and "mass to keep, 100 % is all of it [default 1.0]" in shown


@pytest.mark.parametrize("argv, words", [
    (["--data", "x", "--dat", "y"], "unrecognized arguments: --dat"),   # no abbreviations
    ([], "required: --data"), (["--data", "x", "--limit", "two"], "invalid int value: 'two'")])
def test_wrong_flags_are_one_line(argv, words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.parse(Settings, "", argv=argv)
    assert end.value.code == 2 and words in line_of(capsys)


@pytest.mark.parametrize("text, words", [
    ('{"a": 1}\n\n[1]\n', ":3: not a JSON object"), ('{"a": 1}\n{"b": 1}', ":2: no field 'a'"),
    ('{"a": ', ":1: not JSON"), ("[" * 100_000, ":1: not JSON")])
def test_bad_lines_are_named_by_file_and_number(tmp_path, text, words, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(SystemExit):
        cli.read_jsonl(str(path), "a")
    assert f"{path}{words}" in line_of(capsys)


def test_half_a_character_does_not_lose_a_file(tmp_path):
    """json.dumps(ensure_ascii=False) of a lone surrogate cannot be encoded: hours would be lost."""
    rows = [{"response": "caf\u00e9 \ud83d"}, {"response": "\U0001f600 \\ud83d"}]
    cli.write_jsonl(str(tmp_path / "x.jsonl"), rows)
    assert cli.read_jsonl(str(tmp_path / "x.jsonl")) == rows
    assert "caf\u00e9" in (tmp_path / "x.jsonl").read_text()


def test_write_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("old")

    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        cli.write_jsonl(str(path), rows())
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.jsonl"]


def test_an_output_that_cannot_be_written_stops_early(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "x.jsonl"):
        with pytest.raises(SystemExit):
            cli.check_output(str(path))
        assert "cannot write" in line_of(capsys)


def test_official_files_load_as_they_are(tmp_path):
    rows = [
        {"quiz": "Who?", "names": ["Zoey", "Liam"], "solution": [True, False],
         "knight_knave": {"a_knight": "a saint", "a_knave": "a sinner"}},
        {"problem": "1+1?", "solution": "so \\boxed{1} no \\boxed{\\frac{4}{2}}", "level": "Level 3"},
        {"problem": "2?", "solution": "...", "answer": "2", "unique_id": "u/1", "level": 5},
        {"question": "How many?", "answer": "3+4=7\n#### 1,007"},
        {"id": "mine", "task": "kk", "prompt": "p", "gold": "g"}]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    kk, math, math500, gsm8k, mine = cli.read_problems(str(path))
    assert kk["gold"] == "Zoey is a saint, Liam is a sinner" and kk["level"] == 2
    assert "\\boxed{XX is a sinner, YY is a saint, ...}<|im_end|>\n<|im_start|>assistant\n" \
        in kk["prompt"]
    assert (math["task"], math["gold"], math["level"]) == ("math", "\\frac{4}{2}", 3)
    assert (math500["id"], math500["gold"], math500["level"]) == ("u/1", "2", 5)
    assert (gsm8k["task"], gsm8k["gold"]) == ("gsm8k", "1007")
    assert mine["prompt"] == "p" and len({row["id"] for row in (kk, math, math500, gsm8k)}) == 4
    base = cli.read_problems(str(path), "base")[3]
    assert base["prompt"] == "Question:\nHow many?\nAnswer:\nLet's think step by step."


def test_a_line_that_is_no_problem_is_named(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"problem": "x", "solution": "no box"}\n')
    with pytest.raises(SystemExit):
        cli.read_problems(str(path))
    assert f"{path}:2: not a problem" in line_of(capsys)
