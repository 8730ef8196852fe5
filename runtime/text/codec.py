"""Text to tokens and back: the bundle's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import BundleError, EngineError, errors_as
from runtime.text.stop_strings import StopScanner as StopScanner
from runtime.text.stream import TextStream as TextStream
from runtime.text.stream import Unsettled, find_unsettled

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle

# Text to put before a continuation: tokenizers join few things to at least one of these.
ANCHORS = ("\n", "a", ".", "0")
UNUSED = ("post_processor", "truncation", "padding")  # parts of a tokenizer.json
CONTINUED = 32  # tokens before a continuation that are encoded along
_AGAIN = "export the bundle again, with the model's own tokenizer"


def load_tokenizer(file: Path) -> Any:
    """The tokenizers.Tokenizer of a tokenizer.json, made to give a text's own tokens, always alike.

    What goes before a text stands in the manifest; so UNUSED parts do nothing, and may be of any
    kind. Nor does dropout, which leaves out merges at random while a model is trained.

    Raises:
        BundleError: it is not a tokenizer.
    """
    from tokenizers import Tokenizer

    with errors_as(BundleError, f"{file} is not a tokenizer", _AGAIN):
        try:
            core: Any = Tokenizer.from_file(str(file))
        except Exception:
            if (text := _leave_out_unused(file)) is None:
                raise
            core = Tokenizer.from_str(text)
    core.post_processor = None
    core.no_truncation()
    core.no_padding()
    if getattr(core.model, "dropout", None) is not None:
        core.model.dropout = None
    return core


def _leave_out_unused(file: Path) -> str | None:
    """The text of a tokenizer.json without UNUSED parts; None where there are none to leave out."""
    try:
        data = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or all(data.get(part) is None for part in UNUSED):
        return None
    return json.dumps(data | dict.fromkeys(UNUSED))


class Codec:
    """The bundle's tokenizer. Safe to use from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        spec = bundle.manifest.tokenizer
        self._tokenizer = load_tokenizer(bundle.file(spec.file))
        self._first = list(spec.prefix_token_ids)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: special tokens written out in it become their ids.
            first: begins a sequence, so the tokens go before it that the tokenizer puts there.

        Raises:
            EngineError: it holds half a surrogate pair, as a command line that is not UTF-8 does.
            BundleError: the tokenizer can't encode it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EngineError(
                f"the text holds {text[error.start]!r} at character {error.start}, which is no "
                "Unicode character",
                "give text that is UTF-8",
            ) from error
        with errors_as(BundleError, "the tokenizer can't turn the text into tokens", _AGAIN):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._first, *ids] if first else list(ids)

    def encode_after(self, before: Sequence[int], text: str) -> list[int]:
        """Token ids of a text that continues a sequence.

        Where the sequence and the text, encoded as one, begin with the sequence's own tokens, the
        rest of them; else the tokens that the text has in the middle of another, so that no space
        or begin-of-word mark comes in between.

        Args:
            before: the sequence so far, not empty.
            text: what goes on.

        Raises:
            EngineError: as `encode`.
        """
        plain = self.encode(text, first=False)
        last = list(before[-CONTINUED:])
        said = self.decode(last, skip_special_tokens=False)
        known = self.encode(said, first=False)
        whole = self.encode(said + text, first=False)
        if known and known[-1] == last[-1] and whole[: len(known)] == known:
            return whole[len(known) :]
        found = []
        for anchor in ANCHORS:
            known = self.encode(anchor, first=False)
            whole = self.encode(anchor + text, first=False)
            if known and whole[: len(known)] == known:
                shown = self.decode(known, skip_special_tokens=False)
                if self.decode(whole, skip_special_tokens=False) == shown + text:
                    return whole[len(known) :]
                found.append(whole[len(known) :])
        return [*found, plain][0]

    @cached_property
    def unsettled(self) -> Unsettled:
        """What of a decoded text later tokens may still change."""
        decoder = self._tokenizer.decoder
        vocabulary = range(self._tokenizer.get_vocab_size(with_added_tokens=True))
        return find_unsettled(
            None if decoder is None else json.loads(decoder.__getstate__()),
            self._tokenizer.token_to_id,
            next((token for token in vocabulary if not self.skips(token)), None),
        )

    def special(self, token: int) -> str | None:
        """How a special token that `decode` leaves out is written; None for any other token."""
        written = self._tokenizer.id_to_token(token)
        return written if written in self._specials else None

    def skips(self, token: int) -> bool:
        """Whether `decode` leaves a token out: a special one, or one the tokenizer lacks."""
        written = self._tokenizer.id_to_token(token)
        return written is None or written in self._specials

    @cached_property
    def _specials(self) -> frozenset[str]:
        # tokenizers too decides by the written form: a `normalized` special token that the
        # vocabulary holds as its normalizer writes it (from 0.23 on), "▁<mask>", is none and is
        # shown.
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids.

        Raises:
            BundleError: the tokenizer can't decode them.
        """
        with errors_as(BundleError, "the tokenizer can't turn tokens into a text", _AGAIN):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
