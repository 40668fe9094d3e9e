"""scripts/page.py: what is on the page is what is in the files, and a browser shows it.

The tests with a browser drive a headless Chromium through its DevTools protocol. They are skipped
by name where there is none.
"""
import fcntl
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from helpers import ROOT, command, one_line, read, run, write

sys.path.insert(0, os.path.join(ROOT, "scripts"))

import kk_gen  # noqa: E402
import page  # noqa: E402
from engine.flags import command as as_command  # noqa: E402
from engine.tokenizer import load_tokenizer  # noqa: E402
from grpo import advantages  # noqa: E402

BASE = os.path.join(ROOT, "assets", "tiny_base")
NAMES = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
HOSTILE = ("</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
           "<!-- \u202eright to left\u2066 \ud800 half &lt;b&gt;")


# ---- a small experiment, and its page --------------------------------------------------------
@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with an experiment of the tiny base: two steps of GRPO, answers, effects."""
    folder = tmp_path_factory.mktemp("page")
    tokens, kk = "--max-new-tokens 100", "--people 3 --template compact"
    for line in (
            f"kk_gen.py {kk} --num 12 --seed 5 --out data/rl.jsonl",
            f"kk_gen.py {kk} --num 8 --seed 6 --exclude data/rl.jsonl --out data/test.jsonl",
            f"kk_gen.py {kk} --num 9 --seed 7 --exclude data/test.jsonl --cot table --out"
            " data/short.jsonl",
            f"grpo.py --model {BASE} --data data/rl.jsonl --out lab/rl_base --steps 2 --prompts 3"
            f" --group 4 --temperature 1 --lr 3e-4 --max-prompt-tokens 200 {tokens}",
            f"sample.py --model {BASE} --data data/test.jsonl --out lab/eval/base.sampled.jsonl"
            f" --temperature 1 {tokens}",
            f"sample.py --model lab/rl_base/model --data data/test.jsonl --temperature 1 {tokens}"
            " --out lab/eval/rl_base.sampled.jsonl",
            f"effect.py --model {BASE} --test data/test.jsonl --data data/short.jsonl --out"
            f" lab/effect --group 8 --no-halves --cosines 0 {tokens}"):
        script, *flags = shlex.split(line)
        done = run(folder, *flags, script=script)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def lab_page(lab):
    done = run(lab, "lab", script="scripts/page.py")
    assert done.returncode == 0, done.stderr
    return lab / "lab.html"


def data_of(path) -> dict:
    """What a page holds, as a browser reads it."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    return json.loads(re.search('type="application/json" id="data">(.*?)</script>', text)[1])


def rollout(number: int, **changes) -> dict:
    return {"id": f"p{number}", "task": "math", "level": 1, "prompt": "1+1=", "gold": "2",
            "sample": 0, "response": "\\boxed{2}", "tokens": [1, 2, 3],
            "logprobs": [-0.5, -0.25, 0], "finished": True, "reward": 1.0, "step": 1, **changes}


