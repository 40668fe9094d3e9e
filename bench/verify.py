"""How often verify.py agrees with the labelled cases, and how fast, beside Math-Verify if installed.

    python bench/verify.py [--repeats 5]

Math-Verify is for comparison only (`pip install math-verify==0.9.0`, in an environment of its own);
without it its columns are left out. Times are cold: before every pair verify.py's memory of answers
already read is emptied. Ends in one JSON line.
"""
import argparse
import json
import logging
import os
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)                    # this file has the name of the module that it measures
import verify                               # noqa: E402

try:
    import math_verify
    logging.disable(logging.CRITICAL)       # it logs every answer that it gives up on
except ImportError:
    math_verify = None


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
    verify.read.cache_clear()
    verify.values.cache_clear()


def agreement(grade, some: list[dict]) -> dict:
    """Right, wrong yes, wrong no, and the seconds of each pair."""
    tally = {"pairs": 0, "right": 0, "false_yes": 0, "false_no": 0, "seconds": []}
    for case in some:
        forget()
        start = time.perf_counter()
        got = grade(case, case.get("prediction", ""), case["gold"])
        tally["seconds"].append(time.perf_counter() - start)
        if case["expected"] is not None:
            tally["pairs"] += 1
            tally["right"] += got == case["expected"]
            tally["false_yes"] += got and not case["expected"]
            tally["false_no"] += not got and case["expected"]
    return tally


def kk_agreement() -> dict:
    table = {}
    for case in cases("kk.jsonl"):
        if case["expected"] is not None:
            finished = case["response"].endswith(("<|endoftext|>", "<|im_end|>"))
            got = verify.reward({"task": "kk", "gold": case["gold"]}, case["response"], finished)
            counts = table.setdefault(case["tier"], [0, 0])
            counts[0] += 1
            counts[1] += got == case["expected"]
    return table


def adversarial(grade) -> tuple[int, int, float]:
    """(wrong or raised, cases with a verdict, slowest seconds)"""
    wrong, labelled, slowest = 0, 0, 0.0
    for case in cases("adversarial.jsonl"):
        text, gold = ("".join(piece * count for piece, count in pieces)
                      for pieces in (case["pieces"], case.get("gold_pieces", [[case["gold"], 1]])))
        start = time.perf_counter()
        try:
            got = grade(case, text, gold)
        except Exception as error:                          # a grader that raises loses a run
            got = error
        slowest = max(slowest, time.perf_counter() - start)
        labelled += case["expected"] is not None
        wrong += case["expected"] is not None and got != case["expected"] or isinstance(got,
                                                                                        Exception)
    return wrong, labelled, slowest


def bombs() -> float:
    """The slowest call of any function on 100,000 characters of one repeated fragment, or on as many
    as verify.py reads as mathematics."""
    slowest = 0.0
    for bomb in ("{", "}", "\\", "\\{", "\\boxed{", "\\frac1", "\\sqrt", "(", "|", "9^", "9", ".",
                 "!", "x+", "α",
                 "5\\sin1+", "\\pm", ",", "a is a b, ", "\\text{a}", "mm ", "½", "\ud800", " ",
                 "[0,1]\\cup"):
        for length in (100_000, verify.LONGEST):
            text = bomb * (length // len(bomb))
            for call in (lambda: verify.last_boxed(text), lambda: verify.math_equal(text, "5"),
                         lambda: verify.math_equal(text, text + "+0"),
                         lambda: verify.kk_correct("\\boxed{%s}" % text, "Zoey is a knight")):
                forget()
                start = time.perf_counter()
                call()
                slowest = max(slowest, time.perf_counter() - start)
    return slowest


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5,
                        help="passes of verify.py over the pairs [5]")
    repeats = parser.parse_args().repeats
    graders = {"verify.py": ours} | ({"Math-Verify": theirs} if math_verify else {})
    rows = [case for case in cases("math.jsonl") if case["kind"] != "freeform"]
    result = {"grader": {}}
    print(f"{'grader':12} {'tier':11} {'pairs':>5} {'right':>7} {'false yes':>9} {'false no':>8} "
          f"{'ms a pair':>20}")
    for name, grade in graders.items():
        report = result["grader"][name] = {}
        for tier in ("core", "convention", "extraction"):
            some = [case for case in rows if case["tier"] == tier]
            passes = [agreement(grade, some) for _ in range(repeats if grade is ours else 1)]
            means = sorted(1000 * statistics.mean(one["seconds"]) for one in passes)
            one = {key: value for key, value in passes[0].items() if key != "seconds"}
            report[tier] = one | {"ms": statistics.median(means), "ms_low": means[0],
                                  "ms_high": means[-1],
                                  "ms_worst": 1000 * max(max(each["seconds"]) for each in passes)}
            spread = f"{report[tier]['ms']:.3f} ({means[0]:.3f}-{means[-1]:.3f})"
            print(f"{name:12} {tier:11} {one['pairs']:5} {one['right'] / one['pairs']:7.2%} "
                  f"{one['false_yes']:9} {one['false_no']:8} {spread:>20}")
        wrong, labelled, slowest = adversarial(grade)
        report["adversarial"] = {"labelled": labelled, "wrong_or_raised": wrong,
                                 "slowest_ms": 1000 * slowest}
        print(f"{name:12} adversarial {labelled:5} {wrong} wrong or raised, "
              f"slowest {1000 * slowest:.1f} ms")
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
    main()
