"""Runs of words which two texts share: how it is told that a text was not trained on.

A run is `SHARED_WORDS` words in a row, in lower case. Words are counted in two ways, since neither
sees all: what stands between spaces (so that code and formulas count), and letters and digits
without punctuation.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import numpy as np

SHARED_WORDS = 13
_FACTOR = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_WORDS_KEPT = 1 << 20
_WORD = re.compile(r"\w+")


class _Words(dict[str, int]):
    """The hash of each word met so far."""

    def __missing__(self, word: str) -> int:
        raw = word.encode("utf-8", "surrogatepass")
        number = (zlib.crc32(raw) << 32 | zlib.adler32(raw)) * _FACTOR & _MASK
        self[word] = number
        return number


class Runs:
    """Hashes of runs of words, the same in every process.

    It keeps the hashes of the words it has met, up to about a million.
    """

    def __init__(self) -> None:
        self._words = _Words()
        powers = [pow(_FACTOR, SHARED_WORDS - 1 - i, 1 << 64) for i in range(SHARED_WORDS)]
        self._powers = np.asarray(powers, dtype=np.uint64)

    def between_spaces(self, text: str) -> np.ndarray:
        """Hashes of the runs of what stands between spaces: uint64 [runs], in order."""
        return self._hash(text.lower().split())

    def of_letters(self, text: str) -> np.ndarray:
        """Hashes of the runs of letters and digits: uint64 [runs], in order."""
        return self._hash(_WORD.findall(text.lower()))

    def both(self, text: str) -> np.ndarray:
        """Hashes of the runs counted in either way: uint64 [runs]."""
        return np.concatenate([self.between_spaces(text), self.of_letters(text)])

    def _hash(self, words: list[str]) -> np.ndarray:
        count = len(words) - SHARED_WORDS + 1
        if count < 1:
            return np.empty(0, dtype=np.uint64)
        if len(self._words) > _WORDS_KEPT:
            self._words.clear()
        numbers = map(self._words.__getitem__, words)
        ids = np.fromiter(numbers, dtype=np.uint64, count=len(words))
        hashes = np.zeros(count, dtype=np.uint64)
        for i, power in enumerate(self._powers):
            hashes += ids[i : i + count] * power
        return hashes


def shares_any(hashes: np.ndarray, sorted_hashes: np.ndarray) -> bool:
    """Tells whether any hash stands in a sorted array of them."""
    return bool(found_in(hashes, sorted_hashes).any())


def found_in(hashes: np.ndarray, sorted_hashes: np.ndarray) -> np.ndarray:
    """Tells of each hash whether it stands in a sorted array: bool [hashes]."""
    if len(sorted_hashes) == 0:
        return np.zeros(len(hashes), dtype=bool)
    places = np.searchsorted(sorted_hashes, hashes)
    places[places == len(sorted_hashes)] = 0
    return np.asarray(sorted_hashes[places] == hashes)


class Overlap:
    """How much of some texts stands in others, which are shown to it one by one."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        """Watches for the runs of `texts`, given by name."""
        self._runs = Runs()
        self._own = {name: np.unique(self._runs.both(text)) for name, text in texts.items()}
        every = [np.empty(0, dtype=np.uint64), *self._own.values()]
        self._watched = np.unique(np.concatenate(every))
        self._seen = np.zeros(len(self._watched), dtype=bool)

    def look(self, text: str) -> None:
        """Marks what stands in a text too."""
        hashes = self._runs.both(text)
        shared = hashes[found_in(hashes, self._watched)]
        self._seen[np.searchsorted(self._watched, shared)] = True

    def shares(self) -> dict[str, float]:
        """Returns, by name, the share of a text's different runs that was seen: 0 to 1."""
        seen = self._watched[self._seen]
        return {
            name: float(found_in(own, seen).mean()) if len(own) else 0.0
            for name, own in self._own.items()
        }
