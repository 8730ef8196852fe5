"""How large a file and a function may be. Who may import whom is in `.importlinter`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ROOMS = (
    "bench", "cli", "demo", "examples", "export", "ouroboros", "plugins", "runtime", "study",
)  # fmt: skip
FILE_LINES, FUNCTION_LINES = 400, 80

Function = ast.FunctionDef | ast.AsyncFunctionDef


def find_oversized(source: str) -> list[str]:
    """What of a module is too large: the module, or a function less its docstring."""
    lines = len(source.splitlines())
    found = [f"{lines} lines"] if lines > FILE_LINES else []
    for function in walk_functions(ast.parse(source)):
        first = min(node.lineno for node in (function, *function.decorator_list))
        lines = (function.end_lineno or first) - first + 1
        if ast.get_docstring(function) is not None:
            docstring = function.body[0]
            lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
        if lines > FUNCTION_LINES:
            found.append(f"{function.name}: {lines} lines")
    return found


def walk_functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


@pytest.mark.parametrize("room", [*ROOMS, "tests/support"])
def test_no_file_and_no_function_is_too_large(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, "the room has moved"
    oversized = {
        str(file.relative_to(ROOT)): found
        for file in files
        if (found := find_oversized(file.read_text(encoding="utf-8")))
    }
    assert oversized == {}


def test_size_is_that_of_the_code() -> None:
    body = "    x = 1\n" * (FUNCTION_LINES - 1)
    fits = f"def f():\n    '''Two\n\n    lines.'''\n{body}"
    assert find_oversized(fits) == []
    assert find_oversized(f"@wraps\n{fits}") == [f"f: {FUNCTION_LINES + 1} lines"]
    assert find_oversized("class A:\n    async " + fits.replace("\n", "\n    ") + "    x = 1\n")
    assert find_oversized("\n" * (FILE_LINES + 1)) == [f"{FILE_LINES + 1} lines"]


def test_every_package_has_a_room() -> None:
    found = {file.parent.name for file in Path(ROOT).glob("*/__init__.py")}
    assert found - {"tests"} <= set(ROOMS)
