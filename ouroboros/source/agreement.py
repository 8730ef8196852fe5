"""What an original model's config says, held against what its weight files hold.

A tensor that the config leaves no place for would be dropped, and one that it leaves out taken
from elsewhere, both without a word: every one is either known to carry nothing, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch

from ouroboros.errors import SourceError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_NOT_ONE = "config.json and the weights are not of one model"
_ROWS = 4096
# Buffers that older versions saved; they follow from the config, or mask what is masked anyway.
_BUFFERS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|position_ids)$"
)
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|weight_packed|weight_scale\w*|weight_shape|weight\.absmax|"
    r"weight\.quant_map|weight\.quant_state\..+|SCB|weight_format)$"
)
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
# The fields of a config that a weight's shape follows from.
_FIELDS = {
    "embed_tokens": "vocab_size and hidden_size",
    "lm_head": "vocab_size and hidden_size",
    "q_proj": "num_attention_heads and head_dim",
    "k_proj": "num_key_value_heads and head_dim",
    "v_proj": "num_key_value_heads and head_dim",
    "o_proj": "num_attention_heads and head_dim",
    "gate_proj": "intermediate_size",
    "up_proj": "intermediate_size",
    "down_proj": "intermediate_size",
    "q_norm": "head_dim",
    "k_norm": "head_dim",
}

Rows = Iterable[torch.Tensor]


def check_names(source: str, config: Any, held: Collection[str], wanted: Collection[str]) -> None:
    """Refuses weights that are missing, and ones that the config has no place for.

    Args:
        source: the model, for messages.
        config: its Hugging Face config.
        held: names of the tensors that its files hold.
        wanted: names of the weights by the config; a tied LM head among them or not.

    Raises:
        SourceError: naming the field of the config that disagrees, where one does.
    """
    if quantized := sorted(name for name in held if _QUANTIZED.search(name)):
        raise SourceError(
            f"{source}: {quantized[0]} is of a quantised model, though config.json has no "
            "quantization_config",
            "give the unquantised original",
        )
    tied = {HEAD} if config.tie_word_embeddings else set()
    missing = sorted(set(wanted) - set(held) - tied)
    extra = sorted(n for n in set(held) - set(wanted) - tied if not _BUFFERS.search(n))
    if not missing and not extra:
        return
    layers = {int(found[1]) for name in held if (found := _LAYER.match(name))}
    count = max(layers, default=-1) + 1
    if count and count != config.num_hidden_layers:
        raise SourceError(
            f"{source}: the files hold layers 0..{count - 1}, config.json says num_hidden_layers="
            f"{config.num_hidden_layers}",
            f"{_NOT_ONE}",
        )
    if unmerged := [name for name in extra if ".lora_" in name or ".base_layer." in name]:
        raise SourceError(
            f"{source}: {unmerged[0]} is of an adapter that was not merged",
            "merge it into its base "
            "model (peft: merge_and_unload, save_pretrained) and give the result",
        )
    if missing:
        problem, cure = _explain_missing(config, missing, extra)
    else:
        problem, cure = _explain_extra(config, extra)
    raise SourceError(f"{source}: {problem}", cure)


def _explain_missing(config: Any, missing: list[str], extra: list[str]) -> tuple[str, str]:
    """The problem and the cure."""
    if missing == [HEAD]:
        return (
            f"tie_word_embeddings is false in config.json, but the files hold no {HEAD}",
            "set it to true if the embedding is the head, else download the model again",
        )
    first = f"{len(missing)} weights are missing, {missing[0]} first"
    if all(name.endswith(".bias") for name in missing):
        return (
            f"{first}, which {_bias_field(config, missing[0])} of config.json asks for",
            "correct config.json, or download the model again",
        )
    if extra:
        return (
            f"{first}, and the files hold {extra[0]}, which no {config.model_type} reads",
            "correct model_type in config.json, or give the model as transformers writes it",
        )
    return first, "download it again"


def _explain_extra(config: Any, extra: list[str]) -> tuple[str, str]:
    """The problem and the cure."""
    first = f"the files hold {extra[0]}"
    rest = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    cure = "correct config.json, or take them away if they belong to nothing"
    if extra[0].endswith(".bias"):
        return (
            f"{first}{rest}, which {_bias_field(config, extra[0])} of config.json would leave out",
            cure,
        )
    return (
        f"{first}{rest}, which a {config.model_type} with this config.json does not read",
        cure,
    )


def _bias_field(config: Any, name: str) -> str:
    field = "mlp_bias" if ".mlp." in name else "attention_bias"
    if not hasattr(config, field):
        return f"model_type={config.model_type}"
    return f"{field}={str(getattr(config, field)).lower()}"


def find_silent(
    config: Any, held: Collection[str], wanted: Collection[str], is_zero: Callable[[str], bool]
) -> list[str]:
    """Returns the tensors without a place in the model that change nothing: biases of zeros."""
    if any(_LAYER.match(n) and int(n.split(".")[2]) >= config.num_hidden_layers for n in held):
        return []
    extra = sorted(set(held) - set(wanted))
    return [name for name in extra if name.endswith("proj.bias") and is_zero(name)]


def check_shapes(source: str, held: dict[str, list[int]], wanted: dict[str, list[int]]) -> None:
    """Refuses weights whose shape is not what the config says.

    Raises:
        SourceError: naming the first one and the fields that its shape follows from.
    """
    for name, shape in wanted.items():
        if name in held and held[name] != shape:
            part = name.split(".")[-2]
            raise SourceError(
                f"{source}: can't load the weights: {name} is {held[name]}, by its config {shape}",
                f"{_NOT_ONE} (see {_FIELDS.get(part, 'hidden_size')})",
            )


def require_one_head(source: str, head: Rows, embedding: Rows) -> None:
    """Refuses a head that should be the embedding and is not.

    Args:
        source: the model, for the message.
        head: `lm_head.weight` in pieces.
        embedding: the embedding in the same pieces.

    Raises:
        SourceError: they differ.
    """
    if all(torch.equal(*pair) for pair in zip(head, embedding, strict=True)):
        return
    raise SourceError(
        f"{source}: tie_word_embeddings is true in config.json, but {HEAD} differs from the "
        f"embedding",
        f"set it to false to keep the head, or take {HEAD} away",
    )


def lines_of(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Returns a matrix in pieces, so that comparing two makes no copies of their size."""
    yield from weight.split(_ROWS)
