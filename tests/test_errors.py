"""Every error says what to do next, in the field that is there for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from runtime import errors
from runtime.errors import OuroError
from tests.support.paths import ROOT

ROOMS = ("runtime", "export", "ouroboros", "cli")
WRAPPED = {"errors_as": 2}  # makes an error of the kind, the problem and the cure it is given


def kinds_of(sources: dict[str, str]) -> dict[str, int]:
    """The names of the tree's classes, and of what wraps one: the place of each one's cure."""
    tree = (kind for kind in vars(errors).values() if isinstance(kind, type))
    kinds = {kind.__name__ for kind in tree if issubclass(kind, OuroError)} | {"RuntimeFault"}
    classes = [
        (node.name, {ast.unparse(base).rpartition(".")[2] for base in node.bases})
        for source in sources.values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    ]
    while more := {name for name, bases in classes if bases & kinds} - kinds:
        kinds |= more
    return dict.fromkeys(kinds, 1) | WRAPPED


def find_uncured(name: str, source: str, kinds: dict[str, int]) -> Iterator[str]:
    """Where errors of these kinds are made without a cure, or with an empty one."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        kind = ast.unparse(call.func).rpartition(".")[2]
        if kind not in kinds or any(isinstance(one, ast.Starred) for one in call.args):
            continue
        given = [*call.args[kinds[kind] :], *(k.value for k in call.keywords if k.arg == "cure")]
        if not given or (isinstance(given[0], ast.Constant) and not given[0].value):
            yield f"{name}:{call.lineno}"


def read_sources() -> dict[str, str]:
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): Path(file).read_text(encoding="utf-8") for file in files}


def test_every_error_has_a_cure() -> None:
    sources = read_sources()
    kinds = kinds_of(sources)
    assert {"BundleError", "RuntimeFault", "OuroError", "errors_as"} <= set(kinds)
    found = [one for name, text in sources.items() for one in find_uncured(name, text, kinds)]
    assert found == []


def test_an_error_without_a_cure_is_found() -> None:
    own = "class OwnError(errors.DataError): ...\n"
    kinds = kinds_of({"own.py": own})
    for made in ('DataError("no")', 'errors.DataError(f"{x}")', 'OwnError("no", "")'):
        assert list(find_uncured("a.py", f"\nraise {made} from None", kinds)) == ["a.py:2"]
    assert list(find_uncured("a.py", 'with errors_as(DataError, "no"): ...', kinds)) == ["a.py:1"]
    for made in ('DataError("no", "write")', 'OwnError("no", cure=how)', "DataError(*why())"):
        assert list(find_uncured("a.py", f"raise {made}", kinds)) == []
    assert list(find_uncured("a.py", 'ValueError("no")', kinds)) == []
