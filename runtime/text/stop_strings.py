"""Stop strings: found in a stream of text, special tokens included, and never shown."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.text.stream import UNKNOWN


def write_specials(text: str, specials: Sequence[tuple[int, str]]) -> str:
    """A text with special tokens in it.

    Args:
        text: without them.
        specials: places in the text, in order, and what stands there.
    """
    parts, last = [], 0
    for place, special in specials:
        parts += [text[last:place], special]
        last = place
    return "".join([*parts, text[last:]])


class StopScanner:
    """Finds stop strings in a stream of text, holding back what may be the start of one.

    The text that is searched holds the special tokens, each as it is written, at their places; the
    text that is shown does not.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._text = ""  # settled, not shown yet
        self._specials: list[tuple[int, str]] = []  # place in `_text`, and what stands there
        self.found = False

    def push(self, piece: str, pending: str = "", special: str | None = None) -> str:
        """Adds text and returns what is safe to show; `found` turns true at a stop string.

        Args:
            piece: text that can't change any more.
            pending: text after it which may; a stop string is found there too, and ends it.
            special: a special token after both.
        """
        if not self._stops:
            return piece
        self._text += piece
        if special is None:
            pending = pending.partition(UNKNOWN)[0]  # maybe the beginning of a character
        else:
            self._specials.append((len(self._text) + len(pending), special))
        scanned = write_specials(self._text + pending, self._specials)
        starts = [start for stop in self._stops if (start := scanned.find(stop)) >= 0]
        if starts:
            self.found = True
            shown = (self._text + pending)[: self._place(min(starts))]
            self._text, self._specials = "", []
            return shown
        keep = self._begun(scanned)
        if pending:  # it may go away, and what is before it be the end again
            keep = min(keep, self._begun(write_specials(self._text, self._specials)))
        return self._release(keep)

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._text, self._specials = self._text, "", []
        return held

    def _place(self, index: int) -> int:
        """Where in the text an index of the scanned text lies."""
        before = 0
        for place, special in self._specials:
            if index <= place + before:
                break
            before += min(len(special), index - place - before)
        return index - before

    def _begun(self, scanned: str) -> int:
        """Where the longest beginning of a stop string stands at the end; else the end."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(scanned)), 0, -1):
            end = scanned[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return len(scanned) - length
        return len(scanned)

    def _release(self, keep: int) -> str:
        """Shows the settled text before an index of the scanned text."""
        before = 0  # characters of the special tokens so far
        kept = []
        for place, special in self._specials:
            start = place + before
            before += len(special)
            if start + len(special) > keep or place > len(self._text):
                kept.append((place, special))
        cut = min(self._place(keep), len(self._text))
        self._specials = [(place - cut, special) for place, special in kept]
        shown, self._text = self._text[:cut], self._text[cut:]
        return shown
