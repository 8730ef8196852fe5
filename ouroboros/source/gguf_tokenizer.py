"""The tokenizer that the metadata of a .gguf file describe, every key honoured or refused by name.

transformers' reader knows a few of llama.cpp's pre-tokenizers and takes GPT-2's for all others.
"""

from __future__ import annotations

import math
from typing import Any

from ouroboros.errors import ConfigError, SourceError
from ouroboros.model.base_config import is_whole
from ouroboros.source.gguf_header import GgufHeader
from ouroboros.source.gguf_pre import RULES, Rule
from ouroboros.source.templates import is_template

_PREFIX = "tokenizer.ggml."
_LONGEST = 4096  # characters of a token; each way to cut one is looked at
_CURE = "convert the model's Hugging Face directory or hub id"
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6  # llama.cpp's kinds of tokens
_SPACE = "\u2581"
_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",
    "mask_token": "mask_token_id",
    "cls_token": "cls_token_id",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
# What sentencepiece models have where a file does not say.
_SPM_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
# Keys that change no token: those of infilling name tokens that the vocabulary has anyway.
_READ = {
    *_NAMES.values(),
    *_ENDS,
    *(f"fim_{name}_token_id" for name in ("pre", "suf", "mid", "pad", "rep", "sep")),
    *(f"{name}_token_id" for name in ("prefix", "suffix", "middle", "separator")),
    "model", "pre", "tokens", "token_type", "scores", "merges",
    "add_bos_token", "add_eos_token", "add_space_prefix", "token_type_count",
}  # fmt: skip


def has_tokenizer(header: GgufHeader) -> bool:
    """Says whether the file carries a vocabulary at all."""
    return header.metadata.get(f"{_PREFIX}model", "none") not in ("none", "no_vocab")


def check_tokenizer(header: GgufHeader) -> None:
    """Refuses what `build_tokenizer` can't honour, before anything is loaded.

    Raises:
        SourceError: the vocabulary is damaged.
        ConfigError: it needs something that is not read from a .gguf file.
    """
    if has_tokenizer(header):
        _Reader(header)


def special_ids(header: GgufHeader) -> dict[str, Any]:
    """Returns the fields of the model's config that name tokens; those a file leaves out are None.

    Text may end at the end of a turn or a message as well, so these go beside `eos_token_id`.
    """
    if not has_tokenizer(header):
        return {}
    reader = _Reader(header)
    ends = list(dict.fromkeys(id for key in _ENDS if (id := reader.id(key)) is not None))
    return {
        "bos_token_id": reader.id("bos_token_id"),
        "eos_token_id": ends if len(ends) > 1 else (ends[0] if ends else None),
        "pad_token_id": reader.id("padding_token_id"),
    }


def build_tokenizer(header: GgufHeader) -> Any:
    """Returns the tokenizer as transformers has it; its tokenizer.json says everything.

    Raises:
        SourceError: the vocabulary is damaged.
        ConfigError: it needs something that is not read from a .gguf file.
    """
    from transformers import PreTrainedTokenizerFast

    reader = _Reader(header)
    core = reader.spm() if reader.model == "llama" else reader.bpe()
    reader.add_special(core)
    named = {
        name: reader.tokens[id]
        for name, key in _NAMES.items()
        if (id := reader.id(key)) is not None
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{name: named.get(name) for name in ("bos_token", "eos_token", "unk_token")},
        **{
            name: named[name]
            for name in named
            if name not in ("bos_token", "eos_token", "unk_token")
        },
        clean_up_tokenization_spaces=False,
    )
    if templates := reader.templates():
        alone = len(templates) == 1 and "default" in templates
        tokenizer.chat_template = templates["default"] if alone else templates
    return tokenizer


