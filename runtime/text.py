"""Text to tokens and back: a tokenizer, incremental detokenisation, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.bundle import Bundle
from runtime.errors import BundleError, EngineError

UNKNOWN = "\ufffd"
WINDOW = 16
CONTEXT = 4


class Codec:
    """The bundle's tokenizer. Safe to use from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer

        spec = bundle.manifest.tokenizer
        file = bundle.file(spec.file)
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(f"{file} is not a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._first = [spec.bos_token_id] if spec.add_bos and spec.bos_token_id is not None else []

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: special tokens written out in it become their ids.
            first: begins a sequence, so the model's begin-of-text token goes before it, if the
                model has one.

        Raises:
            EngineError: it holds half a surrogate pair, as a command line that is not UTF-8 does.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EngineError(
                f"the text holds {text[error.start]!r} at character {error.start}, which is no "
                "Unicode character; give text that is UTF-8"
            ) from error
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._first, *ids] if first else list(ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


class TextStream:
    """Turns a growing list of tokens into pieces of text which never need to be taken back.

    A character whose bytes are spread over several tokens comes out whole, with its last token.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._window: list[int] = []
        self._emitted = 0

    def push(self, token: int) -> str:
        """Adds a token and returns the text that is complete with it, possibly empty."""
        self._window.append(token)
        text = self._codec.decode(self._window)
        held = min(len(text) - len(text.rstrip(UNKNOWN)), 3)  # may become a character yet
        piece = text[self._emitted : len(text) - held]
        self._emitted += len(piece)
        if held == 0 and len(self._window) >= WINDOW:
            # The tokens before are decoded along, since a token's text can depend on its neighbour.
            self._window = self._window[-CONTEXT:]
            self._emitted = len(self._codec.decode(self._window))
        return piece

    def flush(self) -> str:
        """The rest, where the tokens end in the middle of a character."""
        text = self._codec.decode(self._window)
        piece = text[self._emitted :]
        self._emitted = len(text)
        return piece


class StopScanner:
    """Finds stop strings in a stream of text, holding back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Adds text and returns what is safe to show; `found` turns true at a stop string."""
        if not self._stops:
            return piece
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.found = True
            self._held = ""
            return text[: min(starts)]
        longest = max(len(stop) for stop in self._stops) - 1
        keep = 0
        for length in range(min(longest, len(text)), 0, -1):
            if any(len(stop) > length and stop.startswith(text[-length:]) for stop in self._stops):
                keep = length
                break
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held