def by_hand(folder, rows, metrics=({"step": 1, "reward": 0.5},), **settings):
    """A run directory with these answers."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(
        {"command": ["grpo.py"], "settings": {"std_norm": True, "model": "", **settings}}))
    write(folder / "metrics.jsonl", metrics)
    write(folder / "rollouts" / "step-000001.jsonl", rows)
    return folder


def made(*tops, **flags) -> dict:
    """The page of these paths, made in this process without a model."""
    out = os.path.join(os.path.dirname(tops[0]), "made.html")
    page.main(page.Settings(runs=[*map(str, tops)], out=out, **{"largest": 0.0, **flags}))
    return data_of(out)


# ---- the numbers on the page are those in the files ------------------------------------------
def test_curves_are_those_of_the_metrics(lab, lab_page):
    (curve,), rows = data_of(lab_page)["runs"], read(lab / "lab/rl_base/metrics.jsonl")
    assert curve["columns"]["step"] == [1, 2] and curve["of"] == 2
    for name in ("reward", "length", "entropy", "loss"):
        assert curve["columns"][name] == pytest.approx([row[name] for row in rows], rel=1e-3)
    styles = rows[1]["styles"]
    assert {name: curve["columns"][f"styles.{name}.share"][1] for name in styles} == pytest.approx(
        {name: of["share"] for name, of in styles.items()}, rel=1e-3)


def test_answers_are_those_of_the_rollouts(lab, lab_page):
    data, steps = data_of(lab_page), {}
    for step in (1, 2):
        for row in read(lab / f"lab/rl_base/rollouts/step-00000{step}.jsonl"):
            steps[step, row["id"], row["sample"]] = row
    number = [source["name"] for source in data["sources"]].index("lab/rl_base")
    groups = [group for group in data["groups"] if group["s"] == number]
    assert len(groups) == 6 and data["sources"][number]["counts"] == [6, 6, 2, 2]
    for group in groups:
        rows = [steps.pop((group["step"], data["problems"][a["p"]]["id"], a["n"]))
                for a in group["a"]]
        A = advantages(torch.tensor([[row["reward"] for row in rows]]))[0].tolist()
        assert group["A"] == pytest.approx(A, abs=1e-3)
        for a, row in zip(group["a"], rows):
            text = "".join(data["pieces"][i] for i in a["t"])
            assert text == row["response"] + "<|endoftext|>" * row["finished"]
            assert (a["r"], a["end"]) == (row["reward"], row["finished"])
            assert a["lp"] == pytest.approx(row["logprobs"], abs=1e-3)
            if group["step"] == 1:          # The policy has not moved: it is the base.
                assert a["base"] == pytest.approx(row["logprobs"], abs=2e-3)
    assert not steps


def test_effects_of_tokens_add_up_to_the_effect(lab, lab_page):
    (short,) = data_of(lab_page)["sets"]
    effects = {row["id"]: row["effect"] for row in read(lab / "lab/effect/short.effects.jsonl")}
    assert [bar[1] for bar in short["bars"]] == sorted(bar[1] for bar in short["bars"])
    assert {bar[0] for bar in short["bars"]} == effects.keys()
    for name, value, answer in short["bars"]:
        assert value == pytest.approx(effects[name], rel=1e-3)
        assert sum(answer["effect"]) == pytest.approx(effects[name], rel=0.01)


# ---- steps of Knights & Knaves ---------------------------------------------------------------
STATEMENTS = (("telling-truth", 2), ("and", ("telling-truth", 0), ("lying", 2)),
              ("->", ("telling-truth", 2), ("telling-truth", 0)))


def chain(style: str, change=lambda lines: lines) -> list:
    """The marks of a chain of this style, with the lines changed."""
    names, words = ["A", "B", "C"], kk_gen.KNIGHT_KNAVE
    lines = [kk_gen.step_text(step, STATEMENTS, names, words, True)
             for step in kk_gen.chain_of_thought(STATEMENTS, style)]
    text = "\n".join(change(lines))
    claims, marks = page.read_puzzle({
        "statements": repr(STATEMENTS), "names": names, "response": text,
        "prompt": kk_gen.compact_prompt(STATEMENTS, names, words)})
    assert [said for said, _ in claims] == ["C is a knight", "A is a knight and C is a knave",
                                            "if C is a knight then A is a knight"]
    assert [int(number, 16) for _, number in claims] == [
        kk_gen.true_rows(said, 3) for said in STATEMENTS]
    assert all(text[:end].count("\n") == i for i, (end, _) in enumerate(marks))
    return [why for _, why in marks]


def test_a_place_in_a_text_is_counted_as_a_browser_does():
    names, words = ["A", "B", "C"], kk_gen.KNIGHT_KNAVE
    line = kk_gen.step_text(kk_gen.chain_of_thought(STATEMENTS, "table")[0], STATEMENTS, names, words,
                            True)
    prompt = kk_gen.compact_prompt(STATEMENTS, names, words)
    for before, length in (("hm\n", 3), ("🤔\n", 3), ("\ud800\n", 2)):
        _, marks = page.read_puzzle({"statements": repr(STATEMENTS), "names": names, "prompt": prompt,
                                     "response": before + line})
        assert marks[-1][0] == length + len(line)


def test_each_step_is_marked_right_or_wrong():
    for style in kk_gen.STYLES:
        assert set(chain(style)) == {""}
    wrong = chain("table", lambda lines: ["A=T B=T C=T: A no", *lines[1:]])
    assert wrong == ["right here: A=T B=T C=T: A ok, B no", "", "", ""]
    assert chain("table", lambda lines: [lines[0], "nonsense", *lines[2:]]) == [
        "", "right here: A=T B=T C=F: A no", "", ""]
    early = chain("worked", lambda lines: [lines[0], lines[-1]])
    assert early[0] == "" and early[1].startswith("right here: A=T B=T C=F")
    assert chain("search", lambda lines: [lines[0], "C=F ok", *lines[2:]]) == [
        "", "right here: C=T ok", None, None, None]
    assert chain("guess", lambda lines: ["\\boxed{A is a knave, B is a knave, C is a knave}"]) == [
        "right here: \\boxed{A is a knight, B is a knave, C is a knight}"]
    for row in ({"response": "no puzzle"}, {"response": "", "statements": "(", "names": 3}):
        assert page.read_puzzle(row) == ([], [])


# ---- whatever is there -----------------------------------------------------------------------
def test_runs_side_by_side(tmp_path):
    for name in "ab":
        by_hand(tmp_path / name, [rollout(0), rollout(0, sample=1, reward=0.0)])
    data = made(tmp_path / "a", tmp_path / "b")
    assert [one["name"] for one in data["runs"]] == ["a", "b"] and len(data["groups"]) == 2
    assert data["missing"]["change"] == "no base is known: --base DIR"


def test_a_large_base_is_left_out_and_this_is_said(tmp_path):
    by_hand(tmp_path / "a", [rollout(0), rollout(0, sample=1)], model=BASE)
    missing = made(tmp_path / "a", largest=0.5)["missing"]
    assert "0.8 million parameters: see --largest" in missing["change"]
    assert "no problems for G" in made(tmp_path / "a", largest=1.0)["missing"]["effect"]


def test_of_many_rollouts_the_page_has_a_part_and_says_so(tmp_path):
    line = json.dumps(rollout(0)).replace('"sample": 0', '"sample": %d').replace('"p0"', '"p%d"')
    with open(tmp_path / "many.jsonl", "w") as file:
        file.writelines(line % (i // 4, i % 4) + "\n" for i in range(100_000))
    (tmp_path / "many.jsonl.config.json").write_text("{}")
    data = made(tmp_path / "many.jsonl", tokens=3000)       # a group has 12
    assert data["sources"][0]["counts"] == [250, 25_000, 1, 1]
    assert all([a["n"] for a in group["a"]] == [0, 1, 2, 3] for group in data["groups"])
    assert os.path.getsize(tmp_path / "made.html") < 1e6


def test_half_a_line_is_waited_for_and_a_bad_one_is_named(tmp_path, capsys):
    folder = by_hand(tmp_path / "a", [rollout(0), rollout(0, sample=1)])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "rew')
    assert made(folder)["runs"][0]["of"] == 1
    rows = [rollout(0), {**rollout(0, sample=1), "tokens": "none"}]
    write(folder / "rollouts" / "step-000001.jsonl", rows)
    for top, words in ((folder, "step-000001.jsonl:2: tokens: missing, or of another kind"),
                       (tmp_path / "nowhere", "nowhere: no run, no effects")):
        with pytest.raises(SystemExit) as left:
            as_command(page.main, page.Settings(runs=[str(top)], largest=0.0))
        assert left.value.code == 2 and words in one_line(capsys)


def test_numbers_that_are_none_do_not_break_the_page(tmp_path):
    tokens = load_tokenizer(BASE).encode("\\boxed{2}").ids
    logprobs = [float("nan"), float("-inf"), *[-1] * (len(tokens) - 2)]
    data = made(by_hand(tmp_path / "a", [rollout(0, tokens=tokens, logprobs=logprobs)], model=BASE,
                        metrics=[{"step": 1, "loss": float("inf")}], std_norm=False))
    assert data["groups"][0]["a"][0]["lp"] == [None, None, *logprobs[2:]]
    assert data["runs"][0]["columns"]["loss"] == [None]


def test_answers_of_another_tokenizer_are_shown_without_numbers(tmp_path):
    for tokens in ([1, 2, 3], [10**9], [-1], ["a"], [True], []):
        data = made(by_hand(tmp_path / f"{tokens}", [rollout(0, tokens=tokens)], model=BASE),
                    largest=20.0)
        (answer,) = data["groups"][0]["a"]
        assert [data["pieces"][i] for i in answer["t"]] == ["\\boxed{2}"] and answer["lp"] == []
        assert data["missing"]["tokens"] == f"{tokens} has others than the base"


def test_tensorboard_gets_the_same_numbers_or_one_line(tmp_path, monkeypatch, capsys):
    folder = by_hand(tmp_path / "a", [], metrics=[
        {"step": 3, "reward": 0.5, "by_level": {"3": 1.0}}])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    made(folder, tensorboard=str(tmp_path / "events"))
    assert "pip install tensorboard" in one_line(capsys)
    written = []

    class SummaryWriter:
        def __init__(self, path):
            self.path = os.path.basename(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def add_scalar(self, *what):
            written.append((self.path, *what))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(
        "module", (), {"SummaryWriter": SummaryWriter}))
    made(folder, tensorboard=str(tmp_path / "events"))
    assert written == [("a", "step", 3, 3), ("a", "reward", 0.5, 3), ("a", "by_level/3", 1.0, 3)]


def test_watch_writes_again_until_ctrl_c(tmp_path):
    folder = by_hand(tmp_path / "a", [rollout(0), rollout(0, sample=1)])
    watching = subprocess.Popen(command("a", "--watch", "--every", "0.2", script="scripts/page.py"),
                                cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    def wait_for(steps):
        for _ in range(1200):
            time.sleep(0.1)
            if (tmp_path / "a.html").exists() and data_of(tmp_path / "a.html")["runs"][0][
                    "of"] == steps:
                return data_of(tmp_path / "a.html")
        raise AssertionError(f"no page with {steps} steps")
    assert wait_for(1)["reload"] == 0.2
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "reward": 1.0}\n')
    assert wait_for(2)["runs"][0]["columns"]["reward"] == [0.5, 1.0]
    watching.send_signal(signal.SIGINT)
    assert "a.html" in watching.communicate(timeout=60)[0] and watching.returncode == 0
    assert data_of(tmp_path / "a.html")["reload"] == 0


# ---- in a browser ----------------------------------------------------------------------------
class Browser:
    """A headless Chromium with one tab. Commands and answers are JSON on pipes, ended by \\0."""

    def __init__(self, profile):
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (*os.pipe(), *os.pipe())]
        theirs, self.out, self.back, theirs_too = pipes

        def connect():                      # Chromium reads from 3 and writes to 4.
            os.dup2(theirs, 3)
            os.dup2(theirs_too, 4)
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
             f"--user-data-dir={profile}"], pass_fds=(3, 4), preexec_fn=connect,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs)
        os.close(theirs_too)
        self.number, self.bytes, self.events, self.session = 0, b"", [], {}
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=tab,
                                               flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def message(self) -> dict:
        while b"\0" not in self.bytes:
            some = os.read(self.back, 2**20)
            assert some, "the browser has ended"
            self.bytes += some
        text, _, self.bytes = self.bytes.partition(b"\0")
        return json.loads(text)

    def call(self, method: str, **params) -> dict:
        self.number += 1
        os.write(self.out, json.dumps({"id": self.number, "method": method, "params": params,
                                       **self.session}).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            self.events.append(answer)
        return answer.get("result", {"result": {}})         # else: a page that was just left

    def open(self, path, state="", width=1280, scheme="light") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": scheme}])
        self.go("about:blank")              # A new part behind # alone would load nothing.
        self.events = []
        self.go(f"{pathlib.Path(path).resolve().as_uri()}#{state}")

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        for _ in range(600):
            there = self.call(
                "Runtime.evaluate", returnByValue=True,
                expression="document.readyState + ' ' + location.protocol")["result"].get("value")
            if there == f"complete {url.partition(':')[0]}:":
                return
            time.sleep(0.05)
        raise AssertionError(f"{url} does not load")

    def js(self, code: str):
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def key(self, name: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name,
                      windowsVirtualKeyCode={"Tab": 9, "ArrowRight": 39, "ArrowDown": 40,
                                             "ArrowLeft": 37, "Escape": 27, "Enter": 13}[name])

    def choose(self, key: str, value: str) -> None:
        self.js(f"""(() => {{ const select = document.querySelector('#answers [data-key="{key}"]');
                    select.value = {json.dumps(value)};
                    select.dispatchEvent(new Event('change')); }})()""")

    def errors(self) -> list:
        self.js("1")                        # so that all events are here
        return [event["params"] for event in self.events if event["method"] in (
            "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("needs a browser: chromium")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.process.terminate()
    browser.process.wait()


CARDS = "[...document.querySelectorAll('#answers article')].map(card => card.innerText)"


def test_the_page_loads_without_errors_and_fits(browser, lab_page):
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            browser.open(lab_page, width=width, scheme=scheme)
            assert browser.errors() == []
            assert browser.js("document.documentElement.scrollWidth") <= width
            back = browser.js("getComputedStyle(document.body).backgroundColor")
            assert back == {"light": "rgb(251, 251, 250)", "dark": "rgb(21, 24, 28)"}[scheme]
    assert browser.js("[...document.querySelectorAll('h2')].map(x => x.textContent)") == [
        "Runs", "Curves", "Models side by side", "Answers", "Effects"]
    assert "reward went from" in browser.js("document.getElementById('lead').textContent")


def test_each_filter_shows_just_what_it_names(browser, lab, lab_page):
    rows = read(lab / "lab/rl_base/rollouts/step-000002.jsonl")
    kinds = {"right": lambda row: row["reward"] == 1, "wrong": lambda row: row["reward"] == 0,
             "cut off": lambda row: not row["finished"]}
    browser.open(lab_page)
    for kind, fits in kinds.items():
        browser.choose("verdict", kind)
        assert len(browser.js(CARDS)) == sum(map(fits, rows)), kind
    browser.choose("verdict", "")
    for style in {kk_gen.style_of(row["response"]) for row in rows}:
        browser.choose("style", style)
        cards = browser.js(CARDS)
        assert len(cards) == sum(kk_gen.style_of(row["response"]) == style for row in rows)
        assert all(f"\n{style}, " in card for card in cards)
    browser.choose("style", "")
    browser.choose("step", "1")
    one = read(lab / "lab/rl_base/rollouts/step-000001.jsonl")[0]["id"]
    number = browser.js(f"String(data.problems.findIndex(p => p.id === '{one}'))")
    browser.choose("problem", number)
    assert len(browser.js(CARDS)) == 4 and browser.errors() == []
    title = browser.js("document.querySelector('#answers h3').textContent")
    assert title.startswith(f"Problem {one}")


def test_each_colour_is_shown_or_its_lack_explained(browser, lab_page, tmp_path):
    painted = ("[...document.querySelectorAll('#answers .token')]"
               ".filter(x => x.style.backgroundColor).length")
    browser.open(lab_page)
    assert browser.js(painted) == 0
    for colour in ("lp", "push", "change", "effect"):
        browser.choose("colour", colour)
        assert browser.js(painted) > 100, colour
    by_hand(tmp_path / "a", [rollout(0), rollout(0, sample=1)])
    made(tmp_path / "a")
    browser.open(tmp_path / "made.html", "colour=effect")
    assert "No colour: no base is known: --base DIR" in browser.js(
        "document.getElementById('answers').textContent")


def test_the_keyboard_alone_reads_the_numbers(browser, lab, lab_page):
    tip = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"
    browser.open(lab_page)
    seen, words = set(), []
    for _ in range(150):
        browser.key("Tab")
        kind = browser.js("document.activeElement.closest('section')?.id + ' ' +"
                          " document.activeElement.tagName")
        if kind in ("curves svg", "answers ARTICLE", "effects svg") and kind not in seen:
            browser.key("ArrowRight")
            words.append(browser.js(tip))
        seen.add(kind)
    assert {"runs INPUT", "curves SELECT", "curves svg", "story BUTTON", "answers SELECT",
            "answers SUMMARY", "answers ARTICLE", "effects svg"} <= seen
    reward = read(lab / "lab/rl_base/metrics.jsonl")[0]["reward"]
    assert words[0] == f"step 1\nrl_base  {float(f'{reward:.4g}'):g}"
    assert words[1].startswith("token 1 of ") and "log p" in words[1]
    assert "example=0%3A" in browser.js("location.hash") and browser.errors() == []


def test_models_stand_side_by_side(browser, lab, lab_page):
    browser.open(lab_page)
    models = "[...document.querySelector('#story tbody').rows].map(x => x.cells[0].innerText)"
    assert browser.js(models) == ["the base", "GRPO from the base"]
    rows = {row["id"]: row for row in read(lab / "lab/eval/base.sampled.jsonl")}
    for i in range(8):
        browser.js(f"document.querySelectorAll('#story th button')[{i}].click()")
        name = browser.js("document.querySelector('#story .card h3').innerText").split()[1]
        row = rows[name.strip(",")]
        verdict = "right" if row["reward"] else "wrong" if row["finished"] else "cut off"
        card = browser.js("document.querySelector('#story article h3').innerText")
        assert card == f"the base {verdict}"


def test_the_truth_table_has_one_solution(browser, lab_page):
    browser.open(lab_page, "table=1")
    assert browser.js("[...document.querySelectorAll('#answers .group')].map(group =>"
                      " group.querySelectorAll('.solution').length)") == [1, 1, 1]
    gold = browser.js("document.querySelector('#answers .card p').innerText")
    roles = browser.js("[...document.querySelector('#answers .solution').cells].slice(0, 3)"
                       ".map(x => x.innerText)")
    assert roles == ["T" if word == "knight" else "F" for word in re.findall("knight|knave", gold)]


def test_what_is_open_stays_open_when_the_page_is_loaded_again(browser, lab_page):
    browser.open(lab_page)
    browser.choose("verdict", "wrong")
    browser.js("document.querySelector('#answers summary').click()")
    time.sleep(0.2)
    before, state = browser.js(CARDS), browser.js("location.hash.slice(1)")
    browser.open(lab_page, state)
    assert browser.js(CARDS) == before
    assert browser.js("document.querySelector('#answers details').open")


def test_no_text_becomes_markup_or_script(browser, tmp_path):
    rows = [rollout(0, response=HOSTILE, id=HOSTILE, prompt=HOSTILE, gold=HOSTILE, level=HOSTILE),
            rollout(0, response=HOSTILE, id=HOSTILE, prompt=HOSTILE, sample=1)]
    folder = by_hand(tmp_path / "<img src=x onerror=hacked=1>", rows, metrics=[
        {"step": 1, "reward": 0.5, "styles": {HOSTILE: {"share": 1.0, "right": 1.0}}}])
    data = made(folder)
    assert data["groups"][0]["a"][0]["t"] and HOSTILE in data["pieces"]
    assert pathlib.Path(tmp_path, "made.html").read_text().count("</script>") == 2
    browser.open(tmp_path / "made.html")
    assert browser.errors() == [] and browser.js("window.hacked") is None
    markup = "img, body script:not([id]):not([nonce])"
    assert browser.js(f"document.querySelectorAll('{markup}').length") == 0
    shown = browser.js("document.querySelector('#answers article pre').textContent")
    assert shown == (HOSTILE.replace("\u202e", "‹U+202E›").replace("\u2066", "‹U+2066›")
                     .replace("\ud800", "‹U+D800›"))
    browser.js("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='hacked = 1'>`)")
    time.sleep(0.1)                         # Even markup, if there were some, could run nothing.
    assert browser.js("window.hacked") is None


def test_the_page_asks_the_network_for_nothing():
    template = pathlib.Path(ROOT, "scripts", "page.html").read_text()
    assert set(re.findall(r"https?://[^\"']+", template)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|href)=|@import|url\(|[a-z]+HTML\b|eval\(|fetch\(", template)
    assert len(template.splitlines()) <= 600
    assert len(pathlib.Path(page.__file__).read_text().splitlines()) <= 350
