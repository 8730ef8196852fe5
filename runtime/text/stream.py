"""Text out of a growing list of tokens, in pieces that never need to be taken back.

What a list of tokens adds to the text before it depends on that text: a SentencePiece decoder drops
the space of a token that begins a text, a byte-fallback decoder decides about a run of byte tokens
only where the run ends. So the text of new tokens is defined by decoding them together with what
was before: it is decode(before + new) without what decode(before) and decode(before + new) begin
with alike. A character that the new tokens complete, or turn into U+FFFD, belongs to them whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

UNKNOWN = "\ufffd"
WINDOW = 16
CONTEXT = 4


class Decoding(Protocol):
    """What turns tokens into text; a Codec's `unsettled` and `skips` are used where it has them."""

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        ...


@dataclasses.dataclass(frozen=True)
class Unsettled:
    """What later tokens may still change at the end of a decoded text.

    Attributes:
        probes: a token each of the kinds that change what stands before them: what a text and the
            same text with the probe begin with alike is settled.
        pattern: a text that the decoder replaces in the joined text, so over several tokens too.
        everything: the decoder may change all of it, as a regular expression over the whole does.
    """

    probes: tuple[int, ...] = ()
    pattern: str = ""
    everything: bool = False


def find_unsettled(
    decoder: Mapping[str, Any] | None,
    find_token: Callable[[str], int | None],
    plain_token: int | None,
) -> Unsettled:
    """Reads from a tokenizer's decoder what it may change at the end of a text.

    Args:
        decoder: as in tokenizer.json; None where tokens are joined by spaces.
        find_token: gives the id of a token of the vocabulary, or None.
        plain_token: any token that is not special; None where there is none.

    Source: tokenizers 0.23, src/decoders.
    """
    probes: list[int] = []
    patterns: list[str] = []
    everything = joined = False
    for step in _steps(decoder):
        match step["type"]:
            case "ByteLevel" | "Fuse":
                joined = True
            case "ByteFallback" if not joined:
                # Any byte that is not ASCII, after whole characters, makes their run invalid.
                found = (find_token(f"<0x{byte:02X}>") for byte in range(255, 127, -1))
                probes += [token for token in found if token is not None][:1]
            case "BPEDecoder" if not joined:  # it writes the last token in another way
                probes += [] if plain_token is None else [plain_token]
            case "BPEDecoder":
                patterns.append(step["suffix"])
            case "Replace" if joined:
                literal = step["pattern"].get("String")
                everything |= literal is None
                patterns.append(literal or "")
            case "WordPiece" | "CTC" if joined:
                everything = True
            case "Strip" | "Metaspace" | "WordPiece" | "CTC" | "Replace" | "ByteFallback":
                pass  # these look at one token and, at most, at the one before it
            case _:
                everything = True
    pattern = patterns[0] if patterns else ""
    # A match of "aa" may begin at either letter of a text that is cut: no window is right.
    bordered = any(pattern[:size] == pattern[-size:] for size in range(1, len(pattern)))
    return Unsettled(tuple(probes), pattern, everything or len(patterns) > 1 or bordered)


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _count_alike(left: str, right: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = zip(left, right, strict=False)
    differ = (index for index, (one, other) in enumerate(pairs) if one != other)
    return next(differ, min(len(left), len(right)))


class TextStream:
    """Turns a growing list of tokens into pieces of text which never need to be taken back.

    Joined, the pieces and the flush are what decoding all tokens at once gives, in their context.
    A character whose bytes are spread over several tokens comes out whole; with a tokenizer that
    falls back to bytes, once its run of byte tokens has ended, which may be the next token.
    """

    def __init__(self, codec: Decoding, context: Sequence[int] = ()) -> None:
        """Starts after a prompt.

        Args:
            codec: turns tokens into text.
            context: the tokens before the first one pushed.
        """
        self._codec = codec
        self._skips: Callable[[int], bool] | None = getattr(codec, "skips", None)
        # A decoder of which only `decode` is known shows by its tokens what it changes.
        known: Unsettled | None = getattr(codec, "unsettled", None)
        self._learning = known is None
        self._rules = known or Unsettled()
        self._window: list[int] = []
        self._text = ""  # of the window
        self._shown = 0  # how much of it is out
        self._before: str | None = ""  # the context's text, until a first piece is out
        self._start_after(context)

    def push(self, token: int) -> str:
        """Adds a token and returns the text that is settled with it, possibly empty."""
        if self._skips is not None and self._skips(token):
            return ""
        if self._learning and not self._rules.probes and UNKNOWN in self._codec.decode([token]):
            self._rules = Unsettled((token,))
        self._window.append(token)
        if self._rules.everything:
            return ""
        last, self._text = self._text, self._codec.decode(self._window)
        settled, start = self._settled(self._window, self._text), self._start()
        piece = self._text[start:settled]
        if piece:
            self._shown, self._before = settled, None
        if len(self._window) >= WINDOW and self._may_cut(last, settled):
            self._cut(len(self._text) - settled)
        return piece

    @property
    def pending(self) -> str:
        """Text that later tokens may change yet; the rest, where none come."""
        if self._rules.everything:
            self._text = self._codec.decode(self._window)
        return self._text[self._start() :]

    def flush(self) -> str:
        """The rest, once no more tokens come; it may end in the middle of a character."""
        piece = self.pending
        self._shown, self._before = len(self._text), None
        return piece

    def _start_after(self, context: Sequence[int]) -> None:
        tokens = [int(token) for token in context]
        if self._skips is not None:
            tokens = [token for token in tokens if not self._skips(token)]
        size = 2 * CONTEXT
        while True:
            self._window = tokens[-size:]
            self._text = self._before = self._codec.decode(self._window)
            if size >= len(tokens) or self._settled(self._window, self._text) > 0:
                return
            size *= 2  # all of it may change yet: a run of bytes, or tokens without a text

    def _start(self) -> int:
        """Where in the window's text begins what is not out yet."""
        if self._before is None:
            return self._shown
        return _count_alike(self._before, self._text)

    def _settled(self, tokens: list[int], text: str) -> int:
        """How many characters of the tokens' text no later token can change."""
        rules = self._rules
        if rules.everything:
            return 0
        size = len(text)
        for probe in rules.probes:
            after = self._codec.decode([*tokens, probe])
            if not after.startswith(text):
                size = min(size, _count_alike(text, after))
        if rules.probes:
            size = len(text[:size].rstrip(UNKNOWN))
        elif text.endswith(UNKNOWN):
            size -= 1  # bytes that are cut off show as one of these, however many they are
        for length in range(min(len(rules.pattern) - 1, size), 0, -1):
            if text.endswith(rules.pattern[:length], 0, size):
                return size - length
        return size

    def _may_cut(self, last: str, settled: int) -> bool:
        """Whether what comes can be decoded without the beginning of the window."""
        if settled == len(self._text):
            return True
        # In a long run of invalid bytes nothing is ever settled to the end. A token whose text
        # stands beside the text before it has joined with none of its bytes.
        plain = not self._learning and self._rules == Unsettled()
        return plain and self._text == last + self._codec.decode(self._window[-1:])

    def _cut(self, held: int) -> None:
        """Forgets the window's beginning; the tokens kept must have a text of their own.

        One token before is enough for every decoder, but it must not count as a text's first.
        """
        size = CONTEXT + 1
        while size < len(self._window):
            tokens = self._window[-size:]
            text = self._codec.decode(tokens)
            if len(text) > held:
                self._window, self._text = tokens, text
                self._shown, self._before = len(text) - held, None
                return
            size *= 2
