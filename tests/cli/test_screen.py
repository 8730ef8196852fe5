"""What commands print fits the terminal, and is whole and unpadded in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cli.screen import as_written, new_table, print_facts, print_prose, print_table

FACTS = {"depth": "1..16", "tools": "torch 2.13.0, transformers 5.23.0, onnx 1.23.2, numpy 2.4"}


def shown(width: int, terminal: bool) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_facts(FACTS, console)
    print_prose("one [two] " + "three " * 12, console)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 40, 25])
def test_lines_fit_a_terminal_and_break_between_words(width: int) -> None:
    lines = shown(width, terminal=True)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    assert (
        words
        == ["depth", "1..16", "tools", *FACTS["tools"].split(), "one", "[two]"] + ["three"] * 12
    )


def test_lines_are_whole_in_a_pipe() -> None:
    depth, tools, prose = shown(40, terminal=False)
    assert depth == "depth  1..16"
    assert tools == f"tools  {FACTS['tools']}"
    assert prose.rstrip() == "one [two] " + " ".join(["three"] * 12)


def test_what_stands_in_a_file_steers_no_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, color_system=None)
    print_facts({"na\x1bme": "[/b] \x1b[31mred\x9b"}, console)
    table = new_table("file")
    table.add_row(as_written("[/b] \x07bell"))
    print_table(table, console)
    shown = file.getvalue()
    assert "na\\x1bme  [/b] \\x1b[31mred\\x9b" in shown
    assert "[/b] \\x07bell" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}
