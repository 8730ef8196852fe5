"""A conversation that keeps its cache between turns."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from runtime.decode import request
from runtime.decode.generation import Generation, Piece, Row, decode
from runtime.errors import EngineError
from runtime.text.chat import check_messages

if TYPE_CHECKING:
    from runtime.decode.decoder import Decoder
    from runtime.engine import Engine


@dataclasses.dataclass(frozen=True)
class _Turn:
    """A prompt, read.

    Attributes:
        ids: token ids to feed.
        messages: the chat with this turn; empty where it is none.
        text: that chat, rendered.
        restart: the ids are the whole conversation, not what is new.
    """

    ids: list[int]
    messages: list[dict[str, Any]]
    text: str
    restart: bool


class Session:
    """One conversation at one depth; a turn feeds only what is new. Used from one thread.

    With `mean` pooling the mean stays frozen on the first turn's prompt.

    Attributes:
        depth: recurrences of every turn.
        tokens: all tokens so far, prompts and answers.
    """

    def __init__(self, engine: Engine, depth: int) -> None:
        self._engine = engine
        self.depth = depth
        self._busy = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forgets the conversation."""
        self.tokens: list[int] = []
        self._decoder: Decoder | None = None
        self._messages: list[dict[str, Any]] = []
        self._text = ""  # of the chat so far, as rendered and as answered, special tokens included

    def generate(
        self,
        prompt: Any,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        chat: bool = False,
        cancel: request.Cancel = None,
    ) -> Generation:
        """Adds a prompt to the conversation and answers it.

        Args:
            prompt: a text or token ids which continue the conversation as they are; with chat,
                the user's next message, or a list of messages to add.
            max_new_tokens: as in `Engine.generate`, like the rest.
            temperature: 0 is greedy.
            top_k: 0 keeps all.
            top_p: 1 keeps all.
            seed: makes sampling repeatable.
            stop: text, or several, before which generation ends. The tokens of the stop string
                stay part of the conversation, unless it is a chat.
            chat: render the conversation with the bundle's chat template.
            cancel: a threading.Event or function asked before every token.

        Returns:
            The answer; `prompt_tokens` counts the conversation before it.

        Raises:
            EngineError: a request outside what the bundle allows; the conversation is unchanged.
        """
        stream = self.stream(
            prompt, max_new_tokens, temperature, top_k, top_p, seed, stop, chat, cancel
        )
        pieces = list(stream)
        tokens = [piece.token for piece in pieces if piece.token is not None]
        reason = pieces[-1].finish_reason or "cancelled"
        text = "".join(piece.text for piece in pieces)
        return Generation(text, tokens, len(self.tokens) - len(tokens), reason)

    def stream(
        self,
        prompt: Any,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        chat: bool = False,
        cancel: request.Cancel = None,
    ) -> Iterator[Piece]:
        """Like `generate`, a Piece a token.

        The request is checked before this returns, and again when the first token is asked for:
        the conversation may have gone on in between.
        """
        engine = self._engine
        most = request.check_max_new_tokens(max_new_tokens)
        row = engine.new_rows(1, most, temperature, top_k, top_p, seed, stop)[0]
        cancelled = request.make_cancelled(cancel)
        self._read(prompt, most, chat)
        if self._decoder is None:
            self._decoder = engine.new_decoder([self.depth])
        return self._answer(prompt, most, chat, row, cancelled)

    def _answer(
        self, prompt: Any, most: int, chat: bool, row: Row, cancelled: Callable[[], bool]
    ) -> Iterator[Piece]:
        if not self._busy.acquire(blocking=False):
            raise EngineError("a session serves one request at a time", "open another session")
        try:
            turn = self._read(prompt, most, chat)
            if turn.restart:
                self.reset()
            if self._decoder is None:
                self._decoder = self._engine.new_decoder([self.depth])
            yield from self._speak(self._decoder, turn, row, cancelled)
        finally:
            self._busy.release()

    def _speak(
        self, decoder: Decoder, turn: _Turn, row: Row, cancelled: Callable[[], bool]
    ) -> Iterator[Piece]:
        try:
            # The last token of an answer has not been fed: it comes first now.
            pending = self.tokens[decoder.cache.length :]
            row.begin([*self.tokens, *turn.ids])
            self._messages, self._text = turn.messages, turn.text
            self.tokens.extend(turn.ids)
            logits = decoder.prefill([[*pending, *turn.ids]])
            for pieces in decode(decoder, logits, [row], cancelled):
                piece = pieces[0]
                if piece is None:
                    continue
                if piece.token is not None:
                    self.tokens.append(piece.token)
                yield piece
        except EngineError:
            self.reset()  # tokens and cache may differ now
            raise
        finally:
            if self._messages:
                self._messages.append({"role": "assistant", "content": row.text})
                self._text += row.spoken

    def _read(self, prompt: Any, most: int, chat: bool) -> _Turn:
        """What a prompt adds to the conversation as it is now.

        Raises:
            EngineError: it is no prompt, or does not fit with `most` new tokens.
        """
        engine = self._engine
        if chat:
            messages = [*self._messages, *check_messages(prompt)]
            text = engine.chat_template().render(messages)
            ids, restart = self._continue_chat(text)
        else:
            messages, text, restart = [], "", False
            ids = self._continue(prompt)
        before = 0 if restart else len(self.tokens)
        engine.check_length(before + len(ids), most)
        return _Turn(ids, messages, text, restart)

    def _continue(self, prompt: Any) -> list[int]:
        """Tokens to feed for a prompt that is no chat."""
        engine = self._engine
        if self.tokens and isinstance(prompt, str) and prompt:
            return self._checked(engine.codec.encode_after(self.tokens, prompt))
        return request.encode_prompt(prompt, engine.codec, engine.manifest, first=not self.tokens)

    def _continue_chat(self, text: str) -> tuple[list[int], bool]:
        """Tokens to feed so that the cache holds a rendered chat, and whether to start over.

        The cache is kept where the chat goes on exactly as it was answered, also where the model
        has put its answer into other tokens than the tokenizer would. A template that rewrites
        earlier turns, or an answer cut inside a text that the chat does not repeat, starts over.
        """
        codec, held = self._engine.codec, len(self.tokens)
        whole = codec.encode(text, first=False)
        if 0 < held < len(whole) and whole[:held] == self.tokens:
            return self._checked(whole[held:]), False
        said = self._text
        if said and len(text) > len(said) and text.startswith(said):
            return self._checked(codec.encode_after(self.tokens, text[len(said) :])), False
        return self._checked(whole), bool(self.tokens)

    def _checked(self, ids: list[int]) -> list[int]:
        engine = self._engine
        return request.encode_prompt(ids, engine.codec, engine.manifest)
