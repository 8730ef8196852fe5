"""Tokenizers of one token a letter, whose ids are known by heart."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"
EOT = 0


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter: a = 2, b = 3, ...; blanks separate; id 0 is end-of-text, id 1 eos."""
    vocab = {"<|endoftext|>": EOT, "<|im_end|>": 1}
    vocab |= {letter: number for number, letter in enumerate(LETTERS, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|im_end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def special_tokenizer(
    specials: list[str],
    eos: str | None,
    prefix: list[str] | None = None,
    words: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """One token a letter, special tokens, and what the post-processor puts before a text."""
    names = [*specials, *words, *LETTERS]
    vocab = {name: number for number, name in enumerate(names)}
    core = Tokenizer(models.WordLevel(vocab, unk_token=names[0]))
    core.pre_tokenizer = (
        pre_tokenizers.Whitespace() if words else pre_tokenizers.Split("", "isolated")
    )
    core.add_special_tokens(specials)
    if prefix:
        core.post_processor = processors.TemplateProcessing(
            single=f"{' '.join(prefix)} $A {specials[-1]}",
            special_tokens=[(name, vocab[name]) for name in [*prefix, specials[-1]]],
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos)
