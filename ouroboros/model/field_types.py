"""What each field of a config may hold: its kind, and, where there are few, its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ouroboros.model.base_config import is_number, is_whole
from ouroboros.model.halters import HALTERS

CHOICES = {
    "pooling": ("causal", "mean", "token"),
    "norm_init": ("matched", "ones"),
    "bases": ("mean", "per_step"),
    "modulation": ("controller", "static", "free", "none"),
    "gate_start": ("alike", "open"),
    "bridge": ("none", "entry", "exit"),
    "input_injection": ("none", "add"),
    "halter": HALTERS,
}


def _is_wholes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_whole, value))


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _is_source(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_texts(value.get("files", {})):
        return False
    return _is_texts({name: part for name, part in value.items() if name != "files"})


_WHOLE = (is_whole, "a whole number")
_NUMBER = (is_number, "a finite number")
_BOOL = (lambda value: isinstance(value, bool), "true or false")
_ID = (lambda value: value is None or is_whole(value), "a token id or null")
FIELD_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "base_config": (lambda value: isinstance(value, dict), "an object of named values"),
    "prelude": _WHOLE,
    "coda": _WHOLE,
    "recurrent": _WHOLE,
    "recurrent_layers": _WHOLE,
    "rank": _WHOLE,
    "alpha": _NUMBER,
    "style_size": _WHOLE,
    "max_depth": _WHOLE,
    "depth": _WHOLE,
    "gate": _BOOL,
    "halt_threshold": _NUMBER,
    "halt_depth": _WHOLE,
    "trained_depths": (_is_wholes, "a list of whole numbers"),
    "qat": (lambda value: isinstance(value, dict), "an object of named values"),
    "source": (_is_source, "an object of texts"),
    "vocab_size": _WHOLE,
    "hidden_size": _WHOLE,
    "num_hidden_layers": _WHOLE,
    "num_attention_heads": _WHOLE,
    "num_key_value_heads": _WHOLE,
    "head_dim": _WHOLE,
    "max_position_embeddings": _WHOLE,
    "initializer_range": _NUMBER,
    "use_cache": _BOOL,
    "tie_word_embeddings": _BOOL,
    "bos_token_id": _ID,
    "eos_token_id": (
        lambda value: value is None or is_whole(value) or _is_wholes(value),
        "a token id, a list of them or null",
    ),
    "pad_token_id": _ID,
}
