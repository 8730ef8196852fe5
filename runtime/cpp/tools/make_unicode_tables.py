"""Writes src/text/tables/unicode_tables.cpp: characters as the `tokenizers` wheel sees them.

    python runtime/cpp/tools/make_unicode_tables.py [--check]

Its regular expressions, its `char::is_numeric` and its NFC each know a Unicode version of their
own, which no other library has. So every code point is given to the wheel, and what it does is
written down. `--check` compares with the file that is there and writes nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

FILE = Path(__file__).parents[1] / "src" / "text" / "tables" / "unicode_tables.cpp"
HEAD = "// Written by tools/make_unicode_tables.py from tokenizers {}: don't edit."
BLOCK = 128
CHUNK = 2048
HANGUL = range(0xAC00, 0xD7A4)
VOWELS_AND_TAILS = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}
# The bits of a class; text/unicode.hpp has the same.
LETTER, NUMBER, SPACE, NUMERIC, WORD, WHITE, UNSTABLE = (1 << bit for bit in range(7))
CHARACTERS = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def main() -> int:
    """Writes or compares; returns the exit status."""
    text = render()
    if sys.argv[1:] == ["--check"]:
        if FILE.read_text(encoding="ascii") == text:
            return 0
        print(f"{FILE} is not what this script writes; run it")
        return 1
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text, encoding="ascii")
    return 0


def render() -> str:
    """The C++ file."""
    decomposed = find_decompositions()
    pairs = find_pairs(decomposed)
    ranks = rank_marks()
    classes = find_classes()
    seconds = {second for _, second in pairs} | {chr(code) for code in VOWELS_AND_TAILS}
    nfc = normalizers.NFC()
    for character in CHARACTERS:
        if character in ranks or character in seconds or nfc.normalize_str(character) != character:
            classes[ord(character)] |= UNSTABLE
    blocks: dict[bytes, int] = {}
    index = [
        blocks.setdefault(bytes(classes[start : start + BLOCK]), len(blocks))
        for start in range(0, len(classes), BLOCK)
    ]
    pool: list[int] = []
    entries = []
    for source, parts in sorted(decomposed.items()):
        entries.append((ord(source), len(pool), len(parts)))
        pool += map(ord, parts)
    marks = sorted((ord(mark), rank) for mark, rank in ranks.items())
    composed = sorted((ord(a), ord(b), ord(c)) for (a, b), c in pairs.items())
    assert max(len(blocks), len(pool)) < 2**16
    return "\n".join(
        [
            HEAD.format(tokenizers.__version__),
            '#include "text/tables/unicode_tables.hpp"',
            "",
            "namespace ouro::core::tables {",
            "",
            _array("std::uint16_t", "kBlockOf", map(str, index)),
            _array("std::uint8_t", "kClasses", (str(one) for block in blocks for one in block)),
            _array("Decomposition", "kDecompositions", map(_braces, entries)),
            _array("char32_t", "kDecomposed", map(str, pool)),
            _array("Mark", "kMarks", map(_braces, marks)),
            _array("Composition", "kCompositions", map(_braces, composed)),
            f"const std::size_t kDecompositionCount = {len(entries)};",
            f"const std::size_t kMarkCount = {len(marks)};",
            f"const std::size_t kCompositionCount = {len(composed)};",
            "",
            "}  // namespace ouro::core::tables",
            "",
        ]
    )


def find_classes() -> bytearray:
    """The classes of every code point."""
    classes = bytearray(0x110000)
    for bit, found in (
        (LETTER, match(r"\p{L}")),
        (NUMBER, match(r"\p{N}")),
        (SPACE, match(r"\s")),
        (NUMERIC, find_numeric()),
        (WORD, set(CHARACTERS) - find_single(AddedToken("@@", single_word=True), 2)),
        (WHITE, find_single(AddedToken("@@", rstrip=True), 3)),
    ):
        for character in found:
            classes[ord(character)] |= bit
    both = {character for character in CHARACTERS if classes[ord(character)] & 7 in (3, 5, 6, 7)}
    assert not both, "a letter, number or space of two kinds"
    others = {character for character in CHARACTERS if not classes[ord(character)] & 7}
    assert match(r"[^\s\p{L}\p{N}]") == others
    assert match(r"\S") == set(CHARACTERS) - match(r"\s")
    assert match(r"[\r\n]") == {"\r", "\n"} <= match(r"\s")
    return classes


def match(pattern: str) -> set[str]:
    """The characters that a regular expression for one character matches."""
    split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    found = {piece for text in _chunks(str) for piece, _ in split.pre_tokenize_str(text)}
    assert all(len(piece) == 1 for piece in found)
    return found


def find_numeric() -> set[str]:
    """The characters that `Digits` takes out one by one."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    found = set()
    for text in _chunks(lambda character: f"{character}a"):
        found |= {piece for piece, _ in digits.pre_tokenize_str(f"a{text}") if len(piece) == 1}
    return found - {"a"}


def find_single(token: AddedToken, size: int) -> set[str]:
    """The characters before which an added token "@@" is found, with that many characters."""
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.add_tokens([token])
    found = set()
    for text in _chunks(lambda character: f"\x00@@{character}"):
        for start, end in tokenizer.encode(text).offsets:
            if end - start == size:
                found.add(text[start + 2])
    return found


def find_decompositions() -> dict[str, str]:
    """Characters and their full canonical decompositions, without Hangul syllables."""
    nfd = normalizers.NFD()
    found = {one: nfd.normalize_str(one) for one in CHARACTERS if ord(one) not in HANGUL}
    return {one: parts for one, parts in found.items() if parts != one}


def find_pairs(decomposed: dict[str, str]) -> dict[tuple[str, str], str]:
    """Pairs of characters that NFC writes as one."""
    nfc = normalizers.NFC()
    pairs = {}
    for character, parts in decomposed.items():
        if nfc.normalize_str(character) == character:
            first = nfc.normalize_str(parts[:-1])
            assert len(first) == 1
            assert nfc.normalize_str(first + parts[-1]) == character
            pairs[first, parts[-1]] = character
    return pairs


def rank_marks() -> dict[str, int]:
    """Combining marks and their class's rank, from 1: how NFD sorts them."""
    swap = normalizers.NFD().normalize_str
    low, high = "\u0334", "\u0345"  # of the classes 1 and 240
    assert swap(high + low) == low + high
    marks = [
        one
        for one in CHARACTERS
        if swap(one) == one and (swap(one + low) == low + one or swap(high + one) == one + high)
    ]

    def compare(one: str, other: str) -> int:
        if one == other:
            return 0
        return (swap(one + other) == other + one) - (swap(other + one) == one + other)

    marks.sort(key=functools.cmp_to_key(compare))
    ranks: dict[str, int] = {}
    rank = 0
    for place, mark in enumerate(marks):
        rank += place == 0 or compare(mark, marks[place - 1]) != 0
        ranks[mark] = rank
    return ranks


def _chunks(write: Callable[[str], str]) -> Iterator[str]:
    for start in range(0, len(CHARACTERS), CHUNK):
        yield "".join(map(write, CHARACTERS[start : start + CHUNK]))


def _braces(numbers: tuple[int, ...]) -> str:
    return "{" + ", ".join(map(str, numbers)) + "}"


def _array(kind: str, name: str, values: Iterator[str]) -> str:
    lines, line = [f"const {kind} {name}[] = {{"], "   "
    for value in values:
        if len(line) + len(value) + 2 > 100:
            lines.append(line)
            line = "   "
        line += f" {value},"
    return "\n".join([*lines, line, "};", ""])


if __name__ == "__main__":
    raise SystemExit(main())
