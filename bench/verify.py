"""How often verify.py agrees with the labelled cases, and how fast; beside Math-Verify if there.

    python bench/verify.py [--repeats 5]

Math-Verify is only here for comparison (`pip install math-verify==0.9.0`, in an environment of its
own). Without it, its rows are left out. Times are of the processor, and cold: what the grader
remembers of answers is forgotten before every pair. The last line is everything as JSON.
"""
import json
import logging
import os
import statistics
import sys
import time
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)                    # this file has the name of the module that it measures
import verify
from answers import equal, latex, numbers, tree
from engine.flags import command, limits, parse

try:
    import math_verify
    logging.disable(logging.CRITICAL)       # It logs every answer that it gives up on.
except ImportError:
    math_verify = None


@dataclass(kw_only=True)
class Settings:
    repeats: int = limits(5, at_least=1)    # passes of verify.py over the pairs


def cases(name: str) -> list[dict]:
    with open(os.path.join(ROOT, "tests", "cases", name), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def ours(case: dict, text: str, gold: str) -> bool:
    if case["kind"] == "response":
        return verify.reward({"task": "math", "gold": gold}, text, True) == 1.0
    return verify.math_equal(text, gold)


def theirs(case: dict, text: str, gold: str) -> bool:
    if case["kind"] == "answer":
        text = f"\\boxed{{{text}}}"
    return math_verify.verify(math_verify.parse(f"\\boxed{{{gold}}}"), math_verify.parse(text))


def forget() -> None:
    for remembered in (equal.understood, equal.region, tree.read, numbers.value_at, numbers.exp,
                       numbers.log):
        remembered.cache_clear()


def agreement(grade, some: list[dict]) -> dict:
    """Right, wrong yes, wrong no, and the seconds of each pair."""
    tally = {"pairs": 0, "right": 0, "false_yes": 0, "false_no": 0, "seconds": []}
    for case in some:
        forget()
        start = time.process_time()
        verdict = grade(case, case.get("prediction", ""), case["gold"])
        tally["seconds"].append(time.process_time() - start)
        if case["expected"] is not None:
            tally["pairs"] += 1
            tally["right"] += verdict == case["expected"]
            tally["false_yes"] += verdict and not case["expected"]
            tally["false_no"] += not verdict and case["expected"]
    return tally


def kk_agreement() -> dict:
    """[pairs, right] for each tier of the K&K cases."""
    table = {}
    for case in cases("kk.jsonl"):
        if case["expected"] is not None:
            problem = {"task": "kk", "gold": case["gold"]}
            finished = case["response"].endswith(("<|endoftext|>", "<|im_end|>"))
            verdict = verify.reward(problem, case["response"], finished)
            counts = table.setdefault(case["tier"], [0, 0])
            counts[0] += 1
            counts[1] += verdict == case["expected"]
    return table


def adversarial(grade) -> dict:
    """How many cases have a verdict, how many are wrong or raise, and the slowest of all cases."""
    wrong, labelled, slowest = 0, 0, 0.0
    for case in cases("adversarial.jsonl"):
        text, gold = ("".join(piece * count for piece, count in pieces)
                      for pieces in (case["pieces"], case.get("gold_pieces", [[case["gold"], 1]])))
        start = time.process_time()
        try:
            verdict = grade(case, text, gold)
        except Exception as error:                          # A grader that raises ends a run.
            verdict = error
        slowest = max(slowest, time.process_time() - start)
        labelled += case["expected"] is not None
        wrong += (isinstance(verdict, Exception)
                  or case["expected"] is not None and verdict != case["expected"])
    return {"labelled": labelled, "wrong_or_raised": wrong, "slowest_ms": 1000 * slowest}


def bombs() -> float:
    """The slowest call of any function, in seconds, on one fragment repeated: 100,000 characters of
    it, and as many as are read as mathematics."""
    slowest = 0.0
    for bomb in ("{", "}", "\\", "\\{", "\\boxed{", "\\frac1", "\\sqrt", "(", "|", "9^", "9", ".",
                 "!", "x+", "α", "5\\sin1+", "\\pm", ",", "a is a b, ", "\\text{a}", "mm ", "½",
                 "\ud800", " ", "[0,1]\\cup"):
        for length in (100_000, latex.LONGEST):
            text = bomb * (length // len(bomb))
            for call in (lambda: verify.last_boxed(text), lambda: verify.math_equal(text, "5"),
                         lambda: verify.math_equal(text, text + "+0"),
                         lambda: verify.kk_correct("\\boxed{%s}" % text, "Zoey is a knight")):
                forget()
                start = time.process_time()
                call()
                slowest = max(slowest, time.process_time() - start)
    return slowest


def tier_report(grade, some: list[dict], repeats: int) -> dict:
    """Agreement on the cases of one tier, and the milliseconds of a pair over some passes."""
    passes = [agreement(grade, some) for _ in range(repeats)]
    means = sorted(1000 * statistics.mean(one["seconds"]) for one in passes)
    tally = {key: value for key, value in passes[0].items() if key != "seconds"}
    return tally | {"ms": statistics.median(means), "ms_low": means[0], "ms_high": means[-1],
                    "ms_worst": 1000 * max(max(one["seconds"]) for one in passes)}


def grader_report(name: str, grade, repeats: int) -> dict:
    """The rows of one grader: printed, and returned."""
    rows = [case for case in cases("math.jsonl") if case["kind"] != "freeform"]
    report = {}
    for tier in ("core", "convention", "extraction"):
        some = [case for case in rows if case["tier"] == tier]
        one = report[tier] = tier_report(grade, some, repeats)
        spread = f"{one['ms']:.3f} ({one['ms_low']:.3f}-{one['ms_high']:.3f})"
        print(f"{name:12} {tier:11} {one['pairs']:5} {one['right'] / one['pairs']:7.2%} "
              f"{one['false_yes']:9} {one['false_no']:8} {spread:>20}")
    hostile = report["adversarial"] = adversarial(grade)
    print(f"{name:12} adversarial {hostile['labelled']:5} {hostile['wrong_or_raised']} wrong or "
          f"raised, slowest {hostile['slowest_ms']:.1f} ms")
    return report


def main(settings: Settings):
    print(f"{'grader':12} {'tier':11} {'pairs':>5} {'right':>7} {'false yes':>9} {'false no':>8} "
          f"{'ms a pair':>20}")
    result = {"grader": {"verify.py": grader_report("verify.py", ours, settings.repeats)}}
    if math_verify:
        result["grader"]["Math-Verify"] = grader_report("Math-Verify", theirs, 1)
    result["kk"] = kk_agreement()
    result["bombs_slowest_ms"] = 1000 * bombs()
    for tier, (pairs, right) in result["kk"].items():
        print(f"{'verify.py':12} kk {tier:8} {pairs:5} {right / pairs:7.2%}")
    print(f"slowest call on 100,000 characters: {result['bombs_slowest_ms']:.1f} ms")
    if math_verify:
        times = [result["grader"][name]["core"]["ms"] for name in ("Math-Verify", "verify.py")]
        result["times_faster"] = times[0] / times[1]
        print(f"{result['times_faster']:.0f} times faster than Math-Verify on the core pairs")
    print(json.dumps(result))


if __name__ == "__main__":
    command(main, parse(Settings, __doc__))
