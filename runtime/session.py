"""A conversation that keeps its cache between turns."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from runtime.decode import request
from runtime.decode.generation import Generation, Piece, Row, serve
from runtime.decode.options import Changes, Options
from runtime.errors import EngineError
from runtime.text.chat import check_messages

if TYPE_CHECKING:
    from runtime.decode.decoder import Decoder
    from runtime.engine import Engine

Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Sequence[Mapping[str, object]]


@dataclasses.dataclass(frozen=True)
class _Turn:
    """A prompt, read.

    Attributes:
        request: what is to be fed and how it is answered.
        messages: the chat with this turn; empty where it is none.
        text: that chat, rendered.
        restart: the ids are the whole conversation, not what is new.
        version: of the conversation when it was read.
    """

    request: request.Request
    messages: list[dict[str, Any]]
    text: str
    restart: bool
    version: int


class Session:
    """One conversation at one depth; a turn feeds only what is new. Used from one thread.

    Its turns are plain text and ids, or all of a chat. With `mean` pooling the mean stays frozen on
    the first turn's prompt. A stream that is dropped, interrupted or fails keeps what it yielded;
    where that is nothing, and in `generate`, the conversation stays as it was before the turn.
    After an interrupt or a failure the next turn feeds all of the conversation again.

    Attributes:
        depth: recurrences of every turn. One to be chosen is the most that there may be, until the
            first prompt was fed; from then on it is the one chosen.
        tokens: all tokens so far, prompts and answers.
    """

    def __init__(self, engine: Engine, depth: int, halt_threshold: float = 0.0) -> None:
        self._engine = engine
        self._most, self._halt_threshold = depth, halt_threshold
        self._busy = threading.Lock()
        self._version = 0  # changes with every turn and reset
        self._start_over()

    def reset(self) -> None:
        """Forgets the conversation, and a depth that it has chosen.

        Raises:
            EngineError: it is answering.
        """
        if not self._busy.acquire(blocking=False):
            raise EngineError("a session can't be reset while it answers", "end its stream first")
        try:
            self._start_over()
        finally:
            self._busy.release()

    def _start_over(self) -> None:
        self.depth = self._most
        self._chosen = not self._halt_threshold
        self._forget()

    @property
    def _threshold(self) -> float:
        """Of the depth still to be chosen; 0 where it is fixed."""
        return 0.0 if self._chosen else self._halt_threshold

    def _forget(self) -> None:
        """Forgets the conversation; its depth stays."""
        self._version += 1
        self.tokens: list[int] = []
        self._decoder: Decoder | None = None
        self._messages: list[dict[str, Any]] = []
        self._text = ""  # of the chat so far, as rendered and as answered, special tokens included
        self._first = 0  # tokens of the first turn's prompt

    def generate(
        self,
        prompt: Prompt,
        options: Options | None = None,
        *,
        chat: bool = False,
        cancel: request.Cancel = None,
        **changes: Unpack[Changes],
    ) -> Generation:
        """Adds a prompt to the conversation and answers it.

        Args:
            prompt: a text or token ids which continue the conversation as they are; with chat,
                the user's next message, or a list of messages to add.
            options: as in `Engine.generate`. The tokens of a stop string stay part of the
                conversation, unless it is a chat.
            chat: render the conversation with the bundle's chat template.
            cancel: a threading.Event or function asked before every token.
            changes: options by name, in place of those of `options`.

        Returns:
            The answer; `prompt_tokens` counts the conversation before it.

        Raises:
            EngineError: a request outside what the bundle allows, or a chat's turn where the
                session holds plain text, or the reverse. Whatever is raised, the conversation is
                unchanged.
        """
        pieces = list(self._start(prompt, options, chat, cancel, changes, whole=True))
        tokens = [piece.token for piece in pieces if piece.token is not None]
        reason = pieces[-1].finish_reason or "cancelled"
        text = "".join(piece.text for piece in pieces)
        logprobs = [piece.logprob for piece in pieces if piece.logprob is not None]
        before = len(self.tokens) - len(tokens)
        return Generation(text, tokens, before, reason, logprobs, self.depth)

    def stream(
        self,
        prompt: Prompt,
        options: Options | None = None,
        *,
        chat: bool = False,
        cancel: request.Cancel = None,
        **changes: Unpack[Changes],
    ) -> Iterator[Piece]:
        """Like `generate`, a Piece a token.

        The request is checked before this returns. Where the conversation has gone on before the
        first token is asked for, the prompt is read again.

        Raises:
            EngineError: as `generate`; what was yielded before stays part of the conversation.
        """
        return self._start(prompt, options, chat, cancel, changes, whole=False)

    def _start(
        self,
        prompt: Prompt,
        options: Options | None,
        chat: bool,
        cancel: request.Cancel,
        changes: Changes,
        whole: bool,
    ) -> Iterator[Piece]:
        """As `stream`; with `whole` an answer that does not come to its end leaves no trace."""
        (asked,) = request.make_options(options, changes, 1)
        cancelled = request.make_cancelled(cancel)
        turn = self._read(prompt, asked, chat)
        if self._decoder is None:
            self._decoder = self._engine.new_decoder([self.depth], self._threshold)
        return self._answer(turn, lambda: self._read(prompt, asked, chat), cancelled, whole)

    def _answer(
        self, turn: _Turn, read: Callable[[], _Turn], cancelled: Callable[[], bool], whole: bool
    ) -> Iterator[Piece]:
        if not self._busy.acquire(blocking=False):
            raise EngineError("a session serves one request at a time", "open another session")
        try:
            yield from self._speak(
                turn if turn.version == self._version else read(), cancelled, whole
            )
        finally:
            self._busy.release()

    def _speak(self, turn: _Turn, cancelled: Callable[[], bool], whole: bool) -> Iterator[Piece]:
        kept = self.tokens, self._messages, self._text, self._first, self.depth, self._chosen
        asked, texts = turn.request, list[str]()
        self._version += 1
        try:
            if turn.restart:
                self._forget()
            if self._decoder is None:
                self._decoder = self._engine.new_decoder([self.depth], self._threshold)
            # The last token of an answer has not been fed: it comes first now. An empty cache gets
            # the first prompt apart, as it was: a mean is frozen on it.
            held = self._decoder.cache.lengths[0] or self._first
            fed = dataclasses.replace(
                asked,
                ids=asked.prompt[held:],
                before=asked.prompt[:held],
                halt_threshold=self._threshold,
            )
            row = self._engine.new_row(fed)
            self.tokens = list(asked.prompt)
            self._messages, self._text = turn.messages, turn.text
            self._first = self._first or len(asked.prompt)
            for pieces in serve(self._decoder, [fed], [row], cancelled):
                if not self._chosen:
                    self._engine.warn_untrained([row.depth], stacklevel=5 if whole else 4)
                    self.depth, self._chosen = row.depth, True
                piece = pieces[0]
                if piece is None:
                    continue
                new = [] if piece.token is None else [piece.token]
                # No call from here to the yield: CPython breaks in for Ctrl-C at calls, never at
                # an addition, so that what is kept is what was yielded.
                self.tokens += new
                texts += [piece.text]
                yield piece
        except BaseException as error:
            if whole or not isinstance(error, GeneratorExit):  # else dropped between two tokens
                self._decoder = None  # who knows what it holds
            if texts and not whole:
                self._hear(row, "".join(texts))
            else:
                self.tokens, self._messages, self._text, self._first = kept[:4]
                self.depth, self._chosen = kept[4:]
            raise
        else:
            self._hear(row, "".join(texts))
        finally:
            self._version += 1

    def _hear(self, row: Row, text: str) -> None:
        """Adds what was yielded of an answer to the chat, where this is one."""
        if not self._messages:
            return
        self._messages.append({"role": "assistant", "content": text})
        # A row interrupted inside a token is ahead of what was yielded: the next turn renders anew.
        in_step = row.result().prompt_tokens + len(row.tokens) == len(self.tokens)
        self._text = self._text + row.spoken if in_step else ""

    def _read(self, prompt: Prompt, options: Options, chat: bool) -> _Turn:
        """What a prompt adds to the conversation as it is now.

        Raises:
            EngineError: it is no prompt, of the other kind than those before it, or does not fit
                with the new tokens.
        """
        engine = self._engine
        if self.tokens and bool(chat) != bool(self._messages):
            held, given = ("plain text", "a chat") if chat else ("a chat", "plain text")
            raise EngineError(
                f"this session holds {held}, and the turn is {given}",
                f"make the turn {held} too, or reset the session first",
            )
        if chat:
            messages = [*self._messages, *check_messages(prompt)]
            text = engine.chat_template().render(messages)
            ids, restart = self._continue_chat(text)
        else:
            messages, text, restart = [], "", False
            ids = self._continue(prompt)
        before = [] if restart else self.tokens
        asked = engine.new_request(ids, self.depth, options, before)
        return _Turn(asked, messages, text, restart, self._version)

    def _continue(self, prompt: object) -> list[int]:
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