class _Reader:
    """The vocabulary's metadata, checked."""

    def __init__(self, header: GgufHeader) -> None:
        self.path = header.path
        self.metadata = header.metadata
        self.model = self.get("model", str, "")
        if self.model not in ("gpt2", "llama"):
            raise ConfigError(
                f"{self.path}: its tokenizer is of kind {self.model!r:.40}, allowed are gpt2 and "
                f"llama",
                f"{_CURE}",
            )
        self.rule = self._rule()
        self.tokens: list[str] = [
            token or f"[EMPTY_{number}]" for number, token in enumerate(self.strings("tokens"))
        ]
        self.vocab = {token: number for number, token in enumerate(self.tokens)}
        if not self.tokens or len(self.vocab) < len(self.tokens):
            raise self.bad("tokenizer.ggml.tokens is empty or holds a token twice")
        self.types = self._numbers("token_type") or [1] * len(self.tokens)
        self._check_keys()
        self.space = self.get("add_space_prefix", bool, self.model == "llama")
        if self.model == "gpt2" and self.space and self.rule.cuts:
            raise ConfigError(
                f"{self.path}: tokenizer.ggml.add_space_prefix is true, which can't be joined with "
                f"the pre-tokenizer {self.metadata.get(_PREFIX + 'pre')!r:.40}",
                f"{_CURE}",
            )
        self.bos = self.get("add_bos_token", bool, self.model == "llama" or self.rule.bos)
        self.eos = self.get("add_eos_token", bool, False)
        for wanted, key in ((self.bos, "bos_token_id"), (self.eos, "eos_token_id")):
            if wanted and self.id(key) is None:
                raise self.bad(f"the tokenizer adds a token that {_PREFIX}{key} does not name")
        if self.model == "llama":
            self.scores = self._numbers("scores")
            if not self.scores or not all(math.isfinite(score) for score in self.scores):
                raise self.bad("tokenizer.ggml.scores is missing or not finite")
            held = sum(kind == _BYTE for kind in self.types)
            if held not in (0, 256):
                raise self.bad(f"{held} of 256 byte tokens are there")
            self.merges = self._scored_merges()
        else:
            self.merges = self._stated_merges()
        for key in (*_NAMES.values(), *_ENDS):
            self.id(key)
        self.templates()

    def bad(self, reason: str) -> SourceError:
        return SourceError(
            f"{self.path}: bad tokenizer: {' '.join(reason.split())}", "download it again"
        )

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self.metadata.get(_PREFIX + key, default)
        if type(value) is not kind:
            raise self.bad(f"{_PREFIX}{key} is {value!r:.60}, no {kind.__name__}")
        return value

    def strings(self, key: str) -> list[str]:
        value = self.metadata.get(_PREFIX + key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.bad(f"{_PREFIX}{key} is missing or no list of strings")
        return value

    def id(self, key: str) -> int | None:
        default = _SPM_IDS.get(key) if self.model == "llama" else None
        value = self.metadata.get(_PREFIX + key, default)
        if value is not None and not (is_whole(value) and 0 <= value < len(self.tokens)):
            raise self.bad(f"{_PREFIX}{key}={value!r:.60} is outside of {len(self.tokens)} tokens")
        return value

    def templates(self) -> dict[str, str]:
        found = {}
        for key, value in self.metadata.items():
            if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template."):
                name = key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default"
                if not is_template(name, value):
                    raise self.bad(f"{key:.80} is no string, or its name no plain one")
                found[name] = value
        return found

    def _rule(self) -> Rule:
        if self.model == "llama":
            return Rule()
        name = self.metadata.get(f"{_PREFIX}pre")
        if name is None:
            raise ConfigError(
                f"{self.path}: tokenizer.ggml.pre is missing (an old file), so how it cuts a text "
                f"is not known",
                f"{_CURE}",
            )
        if not isinstance(name, str) or name not in RULES:
            raise ConfigError(
                f"{self.path}: the pre-tokenizer tokenizer.ggml.pre={name!r:.60} is unknown",
                f"{_CURE}",
            )
        return RULES[name]

    def _numbers(self, key: str) -> list[Any]:
        value = self.metadata.get(_PREFIX + key)
        if value is None:
            return []
        kinds = int if key == "token_type" else (int, float)
        right = isinstance(value, list) and all(isinstance(v, kinds) for v in value)
        if not right or len(value) != len(self.tokens):
            raise self.bad(f"{_PREFIX}{key} is no list of {len(self.tokens)} numbers")
        return list(value)

    def _check_keys(self) -> None:
        for key, value in self.metadata.items():
            if not key.startswith("tokenizer.") or key.startswith("tokenizer.chat_template"):
                continue
            name = key.removeprefix(_PREFIX)
            if name in _READ or key == "tokenizer.huggingface.json" or not value:
                continue
            if name == "added_tokens" or name.endswith("_token_id"):
                continue
            raise ConfigError(
                f"{self.path}: {key:.80} is not read from a .gguf file and may change tokens",
                f"{_CURE}",
            )

    def _stated_merges(self) -> list[tuple[str, str]]:
        merges = []
        for text in self.strings("merges"):
            at = text.find(" ", 1)
            left, right = (text[:at], text[at + 1 :]) if at > 0 else (text, "")
            for part in (left, right, left + right):
                if not right or part not in self.vocab:
                    raise self.bad(f"the merge {text!r:.60} names a token that is not there")
            merges.append((left, right))
        return merges

    def _scored_merges(self) -> list[tuple[str, str]]:
        """Every way to join two tokens to a third, the best score first."""
        if longest := next((t for t in self.tokens if len(t) > _LONGEST), None):
            raise self.bad(f"a token is {len(longest):,} characters long, {_LONGEST:,} are allowed")
        plain = {
            token: number
            for token, number in self.vocab.items()
            if self.types[number] not in (_UNKNOWN, _CONTROL, _USER, _BYTE)
        }
        found = [
            (-self.scores[number], number, plain[token[:at]], plain[token[at:]])
            for token, number in plain.items()
            for at in range(1, len(token))
            if token[:at] in plain and token[at:] in plain
        ]
        return [(self.tokens[left], self.tokens[right]) for _, _, left, right in sorted(found)]

    def bpe(self) -> Any:
        """Returns a byte-level tokenizer (GPT-2's kind)."""
        from tokenizers import Tokenizer, decoders, models, normalizers, processors

        core = Tokenizer(
            models.BPE(vocab=self.vocab, merges=self.merges, ignore_merges=self.rule.whole)
        )
        if self.rule.nfc:
            core.normalizer = normalizers.NFC()
        core.pre_tokenizer = self.rule.build(self.space)
        core.decoder = decoders.ByteLevel()
        core.post_processor = self._around(processors.ByteLevel(trim_offsets=True))
        return core

    def spm(self) -> Any:
        """Returns a sentencepiece tokenizer, in the form of Llama-2's tokenizer.json."""
        from tokenizers import Tokenizer, decoders, models, normalizers

        unknown = self.id("unknown_token_id")
        core = Tokenizer(
            models.BPE(
                vocab=self.vocab,
                merges=self.merges,
                unk_token=None if unknown is None else self.tokens[unknown],
                fuse_unk=True,
                byte_fallback=_BYTE in self.types,
            )
        )
        spaces = normalizers.Replace(" ", _SPACE)
        first = [normalizers.Prepend(_SPACE)] if self.space else []
        core.normalizer = normalizers.Sequence([*first, spaces])
        strip = [decoders.Strip(" ", 1, 0)] if self.space else []
        core.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        if (around := self._around(None)) is not None:
            core.post_processor = around
        return core

    def _around(self, inner: Any) -> Any:
        """Returns the post-processor that adds begin and end of text where the file says so."""
        from tokenizers import processors

        ids = {key: self.id(f"{key}_token_id") for key in ("bos", "eos")}
        adds = [key for key, on in (("bos", self.bos), ("eos", self.eos)) if on]
        if not adds:
            return inner
        pairs = {self.tokens[ids[key] or 0]: ids[key] or 0 for key in adds}
        names = {key: self.tokens[ids[key] or 0] for key in adds}

        def around(piece: str, kind: int) -> list[str]:
            front = [f"{names['bos']}:{kind}"] if "bos" in names else []
            back = [f"{names['eos']}:{kind}"] if "eos" in names else []
            return [*front, f"{piece}:{kind}", *back]

        template = processors.TemplateProcessing(
            single=around("$A", 0),
            pair=[*around("$A", 0), *around("$B", 1)],
            special_tokens=list(pairs.items()),
        )
        return processors.Sequence([inner, template]) if inner else template

    def add_special(self, core: Any) -> None:
        """Adds the tokens that are matched whole in a text; control tokens are special."""
        from tokenizers import AddedToken

        control = [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in (_CONTROL, _UNKNOWN)
        ]
        user = [
            AddedToken(token, normalized=False, special=False)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind == _USER
        ]
        core.add_special_tokens(control)
        core.add_tokens(user)
