"""Small tokenizers of every kind of decoder, for the tests of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from runtime.text.codec import Codec

SPECIALS = ["<s>", "</s>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "▁the", "▁cat", "▁sat", "cat", "s", "▁▁", "a", "b", "c", "\ufffd", ".", " ."]
LETTERS = ["t", "h", "e"]
LETTERS_AND_MARKS = "abcdehilmnorstuw:"


def word_level(words: list[str]) -> Any:
    names = [*SPECIALS, *dict.fromkeys(words)]
    core = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(names)}, SPECIALS[0])
    )
    core.add_special_tokens(SPECIALS)
    return core


def with_decoder(decoder: Any, words: list[str]) -> Callable[[], Any]:
    def make() -> Any:
        core = word_level(words)
        if decoder is not None:
            core.decoder = decoder
        return core

    return make


def byte_level(decoder: Any = None, prefix: bool = False, merged: bool = True) -> Callable[[], Any]:
    def make() -> Any:
        letters = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        letters += ["</w>", "ðŁ", "ĺĢ"] if merged else []
        merges = [("ð", "Ł"), ("ĺ", "Ģ")] if merged else []
        core = Tokenizer(
            models.BPE(vocab={name: number for number, name in enumerate(letters)}, merges=merges)
        )
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        core.decoder = decoder or decoders.ByteLevel()
        core.add_special_tokens(SPECIALS)
        return core

    return make


def sentence_piece(scheme: str, fallback: bool = True) -> Callable[[], Any]:
    """`llama`: normalizers put the mark; else a Metaspace pre-tokenizer with that scheme."""

    def make() -> Any:
        names = ["<unk>", *SPECIALS, *(BYTES if fallback else []), "▁", *LETTERS_AND_MARKS]
        names += ["▁t", "▁th", "▁the", "at"]
        names += ["▁c", "▁cat", "▁s", "▁sat"]
        merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("a", "t"), ("▁", "c"), ("▁c", "at")]
        merges += [("▁", "s"), ("▁s", "at")]
        core = Tokenizer(
            models.BPE(
                vocab={name: number for number, name in enumerate(names)},
                merges=merges,
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=fallback,
            )
        )
        if scheme == "llama":
            core.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
            core.decoder = LLAMA
        else:
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
            core.decoder = decoders.Sequence(
                [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]
            )
        core.add_special_tokens(SPECIALS)
        return core

    return make


def marked_special() -> Any:
    """A special token that the normalizer writes otherwise, so that decoding shows it."""
    core = sentence_piece("llama")()
    core.add_special_tokens([AddedToken("<mask>", normalized=True)])
    return core


LLAMA = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
MIXED = [*WORDS, *BYTES]
ENDED = ["hel", "lo</w>", "cat</w>", "a</w>b</w>", ".</w>", "\ufffd"]
KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level(),
    "byte-level, suffix": byte_level(
        decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    ),
    "llama": with_decoder(LLAMA, MIXED),
    "llama, words": with_decoder(LLAMA, WORDS),
    "bytes": with_decoder(decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), BYTES),
    "strip both": with_decoder(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
        WORDS,
    ),
    "metaspace first": with_decoder(decoders.Metaspace(prepend_scheme="first"), WORDS),
    "metaspace always": with_decoder(decoders.Metaspace(prepend_scheme="always"), WORDS),
    "metaspace never": with_decoder(decoders.Metaspace(prepend_scheme="never"), WORDS),
    "wordpiece": with_decoder(
        decoders.WordPiece(), ["cat", "##s", "do", "n't", ".", "'", "##'", "not", "\ufffd"]
    ),
    "bpe suffix": with_decoder(decoders.BPEDecoder(suffix="</w>"), ENDED),
    "ctc": with_decoder(decoders.CTC(), ["<pad>", "a", "b", "|", "'", "s", "."]),
    "none": with_decoder(None, WORDS),
    "replace over tokens": with_decoder(
        decoders.Sequence([decoders.Fuse(), decoders.Replace("abc", "x")]), WORDS
    ),
    "replace with a border": with_decoder(
        decoders.Sequence([decoders.Fuse(), decoders.Replace("aa", "x")]), ["a", "b", "aa"]
    ),
    "regex over tokens": with_decoder(
        decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("a.*c"), "x")]), WORDS
    ),
    "llama, marked special": marked_special,
}


def make_codec(core: Any) -> Codec:
    """A codec on a tokenizer that no bundle holds."""
    codec = Codec.__new__(Codec)
    codec._tokenizer, codec._first = core, []
    return codec
