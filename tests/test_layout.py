"""The house stays small: what may import what, how long a file and a function may be.

    python tests/test_layout.py         # the imports as a list, and the longest functions
"""
import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = {"model": 350, "verify": 300, "grpo": 350, "sft": 260, "ppo": 160, "distill": 160,
         "effect": 350, "sample": 450,
         "kk_gen": 600}                             # the front rooms, and how many lines each may have
METHODS = {"grpo", "sft", "ppo", "distill", "effect"}


def product() -> dict[str, pathlib.Path]:
    """Every file of the product, by the name of its module."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("engine/*.py"), *ROOT.glob("answers/*.py"),
             *ROOT.glob("scripts/*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def imports(path: pathlib.Path, modules) -> set[str]:
    """The product's modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return (names | {f"scripts.{name}" for name in names}) & set(modules)


def arrows() -> dict[str, set[str]]:
    modules = product()
    return {name: imports(path, modules) - {name} for name, path in modules.items()}


def functions() -> list[tuple[int, str]]:
    """(lines, where) of every function of the product, the longest first."""
    return sorted(((node.end_lineno - node.lineno + 1, f"{name}: {node.name}")
                   for name, path in product().items() for node in ast.walk(ast.parse(path.read_text()))
                   if isinstance(node, ast.FunctionDef)), reverse=True)


def test_no_circle():
    left = arrows()
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert not left, left


def test_arrows_run_down():
    for name, needs in arrows().items():
        folders = {need.partition(".")[0] for need in needs}
        assert "scripts" not in folders or name.startswith("scripts."), name
        if name.startswith("engine."):
            assert not folders & METHODS, name
        if name.startswith("answers."):
            assert folders <= {"answers"}, name


@pytest.mark.parametrize("room", ROOMS)
def test_a_front_room_is_small(room):
    assert len((ROOT / f"{room}.py").read_text().splitlines()) <= ROOMS[room]


def test_there_are_no_other_rooms_in_front():
    assert {path.stem for path in ROOT.glob("*.py")} == set(ROOMS)


def test_a_function_fits_on_a_screen():
    assert [found for found in functions() if found[0] > 60] == []


if __name__ == "__main__":
    for module, needed in sorted(arrows().items()):
        print(f"{module:24} -> {', '.join(sorted(needed))}")
    for lines, where in functions()[:10]:
        print(f"{lines:4} lines  {where}")
