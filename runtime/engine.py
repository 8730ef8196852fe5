"""The engine: opens a bundle and generates with it.

with Engine.open("bundle") as engine:
    print(engine.generate("Hello", depth=8, max_new_tokens=64).text)
    for piece in engine.stream("Hello"):
        print(piece.text, end="")
"""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from runtime.backends.choose import check_choice, open_backend, require_backend
from runtime.backends.memory import Backend
from runtime.bundle.manifest import Manifest
from runtime.bundle.reader import Bundle, open_bundle
from runtime.decode import request
from runtime.decode.decoder import Decoder
from runtime.decode.generation import Generation, Piece, Row, serve
from runtime.decode.options import Changes, Options, check_options
from runtime.decode.request import Cancel, Depth, Request
from runtime.depths import describe_untrained, find_untrained
from runtime.errors import EngineError
from runtime.text.chat import ChatSource, ChatTemplate, check_messages
from runtime.text.codec import Codec

if TYPE_CHECKING:
    from runtime.session import Session

__all__ = ["Engine", "Generation", "Options", "Piece"]

Conversation = Sequence[Mapping[str, object]]
Ids = NDArray[np.integer[Any]]
Floats = NDArray[np.float32]


class Engine:
    """A loaded bundle. Safe to use from several threads; every request has a cache of its own.

    Attributes:
        bundle: what was loaded.
        backend: what it runs on: "cpu", "cuda" or "trt".
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        threads: int | None = None,
        accuracy_level: int | None = None,
    ) -> None:
        """Loads a verified bundle; most callers want `Engine.open`."""
        self.bundle = bundle
        self.codec = Codec(bundle)
        self._backend: Backend | None = open_backend(bundle, backend, threads, accuracy_level)
        self.backend = self._backend.name
        self._chat = ChatSource(bundle)
        self._lock = threading.Lock()
        self._warned: set[int] = set()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        backend: str = "auto",
        threads: int | None = None,
        accuracy_level: int | None = None,
    ) -> Engine:
        """Verifies a bundle and loads it.

        Args:
            path: the bundle's directory.
            backend: "auto", "cpu", "cuda" or "trt"; auto takes TensorRT where a plan of the
                bundle fits this machine, else CUDA, else the CPU.
            threads: threads inside an operator; None lets ONNX Runtime use every core.
            accuracy_level: of int8 and int4 weights on the CPU: 1 float32 arithmetic, 4 8-bit
                activations, faster and less exact; None takes the bundle's own.

        Raises:
            BundleError: the bundle is not whole.
            EngineError: an unknown backend or level, one that can't run here, or a precision it
                does not run.
        """
        check_choice(backend, threads, accuracy_level)  # of the arguments alone
        bundle = open_bundle(path, lambda it: require_backend(it, backend, threads, accuracy_level))
        return cls(bundle, backend, threads, accuracy_level)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the graph. The engine answers no request after this."""
        self._backend = None

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, a begin-of-text token included where the model wants one.

        Raises:
            EngineError: the text is no Unicode.
        """
        return self.codec.encode(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out.

        Raises:
            EngineError: an id outside the vocabulary.
        """
        return self.codec.decode(request.check_ids(ids, self.manifest))

    @overload  # a text is also a sequence of texts: the first that fits counts
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: str | Sequence[int] | Conversation,
        depth: Depth = None,
        options: Options | None = None,
        *,
        chat: bool = False,
        cancel: Cancel = None,
        halt_threshold: float | None = None,
        **changes: Unpack[Changes],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[Sequence[int]] | Sequence[Conversation],
        depth: Depth | Sequence[int] = None,
        options: Options | None = None,
        *,
        chat: bool = False,
        cancel: Cancel = None,
        halt_threshold: float | None = None,
        **changes: Unpack[Changes],
    ) -> list[Generation]: ...

    @overload
    def generate(
        self,
        prompt: Ids,
        depth: Depth | Sequence[int] = None,
        options: Options | None = None,
        *,
        chat: bool = False,
        cancel: Cancel = None,
        halt_threshold: float | None = None,
        **changes: Unpack[Changes],
    ) -> Generation | list[Generation]: ...

    def generate(
        self,
        prompt: object,
        depth: Depth | Sequence[int] = None,
        options: Options | None = None,
        *,
        chat: bool = False,
        cancel: Cancel = None,
        halt_threshold: float | None = None,
        **changes: Unpack[Changes],
    ) -> Generation | list[Generation]:
        """Generates from a prompt, or from a batch of prompts that advance together.

        Args:
            prompt: a text, token ids, or a list of either; with chat, also a list of messages. An
                array of two dimensions is a batch.
            depth: recurrences; one number, or one a prompt. None takes the bundle's default; with
                "auto" each prompt chooses its own, which a bundle with a halter can.
            options: how; None for the defaults.
            chat: render the prompt with the bundle's chat template.
            cancel: a threading.Event or function asked before every token; true ends generation.
            halt_threshold: of "auto", above 0 and at most 1: the lower, the fewer steps. None takes
                the one recorded in the bundle.
            changes: options by name, in place of those of `options`: `max_new_tokens`,
                `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`, `stop` and
                `logprobs`. One seed serves every prompt alike, so that a prompt in a batch gives
                what it gives alone; or give one a prompt.

        Returns:
            A Generation; for a batch, a list of them.

        Raises:
            EngineError: a request outside what the bundle allows.
        """
        rows, batch = self._encode(prompt, chat)
        depths, threshold = request.choose_depths(
            depth, halt_threshold, len(rows), self.manifest.depth
        )
        asked = request.make_options(options, changes, len(rows))
        requests = [
            dataclasses.replace(self.new_request(ids, row_depth, one), halt_threshold=threshold)
            for ids, row_depth, one in zip(rows, depths, asked, strict=True)
        ]
        decoder = self.new_decoder(depths, threshold)
        states = [self.new_row(one) for one in requests]
        for _ in serve(decoder, requests, states, request.make_cancelled(cancel)):
            pass
        if threshold:
            self.warn_untrained([row.depth for row in states])
        results = [row.result() for row in states]
        return results if batch else results[0]

    def stream(
        self,
        prompt: str | Sequence[int] | Ids | Conversation,
        depth: Depth = None,
        options: Options | None = None,
        *,
        chat: bool = False,
        cancel: Cancel = None,
        halt_threshold: float | None = None,
        **changes: Unpack[Changes],
    ) -> Iterator[Piece]:
        """Generates from one prompt and yields a Piece a token; arguments as in `generate`.

        The request is checked before this returns. Joined, the pieces' texts are the text that
        `generate` returns.

        Raises:
            EngineError: a request outside what the bundle allows.
        """
        session = self.session(depth, halt_threshold)
        return session.stream(prompt, options, chat=chat, cancel=cancel, **changes)

    @overload
    def logits(  # type: ignore[overload-overlap]
        self, ids: str | Sequence[int], depth: int | None = None
    ) -> Floats: ...

    @overload
    def logits(
        self,
        ids: Sequence[str] | Sequence[Sequence[int]],
        depth: int | Sequence[int] | None = None,
    ) -> list[Floats]: ...

    @overload
    def logits(
        self, ids: Ids, depth: int | Sequence[int] | None = None
    ) -> Floats | list[Floats]: ...

    def logits(
        self, ids: object, depth: int | Sequence[int] | None = None
    ) -> Floats | list[Floats]:
        """Logits of every position.

        Args:
            ids: token ids (or a text), or a batch of either.
            depth: as in `generate`, but for "auto".

        Returns:
            float32 [seq, V]; for a batch, a list of them.

        Raises:
            EngineError: a request outside what the bundle allows.
        """
        rows, batch = self._encode(ids, False)
        for row in rows:
            self.check_length(len(row), 0)
        depths = request.check_depths(depth, len(rows), self.manifest.depth)
        decoder = self.new_decoder(depths)
        size = self.manifest.model.vocab_size
        results: list[Floats] = [np.empty((len(row), size), np.float32) for row in rows]
        total = max(len(row) for row in rows)
        for start, logits in decoder.score(rows):
            for result, row_logits in zip(results, logits, strict=True):
                first = start - (total - len(result))  # rows are padded on the left
                kept = row_logits[max(0, -first) :]  # none of a chunk that is padding alone
                result[max(0, first) : max(0, first) + len(kept)] = kept
        return results if batch else results[0]

    def session(self, depth: Depth = None, halt_threshold: float | None = None) -> Session:
        """A conversation, which keeps its cache between turns. Used from one thread.

        Args:
            depth: recurrences of every turn; None takes the bundle's default, "auto" is chosen on
                the first prompt and stays fixed.
            halt_threshold: of "auto", as in `generate`.

        Raises:
            EngineError: a depth outside the bundle's range, or "auto" where it has no halter.
        """
        from runtime.session import Session

        spec = self.manifest.depth
        depths, threshold = request.choose_depths(depth, halt_threshold, 1, spec)
        return Session(self, depths[0], threshold)

    def chat_template(self) -> ChatTemplate:
        """The bundle's chat template.

        Raises:
            EngineError: the bundle has none.
        """
        with self._lock:
            return self._chat.make()

    def new_decoder(self, row_depth: Sequence[int], halt_threshold: float = 0.0) -> Decoder:
        """An empty cache for a batch: the lower-level way in.

        Args:
            row_depth: the depth of each row, checked.
            halt_threshold: above 0 the rows choose theirs, told to `warn_untrained` once fed.

        Raises:
            EngineError: the engine is closed, or its plan takes fewer rows.
        """
        backend = self._require_open()
        request.check_batch(len(row_depth), backend)
        if not halt_threshold:
            self.warn_untrained(row_depth, stacklevel=4)
        return Decoder(backend, self.manifest, row_depth)

    def warn_untrained(self, depths: Sequence[int], stacklevel: int = 3) -> None:
        """Warns of depths that were never trained, of each once; levels as `warnings.warn` has."""
        trained = self.manifest.depth.trained
        with self._lock:
            fresh = find_untrained(depths, trained, self._warned)
            self._warned.update(fresh)
        if fresh:
            warnings.warn(describe_untrained(fresh, trained), UserWarning, stacklevel=stacklevel)

    def check_length(self, prompt: int, new: int) -> None:
        """Refuses a sequence that does not fit, before anything runs.

        Args:
            prompt: tokens before generation starts.
            new: tokens to generate, 0 for none.

        Raises:
            EngineError: it passes the model's positions or what the plan holds, or the engine is
                closed.
        """
        request.check_length(prompt, new, self.manifest, self._require_open())

    @property
    def max_batch(self) -> int | None:
        """The most sequences at once; None where there is no limit."""
        return self._require_open().max_batch

    def new_request(
        self, ids: Sequence[int], depth: int, options: Options, before: Sequence[int] = ()
    ) -> Request:
        """A checked request.

        Args:
            ids: tokens to feed, checked.
            depth: recurrences, checked.
            options: as given.
            before: the conversation so far.

        Raises:
            EngineError: an option outside what is allowed, or a sequence that does not fit.
        """
        chosen = check_options(options, self.manifest.sampling)
        self.check_length(len(before) + len(ids), chosen.max_new_tokens)
        return Request(tuple(ids), depth, chosen, tuple(before))

    def new_row(self, one: Request) -> Row:
        """The state of a sequence that a request asks for."""
        return Row(self.codec, one, self.manifest.tokenizer.eos_token_ids)

    def _require_open(self) -> Backend:
        if self._backend is None:
            raise EngineError("the engine is closed", "open it again with Engine.open")
        return self._backend

    def _encode(self, prompt: object, chat: bool) -> tuple[list[list[int]], bool]:
        """Token ids of every prompt, and whether the prompt was a batch."""
        if request.is_conversation(prompt):
            if not chat:
                raise EngineError("a list of messages is a chat", "give chat=True with it")
            batch, prompts = False, [prompt]
        else:
            batch = request.is_batch(prompt)
            prompts = list(prompt) if batch else [prompt]  # type: ignore[call-overload]
        if chat:
            template = self.chat_template()
            texts = [template.render(check_messages(item)) for item in prompts]
            # A template writes the begin-of-text token itself.
            return [
                request.encode_prompt(text, self.codec, self.manifest, first=False)
                for text in texts
            ], batch
        return [request.encode_prompt(item, self.codec, self.manifest) for item in prompts], batch
