"""How large a file and a function may be, and who may import whom beside `.importlinter`."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from cli.errors import EXTRAS as MISSING
from tests.support.imports import distribution_of, imported_names, needed_modules
from tests.support.paths import ROOT

ROOMS = (
    "bench", "cli", "demo", "examples", "export", "ouroboros", "plugins", "runtime", "study",
)  # fmt: skip
FILE_LINES, FUNCTION_LINES = 400, 80
FLOORS = 8  # of runtime: the longest chain of modules, each importing the one before

Function = ast.FunctionDef | ast.AsyncFunctionDef


def find_oversized(source: str) -> list[str]:
    """What of a module is too large: the module, or a function with its docstring."""
    lines = len(source.splitlines())
    found = [f"{lines} lines"] if lines > FILE_LINES else []
    for function in walk_functions(ast.parse(source)):
        first = min(node.lineno for node in (function, *function.decorator_list))
        lines = (function.end_lineno or first) - first + 1
        if lines > FUNCTION_LINES:
            found.append(f"{function.name}: {lines} lines")
    return found


def walk_functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


@pytest.mark.parametrize("room", [*ROOMS, "tests"])
def test_no_file_and_no_function_is_too_large(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, "the room has moved"
    oversized = {
        str(file.relative_to(ROOT)): found
        for file in files
        if (found := find_oversized(file.read_text(encoding="utf-8")))
    }
    assert oversized == {}


def test_size_is_counted_with_decorators_and_docstring() -> None:
    body = "    x = 1\n" * (FUNCTION_LINES - 4)
    fits = f"def f():\n    '''Two\n\n    lines.'''\n{body}"
    assert find_oversized(fits) == []
    assert find_oversized(f"@wraps\n{fits}") == [f"f: {FUNCTION_LINES + 1} lines"]
    assert find_oversized("class A:\n    async " + fits.replace("\n", "\n    ") + "    x = 1\n")
    assert find_oversized("\n" * (FILE_LINES + 1)) == [f"{FILE_LINES + 1} lines"]


def test_every_package_has_a_room() -> None:
    found = {file.parent.name for file in Path(ROOT).glob("*/__init__.py")}
    assert found - {"tests"} <= set(ROOMS)


def imported(file: Path, anywhere: bool) -> set[str]:
    """The names of what a module imports as it runs: when it is loaded, or anywhere in it."""

    def walk(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                yield from walk(node.orelse)
                continue
            yield node
            inside = isinstance(node, ast.If | ast.Try | ast.With) or anywhere
            for field in ("body", "orelse", "finalbody") if inside else ():
                yield from walk(getattr(node, field, []))

    return imported_names(walk(ast.parse(file.read_text(encoding="utf-8")).body))


def import_graph(room: str, anywhere: bool) -> dict[str, set[str]]:
    """Each module of a room, less packages' own `__init__`, with those of the room it imports."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for file in (ROOT / room).rglob("*.py")
        if file.stem != "__init__"
    }
    return {name: imported(file, anywhere) & set(files) for name, file in files.items()}


def test_runtime_has_few_floors() -> None:
    graph = import_graph("runtime", anywhere=False)
    order = list(TopologicalSorter(graph).static_order())
    floors: dict[str, int] = {}
    for name in order:
        floors[name] = 1 + max((floors[below] for below in graph[name]), default=0)
    assert len(order) > 40
    assert {name: floor for name, floor in floors.items() if floor > FLOORS} == {}


@pytest.mark.parametrize("room", ["runtime", "export", "ouroboros", "cli"])
def test_no_module_imports_in_a_circle(room: str) -> None:
    TopologicalSorter(import_graph(room, anywhere=True)).prepare()  # raises CycleError


@pytest.mark.parametrize("room", ["runtime", "export", "ouroboros", "cli"])
def test_no_package_imports_in_a_circle(room: str) -> None:
    """A package is a folder of the room with all in it; what lies in the room itself is its own."""
    packages: dict[str, set[str]] = {}
    for name, taken in import_graph(room, anywhere=True).items():
        own = package_of(name)
        packages.setdefault(own, set()).update({package_of(other) for other in taken} - {own})
    TopologicalSorter(packages).prepare()  # raises CycleError


def package_of(module: str) -> str:
    room, name, *inside = module.split(".")
    return f"{room}.{name}/" if inside else f"{room}.{name}"


@pytest.mark.parametrize("room", ["runtime", "export", "ouroboros"])
def test_no_problem_names_a_flag_of_the_command_line(room: str) -> None:
    """Whoever calls the library has none; what a command can do about it is the cure's to say."""
    found = {
        str(file.relative_to(ROOT)): flags
        for file in sorted((ROOT / room).rglob("*.py"))
        if (flags := find_flags(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def find_flags(source: str) -> list[str]:
    """The problems of errors that name a flag."""
    raised = (
        ast.unparse(call.args[0])
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and call.args and ast.unparse(call.func).endswith("Error")
    )
    return [problem for problem in raised if re.search(r"(?<![\w-])--[a-z]|_flag\(", problem)]


def test_a_flag_in_a_problem_is_found_and_in_a_cure_is_not() -> None:
    assert find_flags('raise DataError(f"--seed {seed} is not allowed", "give 0 or more")')
    assert find_flags('raise DataError(f"{_flag(name)} is not allowed")')
    assert find_flags('raise DataError(f"seed={seed} is not allowed", "leave out --seed")') == []


def test_no_test_module_imports_another() -> None:
    """What two of them need is in `tests/support`."""
    found = {
        str(file.relative_to(ROOT)): taken
        for file in sorted((ROOT / "tests").rglob("*.py"))
        if (taken := sorted(n for n in imported(file, True) if re.search(r"^tests\..*test_", n)))
    }
    assert found == {}


# The extras that the code of a room may count on, beside what is always installed.
EXTRAS = {
    "runtime": ("plot", "cuda"),
    "cli": (),
    "ouroboros": ("train",),
    "export": ("train", "export"),
    "study": ("train", "study"),
    "bench": ("train", "export"),
    "demo": ("train",),
    "tests": ("train", "export", "dev"),
}


def required(*extras: str) -> set[str]:
    """What an installation with these extras asks for by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [project["optional-dependencies"][extra] for extra in extras]
    lists = [project["dependencies"], *asked]
    return {re.split(r"[<>=\[; ]", one)[0].lower() for listed in lists for one in listed}


@pytest.mark.parametrize("room", EXTRAS)
def test_what_is_imported_is_asked_for(room: str) -> None:
    """What another package brings along goes when that no longer needs it."""
    needed = {distribution_of(module) for module in needed_modules(ROOT / room)}
    assert needed - required(*EXTRAS[room]) == set()


def test_an_extra_that_is_missing_is_named() -> None:
    base = required()
    needed = {module for room in ("ouroboros", "export") for module in needed_modules(ROOT / room)}
    assert {module for module in needed if distribution_of(module) not in base} <= set(MISSING)
    for module, extra in MISSING.items():
        assert distribution_of(module) in required(extra), module
