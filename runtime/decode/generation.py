"""The loop that turns logits into tokens and text, for one sequence or a batch of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from runtime.decode.decoder import Decoder
from runtime.decode.request import Request
from runtime.decode.sampling import Sampler, TokenLogprob
from runtime.text.codec import Codec
from runtime.text.stop_strings import StopScanner, write_specials
from runtime.text.stream import TextStream


@dataclasses.dataclass(frozen=True)
class Generation:
    """One finished sequence.

    Attributes:
        text: the text of the new tokens, up to a stop string: what `Engine.detokenize` gives for
            prompt and new tokens, without what it gives for the prompt.
        tokens: the new tokens, an end-of-text token included.
        prompt_tokens: tokens fed before the first new one.
        finish_reason: "stop" (a stop string), "length", "eos" or "cancelled".
        logprobs: of every new token, where they were asked for; else empty.
        depth: recurrences that it was made with.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    finish_reason: str
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    depth: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """One token of a stream.

    Attributes:
        text: the text that is complete with this token; often a word, sometimes empty.
        token: its id; None in the piece that reports a cancellation.
        finish_reason: as in Generation on the last piece, None before it.
        logprob: of the token, where it was asked for.
        depth: recurrences that it was made with.
    """

    text: str
    token: int | None
    finish_reason: str | None
    logprob: TokenLogprob | None = None
    depth: int = 0

    def __str__(self) -> str:
        return self.text


class Row:
    """One sequence being generated.

    Attributes:
        depth: recurrences; known once its prompt was fed, where that chooses it.
    """

    def __init__(self, codec: Codec, request: Request, eos: Sequence[int]) -> None:
        """Takes the tokenizer, what is asked, and the tokens that end a text."""
        options = request.options
        self.depth = request.depth
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.text = ""
        self.finish_reason: str | None = None
        self._codec = codec
        self._full = ""  # the settled text of every token
        self._specials: list[tuple[int, str]] = []  # place in it, and what stands there
        self._prompt_tokens = len(request.prompt)
        self._sampler = Sampler(options, request.prompt)
        self._stops = options.stop
        # The text of new tokens needs those before them.
        self._stream = TextStream(codec, request.prompt)
        self._scanner = StopScanner(options.stop)
        self._eos, self._most = frozenset(eos), options.max_new_tokens

    @property
    def spoken(self) -> str:
        """The text of every token, special tokens and what follows a stop string included."""
        return write_specials(self._full + self._stream.pending, self._specials)

    def take(self, logits: NDArray[Any]) -> Piece:
        """Chooses the next token from float32 [V] and returns it with its text."""
        token = self._sampler.choose(logits)
        self.tokens.append(token)
        if (logprob := self._sampler.describe(logits, token)) is not None:
            self.logprobs.append(logprob)
        special = self._codec.special(token)
        if token in self._eos:
            return self._finish("eos", token, "", special)
        shown = self._scan(self._stream.push(token), special)
        if self._scanner.found:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._most:
            return self._finish("length", token, shown)
        self.text += shown
        return Piece(shown, token, self.finish_reason, logprob, self.depth)

    def cancel(self) -> Piece:
        """Ends the sequence before its next token."""
        return self._finish("cancelled", None, "")

    def result(self) -> Generation:
        """The sequence, once it has ended."""
        reason = self.finish_reason or "cancelled"
        return Generation(
            self.text, self.tokens, self._prompt_tokens, reason, self.logprobs, self.depth
        )

    def _scan(self, piece: str, special: str | None) -> str:
        """What may be shown after a piece of text and a special token, if there is one."""
        self._full += piece
        if special is None and not self._stops:
            return piece  # what is pending may take decoding everything: only where it is needed
        pending = self._stream.pending
        if special is not None:
            self._specials.append((len(self._full) + len(pending), special))
        return self._scanner.push(piece, pending, special)

    def _finish(
        self, reason: str, token: int | None, shown: str, special: str | None = None
    ) -> Piece:
        """Ends the sequence with the text still held back, which may complete a stop string."""
        shown += self._scan(self._stream.flush(), special)
        if self._scanner.found:
            reason = "stop"
        else:
            shown += self._scanner.flush()
        self.finish_reason = reason
        self.text += shown
        asked = token is not None and self.logprobs
        return Piece(shown, token, reason, self.logprobs[-1] if asked else None, self.depth)


def serve(
    decoder: Decoder,
    requests: Sequence[Request],
    rows: Sequence[Row],
    cancelled: Callable[[], bool],
) -> Iterator[list[Piece | None]]:
    """Feeds what requests ask for and generates until every row has ended.

    A row that has ended leaves the batch while others go on. The last token of a row is not fed:
    the cache ends with the token before it.

    Args:
        decoder: its cache holds what each request has before, or nothing: that is fed first then,
            apart from the rest.
        requests: one a row of the decoder.
        rows: made of them.
        cancelled: asked before every token.

    Yields:
        After every token, a piece a row; None for a row that had ended before.
    """
    if not decoder.cache.longest and all(request.before for request in requests):
        decoder.prefill([request.before for request in requests])
    threshold = max(request.halt_threshold for request in requests)
    logits = decoder.prefill([request.ids for request in requests], threshold)
    for row, depth in zip(rows, decoder.cache.row_depth.tolist(), strict=True):
        row.depth = depth
    fed = list(range(len(rows)))  # which of the rows each one of the batch is
    while True:
        if cancelled():
            yield [None if row.finish_reason else row.cancel() for row in rows]
            return
        pieces: list[Piece | None] = [None] * len(rows)
        for number, row_logits in zip(fed, logits, strict=True):
            pieces[number] = rows[number].take(row_logits)
        yield pieces
        if all(row.finish_reason for row in rows):
            return
        for place in reversed(range(len(fed))):
            if rows[fed[place]].finish_reason:
                decoder.evict(place)
                fed[place] = fed[-1]  # as the batch does
                fed.pop()
        logits = decoder.step([rows[number].tokens[-1] for number in fed])
