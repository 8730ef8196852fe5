"""Tokenizer, special tokens and chat template of a checkpoint, checked before the work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.errors import ExportError
from ouroboros.boundaries import prefix_ids
from ouroboros.modeling import OuroborosForCausalLM
from runtime.chat import ChatTemplate
from runtime.errors import BundleError

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
        ExportError: a token is outside the model's vocabulary.
    """
    eos = model.generation_config.eos_token_id
    eos = model.config.eos_token_id if eos is None else eos
    ids = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    begin = prefix_ids(tokenizer)
    if len(begin) > 1:
        raise ExportError(
            f"{checkpoint}: its tokenizer puts {len(begin)} tokens, {begin}, before every text, a "
            "bundle at most one; change the post-processor in tokenizer.json"
        )
    bos = begin[0] if begin else tokenizer.bos_token_id
    pad = tokenizer.pad_token_id
    for name, token in [*(("eos", one) for one in ids), ("bos", bos), ("pad", pad)]:
        if token is not None and not 0 <= token < model.config.vocab_size:
            raise ExportError(
                f"{checkpoint}: {name}_token_id {token} is outside the model's vocabulary, "
                f"0..{model.config.vocab_size - 1}; correct tokenizer or generation_config.json"
            )
    return {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "bos_token_id": bos,
        "eos_token_ids": ids,
        "pad_token_id": pad,
        "add_bos": bool(begin),
    }


def check_chat_template(checkpoint: Path) -> None:
    """Refuses a chat template that the engine could not render.

    Raises:
        ExportError: it is not UTF-8, no Jinja template, or does more than a template may.
    """
    file = checkpoint / TEMPLATE
    if not file.is_file():
        return
    try:
        template = ChatTemplate(file.read_text(encoding="utf-8"), {})
        template.prove()
    except (BundleError, UnicodeDecodeError, OSError) as error:
        raise ExportError(f"{file}: {error}; correct it or take it away") from error


def name_unused_templates(checkpoint: Path) -> list[str]:
    """Names of the chat templates beside the default one, which a bundle leaves out."""
    return sorted(file.stem for file in (checkpoint / OTHER_TEMPLATES).glob("*.jinja"))
