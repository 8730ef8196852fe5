"""Tokenizer and special tokens of a checkpoint, checked before the work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.errors import ExportError
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.text.boundaries import prefix_ids

TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
OTHER_TEMPLATES = "additional_chat_templates"  # transformers' name for the folder


def describe_tokens(
    checkpoint: Path, model: OuroborosForCausalLM, tokenizer: Any
) -> dict[str, Any]:
    """Returns the special tokens as the manifest has them.

    Args:
        checkpoint: named in errors.
        model: its config and sampling defaults say where a text ends.
        tokenizer: its tokenizer.

    Raises:
        ExportError: the tokenizer puts a token before every text that the model lacks, or every
            end of a text that is named is one.
    """
    begin = prefix_ids(tokenizer)
    bos = begin[0] if begin else tokenizer.bos_token_id
    pad = tokenizer.pad_token_id
    vocabulary = range(model.config.vocab_size)
    if outside := [one for one in begin if one not in vocabulary]:
        raise ExportError(
            f"{checkpoint}: its tokenizer puts token {outside[0]} before every text, outside the "
            f"model's vocabulary, 0..{vocabulary[-1]}",
            "put the model's own tokenizer beside its weights",
        )
    named = _named_ends(model)
    if named and max(named) >= len(vocabulary) and not any(one in vocabulary for one in named):
        raise ExportError(
            f"{checkpoint}: eos_token_id {max(named)} is outside the model's vocabulary, "
            f"0..{vocabulary[-1]}, and no other is named, so no text would end as meant",
            "correct generation_config.json",
        )
    # What is outside can neither be made nor read: it is left out, `name_unused` says of what.
    return {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token if tokenizer.eos_token_id in vocabulary else None,
        "bos_token_id": bos if bos in vocabulary else None,
        "eos_token_ids": [one for one in _end_ids(model, tokenizer) if one in vocabulary],
        "pad_token_id": pad if pad in vocabulary else None,
        "prefix_token_ids": begin,
    }


def _named_ends(model: OuroborosForCausalLM) -> list[int]:
    """Ids that end a text by the sampling defaults, else by the config."""
    eos = model.generation_config.eos_token_id
    eos = model.config.eos_token_id if eos is None else eos
    return [] if eos is None else list(eos) if isinstance(eos, list | tuple) else [eos]


def _end_ids(model: OuroborosForCausalLM, tokenizer: Any) -> list[int]:
    """The same and the tokenizer's own, each once."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*_named_ends(model), *own]))


# What `generate` of transformers does and an engine does not, and the value that does nothing.
_NOT_TAKEN = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "stop_strings": None,
}
_OF_SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def name_unused(model: OuroborosForCausalLM, tokenizer: Any) -> list[str]:
    """Says what of a checkpoint's tokens and sampling defaults a bundle leaves out or adds.

    Args:
        model: its config and sampling defaults.
        tokenizer: its tokenizer.

    Returns:
        Lines; none where the bundle says what the checkpoint says.
    """
    vocabulary, defaults = range(model.config.vocab_size), model.generation_config
    ids = _end_ids(model, tokenizer)
    given = {"end-of-text": ids, "begin-of-text": [tokenizer.bos_token_id]}
    given["padding"] = [tokenizer.pad_token_id]
    lines = [
        f"left out: {name} id {one}, outside the model's vocabulary, 0..{vocabulary[-1]}"
        for name, many in given.items()
        for one in many
        if one is not None and one not in vocabulary
    ]
    if not any(one in vocabulary for one in ids):
        lines.append("no end-of-text id is known: a text ends at its stop strings or its length")
    own = tokenizer.eos_token_id
    named = _named_ends(model)
    if own in vocabulary and named and own not in named:
        lines.append(
            f"the tokenizer's {tokenizer.eos_token} ({own}) ends a text too, beside {named} of the "
            "sampling defaults"
        )
    wanted = {**_NOT_TAKEN, **(_OF_SAMPLING if defaults.do_sample else {})}
    found = {name: getattr(defaults, name, None) for name in wanted}
    unused = [
        f"{name}={value!r:.40}"
        for name, value in found.items()
        if value is not None and value != wanted[name] and value != []
    ]
    if unused:
        lines.append(
            f"not taken over from generation_config.json: {', '.join(unused)}; the bundle is "
            "greedy where a request names nothing else"
        )
    return lines


def name_unused_templates(checkpoint: Path) -> list[str]:
    """Names of the chat templates beside the default one, which a bundle leaves out."""
    return sorted(file.stem for file in (checkpoint / OTHER_TEMPLATES).glob("*.jinja"))
