"""The tokens that bound a text: what a tokenizer puts before one, and what ends a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ouroboros.errors import DataError
from runtime.errors import errors_as

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

# What ends a document, by family. An instruction-tuned model's eos often ends a chat turn instead.
END_OF_TEXT = (
    "<|endoftext|>",  # GPT-2, Qwen (beside <|im_end|>), SmolLM2, Phi-3 (<|end|>), Falcon, GLM
    "<|end_of_text|>",  # Llama 3 (beside <|eot_id|>), Granite, SmolLM3
    "<｜end▁of▁sentence｜>",  # DeepSeek
    "<EOS_TOKEN>",  # Command-R (beside <|END_OF_TURN_TOKEN|>)
    "<eos>",  # Gemma (beside <end_of_turn>)
    "[EOS]",  # Kimi (beside <|im_end|>)
    "</s>",  # Llama 2, Mistral, InternLM (beside <|im_end|>); Gemma has it as a tag of HTML
)


def encode(
    tokenizer: Any, texts: Sequence[str], add_special_tokens: bool = False
) -> list[list[int]]:
    """Returns the token ids of each text.

    Args:
        tokenizer: as transformers has it.
        texts: any number of them.
        add_special_tokens: put around each what the tokenizer puts around one.

    Raises:
        DataError: the tokenizer can't, which one that loads may still turn out to be unable to.
    """
    problem = "the tokenizer can't turn text into tokens"
    with errors_as(DataError, problem, "put the model's own tokenizer beside its weights"):
        found: list[list[int]] = tokenizer(
            list(texts), add_special_tokens=add_special_tokens, verbose=False
        )["input_ids"]
    return found


def prefix_ids(tokenizer: Any) -> list[int]:
    """Returns the tokens that the tokenizer itself puts before every text, mostly none or one.

    They go before every document of the training text and every window that is scored or
    calibrated on, as before every prompt. What it puts after a text is left out.

    Raises:
        DataError: As `encode`.
    """
    (plain,) = encode(tokenizer, ["a"])
    (whole,) = encode(tokenizer, ["a"], add_special_tokens=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return [int(token) for token in whole[:start]]
    special = set(getattr(tokenizer, "all_special_ids", ()))
    count = next((i for i, token in enumerate(whole) if token not in special), 0)
    return [int(token) for token in whole[:count]]


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token put between documents.

    That is eos where its name is known to end a document; else the first of `END_OF_TEXT` that the
    tokenizer keeps apart from text, special tokens before other added ones; else eos. So a chat
    model's end of a turn is not taken for the end of a document.

    Raises:
        DataError: The tokenizer has none, or as `encode`.
    """
    eos = tokenizer.eos_token_id
    if eos is not None and tokenizer.eos_token in END_OF_TEXT:
        return int(eos)
    vocabulary = tokenizer.get_vocab()
    known = [name for name in END_OF_TEXT if name in vocabulary]
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids)
    special |= {number for number, token in added.items() if token.special}
    for name in known:
        if vocabulary[name] in special:
            return int(vocabulary[name])
    for name in known:
        # One that a text written out as it never becomes is no word of the text either.
        (written,) = encode(tokenizer, [name])
        if vocabulary[name] in added or written != [vocabulary[name]]:
            return int(vocabulary[name])
    if eos is None:
        raise DataError(
            "the tokenizer has no end-of-text token to put between documents",
            "set its eos_token and save the checkpoint's tokenizer again",
        )
    return int(eos)
