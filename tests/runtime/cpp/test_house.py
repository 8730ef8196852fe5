"""How large the C++ library may be, and its options. Generated files say so in their first line."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.cpp import HOME
from tests.support.paths import ROOT

FILE_LINES = 400
SUFFIXES = {".c", ".h", ".cpp", ".hpp"}


def hand_written(*folders: Path) -> dict[str, int]:
    """Lines of every file that no script of ours wrote."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES:
                lines = path.read_text(encoding="utf-8").splitlines()
                if not re.search(r"(?i)generated|written by", lines[0]):
                    found[str(path.relative_to(ROOT))] = len(lines)
    return found


def test_no_file_is_too_large() -> None:
    files = hand_written(
        *(HOME / name for name in ("include", "src", "cli", "tests")), ROOT / "examples/cpp"
    )
    assert len(files) > 20, "the library has moved"
    assert {name: lines for name, lines in files.items() if lines > FILE_LINES} == {}


def test_options_of_the_build_are_documented_with_their_defaults() -> None:
    listing = (ROOT / "runtime/cpp/CMakeLists.txt").read_text(encoding="utf-8")
    page = (ROOT / "docs/cpp.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)`[.: ]", page, re.MULTILINE))
    options = dict(re.findall(r'^option\((\w+) "[^"]*" (\S+)\)', listing, re.MULTILINE))
    assert {"BUILD_SHARED_LIBS", "OURO_BUILD_TESTS"} < rows.keys() & options.keys()
    by_itself = {"${PROJECT_IS_TOP_LEVEL}": "ON"}
    for name, shown in rows.items():
        default = options[name]
        assert shown == by_itself.get(default, default), name
        if default in by_itself:
            assert f"| `{name}` | `ON` built by itself, `OFF` as a part of another" in page
