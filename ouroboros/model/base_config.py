"""The config of an original model: which ones convert, and the check of everything in it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from ouroboros.errors import ConfigError

if TYPE_CHECKING:
    from torch.nn import Module

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose decoder layers convert (SmolLM2 is a `llama`, Qwen2.5 a `qwen2`)."""

_CLASS_PREFIX = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies are one table, which is what a graph can hold."""

MOST_LAYERS = 4096
MOST_LABELS = 1 << 16
CORRECT_CONFIG = "correct the model's config.json"
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)

# What transformers reads or keeps beside the declared fields of a Llama-like config: the first
# two are used, the next four it turns into declared fields, a GGUF's metadata bring the others.
_MORE_BASE_FIELDS = {
    "head_dim",
    "layer_types",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "torch_dtype",
    "_model_name_or_path",
    "unk_token_id",
}

KEYS_OF_TRANSFORMERS = {
    "model_type",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "attn_implementation",
    "experts_implementation",
    "output_attentions",
    "torch_dtype",
    "num_labels",
    "auto_map",
    "_attn_implementation_autoset",
}
"""What a config holds of transformers' own, beside the fields of its class."""


def is_whole(value: Any) -> bool:
    """Says whether `value` is an integer and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Says whether `value` is a finite number and no truth value."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) <= sys.float_info.max  # False for NaN too


def check_architecture(model_type: Any) -> str:
    """Returns `model_type` where its decoder layers convert.

    Raises:
        ConfigError: they do not, or it is no name at all.
    """
    if model_type not in ARCHITECTURES:
        raise ConfigError(
            f"architecture {model_type!r:.80} can't be converted",
            f"allowed are {', '.join(ARCHITECTURES)} (SmolLM2 is a llama, Qwen2.5 a qwen2)",
        )
    return str(model_type)


def refuse_quantized(source: str, values: dict[str, Any]) -> None:
    """Refuses the config of a model whose weights are quantised, by the method's name.

    Args:
        source: the model, for the message.
        values: what its config.json holds.

    Raises:
        ConfigError: it has a `quantization_config`.
    """
    found = values.get("quantization_config") or values.get("compression_config")
    if not found:
        return
    method = found.get("quant_method") if isinstance(found, dict) else None
    if isinstance(found, dict) and not method:
        bits = [name for name in ("load_in_4bit", "load_in_8bit") if found.get(name)]
        method = "bitsandbytes" if bits else None
    raise ConfigError(
        f"{source}: its weights are quantised by {method or 'an unknown method'!s:.40} "
        "(quantization_config in config.json), which does not convert",
        "give the unquantised "
        "original, or a .gguf file of it. Only where the weights are plain floats after all, take "
        "quantization_config out",
    )


def check_lengths(values: Mapping[str, Any], source: str) -> None:
    """Refuses a number of layers or labels that no model has, before a list of them is made.

    Raises:
        ConfigError: it is above `MOST_LAYERS` or `MOST_LABELS`.
    """
    for name, most in (("num_hidden_layers", MOST_LAYERS), ("num_labels", MOST_LABELS)):
        value = values.get(name)
        if value is not None and is_whole(value) and value > most:
            raise ConfigError(
                f"{source}: {name}={value!r:.80} is above {most:,}",
                "get an intact copy of config.json",
            )


def refuse_kernels(values: Mapping[str, Any]) -> None:
    """Refuses a file that says how its model is to be computed, which is for its user to say.

    A name may be a kernel of the hub's, which transformers fetches and runs.

    Args:
        values: what the file holds.

    Raises:
        ConfigError: it names an implementation.
    """
    for name in ("attn_implementation", "experts_implementation"):
        if any(values.get(key) is not None for key in (name, f"_{name}", f"_{name}_internal")):
            raise ConfigError(
                f"config.json chooses an {name}, which is for the one who loads it to choose",
                "take it out of config.json",
            )


def check_base_config(values: dict[str, Any]) -> None:
    """Checks what transformers lets pass in the config of an original model.

    Raises:
        ConfigError: the model type does not convert, a key is unknown, a size is not above 0, or
            the activation or the rotary embedding is none that transformers has.
    """
    from transformers.activations import ACT2FN

    known = _base_fields(check_architecture(values.get("model_type")))
    if unknown := sorted(map(str, set(values) - known)):
        raise ConfigError(
            f"base_config has unknown keys {', '.join(unknown)}",
            "this version can't honour them, so load the checkpoint with the version that wrote it",
        )
    for name in _SIZES:
        value = values.get(name)
        if value is not None and not (is_whole(value) and value >= 1):
            raise ConfigError(
                f"base_config: {name}={value!r:.80} must be a whole number above 0", CORRECT_CONFIG
            )
    check_lengths(values, "base_config")
    heads, groups = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if heads and groups and heads % groups:
        raise ConfigError(
            f"base_config: num_attention_heads={heads} is no multiple of num_key_value_heads="
            f"{groups}, so they can't share keys",
            CORRECT_CONFIG,
        )
    activation = values.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise ConfigError(
            f"base_config: hidden_act={activation!r:.80} is unknown",
            f"transformers has {', '.join(sorted(ACT2FN))}",
        )
    eps = values.get("rms_norm_eps")
    if eps is not None and not (is_number(eps) and eps >= 0):
        raise ConfigError(
            f"base_config: rms_norm_eps={eps!r:.80} must be a number, 0 or more", CORRECT_CONFIG
        )
    dropout = values.get("attention_dropout")
    if dropout is not None and not (is_number(dropout) and 0 <= dropout < 1):
        raise ConfigError(
            f"base_config: attention_dropout={dropout!r:.80} must be a share, 0 to below 1",
            CORRECT_CONFIG,
        )
    _check_rope(values)


def _check_rope(values: dict[str, Any]) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ConfigError(
            f"base_config: rope_parameters={rope!r:.80} must be an object or null", CORRECT_CONFIG
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    allowed = ("default", *ROPE_INIT_FUNCTIONS)
    if kind not in allowed:
        raise ConfigError(
            f"base_config: rope_type={kind!r:.80} is unknown",
            f"transformers has {', '.join(allowed)}",
        )
    theta = rope.get("rope_theta", values.get("rope_theta"))
    if theta is not None and not (is_number(theta) and theta > 0):
        raise ConfigError(
            f"base_config: rope_theta={theta!r:.80} must be a finite number above 0", CORRECT_CONFIG
        )
    part = rope.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if part not in (None, 1):
        raise ConfigError(
            f"base_config: partial_rotary_factor={part!r:.80} turns a part of each head",
            "these architectures turn whole heads: take it out where the model was trained so",
        )
    for name in set(rope) - {"rope_type", "type", "rope_theta", "truncate"}:
        parts = rope[name] if isinstance(rope[name], list) else [rope[name]]
        if not all(part is None or is_number(part) for part in parts):
            raise ConfigError(
                f"base_config: {name}={rope[name]!r:.80} in rope_parameters must be a finite "
                "number",
                CORRECT_CONFIG,
            )


def _base_fields(model_type: str) -> set[str]:
    declared = {field.name for field in fields(CONFIG_MAPPING[model_type])}
    return {"model_type", *declared, *_MORE_BASE_FIELDS}


def declared_fields(base: PreTrainedConfig) -> dict[str, Any]:
    """Returns an original config as a dict, without what its architecture does not read.

    Raises:
        ConfigError: the architecture does not convert.
    """
    values: dict[str, Any] = base.to_diff_dict()
    known = _base_fields(check_architecture(base.model_type))
    return {name: value for name, value in values.items() if name in known}


def require_fixed_rope(kind: str) -> None:
    """Refuses a rotary embedding that no bundle can hold.

    Args:
        kind: its `rope_type`.

    Raises:
        ConfigError: its frequencies are not one table.
    """
    if kind not in FIXED_ROPE:
        raise ConfigError(
            f"RoPE scaling {kind!r:.80} changes with the sequence's length and can't be exported",
            f"allowed are {', '.join(FIXED_ROPE)}",
        )


def require_exportable(base: PreTrainedConfig) -> None:
    """Refuses a config that would convert and train, and whose export would then be refused.

    Raises:
        ConfigError: naming the field.
    """
    rope = getattr(base, "rope_parameters", None) or {}
    require_fixed_rope(rope.get("rope_type", rope.get("type", "default")))


def refuse_sliding_window(base: PreTrainedConfig) -> None:
    """Refuses a config whose sliding-window attention is active.

    Raises:
        ConfigError: it is.
    """
    kinds = getattr(base, "layer_types", None)
    if kinds is not None:
        active = any(kind != "full_attention" for kind in kinds)
    else:
        window = getattr(base, "sliding_window", None)
        active = window is not None and window < base.max_position_embeddings
    if active:
        raise ConfigError(
            f"the {base.model_type} model uses sliding-window attention "
            f"(sliding_window={base.sliding_window}), which is not built yet",
            "set sliding_window "
            "to null in its config.json only if full attention is what it was trained with",
        )


def layer_classes(model_type: str) -> tuple[type[Module], type[Module], type[Module]]:
    """Returns transformers' decoder layer, norm and rotary embedding of an architecture."""
    module = import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    prefix = _CLASS_PREFIX[model_type]
    kinds = ("DecoderLayer", "RMSNorm", "RotaryEmbedding")
    layer, norm, rotary = (getattr(module, prefix + kind) for kind in kinds)
    return layer, norm, rotary
