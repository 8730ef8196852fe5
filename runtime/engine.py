"""The engine: opens a bundle and generates with it.

with Engine.open("bundle") as engine:
    print(engine.generate("Hello", depth=8, max_new_tokens=64).text)
    for piece in engine.stream("Hello"):
        print(piece.text, end="")
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from runtime.backends.choose import open_backend
from runtime.backends.memory import Backend
from runtime.bundle.manifest import Manifest
from runtime.bundle.reader import Bundle, open_bundle
from runtime.decode import request
from runtime.decode.decoder import Decoder
from runtime.decode.generation import Generation, Piece, Row, decode
from runtime.decode.sampling import make_generator, make_sampling
from runtime.errors import EngineError
from runtime.text.chat import ChatTemplate, check_messages, load_chat_template
from runtime.text.codec import Codec

if TYPE_CHECKING:
    from runtime.session import Session

__all__ = ["Engine", "Generation", "Piece"]


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
        self._chat_template: ChatTemplate | None = None
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
            accuracy_level: arithmetic of int8 and int4 weights on the CPU: 1 float32, 4 8-bit
                activations, faster and less exact; None takes what the bundle was exported with.

        Raises:
            BundleError: the bundle is not whole.
            EngineError: an unknown backend or level, one that can't run here, or a precision it
                does not run.
        """
        return cls(open_bundle(path), backend, threads, accuracy_level)

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

    def generate(
        self,
        prompt: Any,
        depth: int | Sequence[int] | None = None,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
        chat: bool = False,
        cancel: request.Cancel = None,
    ) -> Any:
        """Generates from a prompt, or from a batch of prompts that advance together.

        Args:
            prompt: a text, token ids, or a list of either; with chat, also a list of messages.
            depth: recurrences; one number, or one a prompt. None takes the bundle's default.
            max_new_tokens: tokens to generate at most.
            temperature: 0 is greedy. None takes the bundle's default, as for top_k and top_p.
            top_k: keep the k most likely tokens; 0 keeps all.
            top_p: keep the fewest tokens whose probabilities reach this; 1 keeps all.
            seed: makes sampling repeatable; one number serves every prompt alike, so that a
                prompt in a batch gives what it gives alone. None draws from the system.
            stop: text, or several, before which generation ends.
            chat: render the prompt with the bundle's chat template.
            cancel: a threading.Event or function asked before every token; true ends generation.

        Returns:
            A Generation; for a batch, a list of them.

        Raises:
            EngineError: a request outside what the bundle allows.
        """
        rows, batch = self._encode(prompt, chat)
        depths = request.check_depths(depth, len(rows), self.manifest.depth)
        for ids in rows:
            self.check_length(len(ids), request.check_max_new_tokens(max_new_tokens))
        states = self.new_rows(len(rows), max_new_tokens, temperature, top_k, top_p, seed, stop)
        cancelled = request.make_cancelled(cancel)
        decoder = self.new_decoder(depths)
        for row, ids in zip(states, rows, strict=True):
            row.begin(ids)
        for _ in decode(decoder, decoder.prefill(rows), states, cancelled):
            pass
        results = [row.result(len(ids)) for row, ids in zip(states, rows, strict=True)]
        return results if batch else results[0]

    def stream(
        self,
        prompt: Any,
        depth: int | None = None,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        chat: bool = False,
        cancel: request.Cancel = None,
    ) -> Iterator[Piece]:
        """Generates from one prompt and yields a Piece a token; arguments as in `generate`.

        The request is checked before this returns. Joined, the pieces' texts are the text that
        `generate` returns.

        Raises:
            EngineError: a request outside what the bundle allows.
        """
        session = self.session(depth)
        return session.stream(
            prompt, max_new_tokens, temperature, top_k, top_p, seed, stop, chat, cancel
        )

    def logits(self, ids: Any, depth: int | Sequence[int] | None = None) -> Any:
        """Logits of every position.

        Args:
            ids: token ids (or a text), or a batch of either.
            depth: as in `generate`.

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
        results: list[NDArray[Any]] = [np.empty((len(row), size), np.float32) for row in rows]
        total = max(len(row) for row in rows)
        for start, logits in decoder.score(rows):
            for result, row_logits in zip(results, logits, strict=True):
                first = start - (total - len(result))  # rows are padded on the left
                skipped = max(0, -first)
                result[max(0, first) : first + len(row_logits)] = row_logits[skipped:]
        return results if batch else results[0]

    def session(self, depth: int | None = None) -> Session:
        """A conversation, which keeps its cache between turns. Used from one thread.

        Args:
            depth: recurrences of every turn; None takes the bundle's default.

        Raises:
            EngineError: a depth outside the bundle's range.
        """
        from runtime.session import Session

        return Session(self, request.check_depths(depth, 1, self.manifest.depth)[0])

    def chat_template(self) -> ChatTemplate:
        """The bundle's chat template.

        Raises:
            EngineError: the bundle has none.
        """
        with self._lock:
            if self._chat_template is None:
                self._chat_template = load_chat_template(self.bundle)
            return self._chat_template

    def new_decoder(self, row_depth: Sequence[int]) -> Decoder:
        """An empty cache for a batch; the lower-level way in, which `generate` is built on.

        Args:
            row_depth: the depth of each row, checked.

        Raises:
            EngineError: the engine is closed, or its plan takes fewer rows.
        """
        backend = self._require_open()
        request.check_batch(len(row_depth), backend)
        self._warn_untrained(row_depth)
        return Decoder(backend, self.manifest, row_depth)

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

    def new_rows(
        self,
        count: int,
        max_new_tokens: int,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | Sequence[int] | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> list[Row]:
        """The checked state of `count` sequences to generate; arguments as in `generate`."""
        most = request.check_max_new_tokens(max_new_tokens)
        sampling = make_sampling(self.manifest.sampling, temperature, top_k, top_p)
        stops = request.check_stops(stop)
        eos = self.manifest.tokenizer.eos_token_ids
        return [
            Row(self.codec, sampling, make_generator(row_seed), stops, eos, most)
            for row_seed in request.check_seeds(seed, count)
        ]

    def _require_open(self) -> Backend:
        if self._backend is None:
            raise EngineError("the engine is closed", "open it again with Engine.open")
        return self._backend

    def _encode(self, prompt: Any, chat: bool) -> tuple[list[list[int]], bool]:
        """Token ids of every prompt, and whether the prompt was a batch."""
        if chat and request.is_conversation(prompt):
            batch, prompts = False, [prompt]
        else:
            batch = request.is_batch(prompt)
            prompts = list(prompt) if batch else [prompt]
        if chat:
            template = self.chat_template()
            texts = [template.render(check_messages(item)) for item in prompts]
            # A template writes the begin-of-text token itself.
            return [
                request.encode_prompt(text, self.codec, self.manifest, first=False)
                for text in texts
            ], batch
        return [request.encode_prompt(item, self.codec, self.manifest) for item in prompts], batch

    def _warn_untrained(self, depths: Sequence[int]) -> None:
        trained = self.manifest.depth.trained
        with self._lock:
            fresh = sorted({d for d in depths if d not in trained} - self._warned)
            if not fresh or (not trained and self._warned):
                return
            self._warned.update(fresh)
        if trained:
            shown = ", ".join(map(str, fresh))
            known = ", ".join(map(str, trained))
            message = f"depth {shown} was never trained (trained: {known}); expect poorer text"
        else:
            message = "this model was never trained; expect poor text, or run `ouro train` first"
        warnings.warn(message, UserWarning, stacklevel=4)
