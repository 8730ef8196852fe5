"""What the metadata of a .gguf file say of the model, against its tensors and transformers' reader.

transformers' reader fills what it does not read with the defaults of the config's class and skips
tensors that it has no name for; here each is honoured or refused by name.
"""

from __future__ import annotations

import math
from typing import Any

from ouroboros.errors import ConfigError, SourceError
from ouroboros.model.base_config import is_whole
from ouroboros.source.gguf_header import GgufHeader

CURE = "convert the model's Hugging Face directory or hub id"
MAX_SIZE = 1 << 31

_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
# Read below, or without an effect on what a dense decoder computes.
_READ = {
    *_SIZES,
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "vocab_size",
    "expert_used_count",
    "tensor_data_layout",
}
_NEUTRAL = (0, 1, "", "none")
_LAYER = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
    "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip
_BIASED = ("attn_q", "attn_k", "attn_v")


def check_model(header: GgufHeader, architecture: str) -> dict[str, Any]:
    """Checks the sizes, the positions and the tensors of a model of a known architecture.

    Returns:
        Fields of the Hugging Face config by name, which go before those that transformers reads.

    Raises:
        SourceError: a value is missing, of a wrong type, or belies the tensors.
        ConfigError: it has something that transformers' reader would drop.
    """
    if not header.tensors:
        raise SourceError(
            f"{header.path}: holds no weights, only a vocabulary", "give the .gguf of the model"
        )
    sizes = {
        name: _whole(header, f"{architecture}.{key}", name != "num_key_value_heads")
        for key, name in _SIZES.items()
    }
    # Left out, llama.cpp takes as many as there are heads; transformers would not reorder the rows.
    if sizes["num_key_value_heads"] is None:
        if architecture != "qwen2" and architecture != "qwen3":
            raise ConfigError(
                f"{header.path}: {architecture}.attention.head_count_kv is missing, which "
                f"transformers misreads",
                f"{CURE}",
            )
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    fields: dict[str, Any] = {
        **sizes,
        "head_dim": _head_dim(header, architecture, sizes),
        "rms_norm_eps": _positive(header, f"{architecture}.attention.layer_norm_rms_epsilon", None),
        "rope_theta": _positive(header, f"{architecture}.rope.freq_base", 10000.0),
    }
    _check_positions(header, architecture, sizes["max_position_embeddings"] or 0)
    fields["vocab_size"] = _vocabulary(header, architecture)
    _check_tensors(header, architecture, fields)
    return fields


def _whole(header: GgufHeader, key: str, required: bool) -> int | None:
    value: Any = header.metadata.get(key)
    if value is None and not required:
        return None
    if not is_whole(value) or not 1 <= value < MAX_SIZE:
        said = "is missing" if value is None else f"is {value!r:.60}"
        raise SourceError(
            f"{header.path}: {key} {said}, it must be one whole number above 0", "download it again"
        )
    return int(value)


def _positive(header: GgufHeader, key: str, default: float | None) -> float:
    value: Any = header.metadata.get(key, default)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value <= 0:
        said = "is missing" if value is None else f"is {value!r:.60}"
        raise SourceError(
            f"{header.path}: {key} {said}, it must be a finite number above 0", "download it again"
        )
    return float(value)


def _head_dim(header: GgufHeader, architecture: str, sizes: dict[str, int | None]) -> int:
    heads, hidden = sizes["num_attention_heads"] or 1, sizes["hidden_size"] or 1
    key = _whole(header, f"{architecture}.attention.key_length", False) or hidden // heads
    if (kept := sizes["num_key_value_heads"] or 1) > heads or heads % kept:
        raise SourceError(
            f"{header.path}: {kept} key-value heads do not divide {heads} heads",
            "download it again",
        )
    for name in ("attention.value_length", "rope.dimension_count"):
        found = _whole(header, f"{architecture}.{name}", False)
        if found is not None and found != key:
            raise ConfigError(
                f"{header.path}: {architecture}.{name} is {found} and the heads are {key} wide",
                "partly rotated heads and values of another width are not read",
            )
    return key


def _check_positions(header: GgufHeader, architecture: str, context: int) -> None:
    metadata, prefix = header.metadata, f"{architecture}."
    window = metadata.get(f"{prefix}attention.sliding_window", 0)
    if not is_whole(window) or 0 < window < context:
        raise ConfigError(
            f"{header.path}: {prefix}attention.sliding_window={window!r:.40} is active below the "
            f"context of {context}",
            "sliding-window attention is not supported",
        )
    scaling = metadata.get(f"{prefix}rope.scaling.type", "none")
    numbers = [
        metadata.get(f"{prefix}{name}", 1) for name in ("rope.scaling.factor", "rope.scale_linear")
    ]
    # Without a type llama.cpp takes a factor as linear scaling.
    stretched = f"{prefix}rope.scaling.type" not in metadata and any(
        n not in (0, 1) for n in numbers
    )
    if scaling != "none" or stretched or "rope_freqs.weight" in header.tensors:
        raise ConfigError(
            f"{header.path}: its RoPE scaling is not read from a .gguf file by transformers, so "
            f"the positions would be wrong",
            f"{CURE}",
        )
    if metadata.get(f"{prefix}attention.causal", True) is not True:
        raise ConfigError(
            f"{header.path}: {prefix}attention.causal is false", "only causal models convert"
        )
    for key, value in metadata.items():
        name = key.removeprefix(prefix)
        known = name in _READ or (name.startswith("rope.scaling.") and scaling == "none")
        if (
            key.startswith(prefix)
            and not known
            and (isinstance(value, list) or value not in _NEUTRAL)
        ):
            raise ConfigError(
                f"{header.path}: {key}={value!r:.60} is not read from a .gguf file, so it would be "
                f"lost",
                f"{CURE}",
            )


def _vocabulary(header: GgufHeader, architecture: str) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise SourceError(
            f"{header.path}: has no token_embd.weight of two dimensions", "download it again"
        )
    rows = embedding.shape[0]
    said = {
        f"{architecture}.vocab_size": _whole(header, f"{architecture}.vocab_size", False),
        "tokenizer.ggml.tokens": None,
    }
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None:
        said["tokenizer.ggml.tokens"] = len(tokens) if isinstance(tokens, list) else -1
    for key, count in said.items():
        if count is not None and count != rows:
            raise SourceError(
                f"{header.path}: {key} counts {count} tokens and token_embd.weight has {rows} rows",
                "they are not of one model",
            )
    return rows


def _check_tensors(header: GgufHeader, architecture: str, fields: dict[str, Any]) -> None:
    expected = _shapes(architecture, fields)
    vocabulary, hidden = fields["vocab_size"], fields["hidden_size"]
    optional = {"output.weight": (vocabulary, hidden)}
    # From the tensors there are, so that a false block_count costs nothing.
    layers = fields["num_hidden_layers"]
    if layers * 9 > len(header.tensors):
        raise SourceError(
            f"{header.path}: {architecture}.block_count is {layers} and only "
            f"{len(header.tensors)} tensors are there",
            "download it again",
        )
    wanted = {
        "token_embd.weight": (vocabulary, hidden),
        "output_norm.weight": (hidden,),
        **{f"blk.{n}.{name}": shape for n in range(layers) for name, shape in expected.items()},
    }
    if missing := [name for name in wanted if name not in header.tensors]:
        raise SourceError(
            f"{header.path}: {len(missing)} weights are missing, {missing[0]} first",
            "download it again",
        )
    if more := [name for name in header.tensors if name not in wanted and name not in optional]:
        raise ConfigError(
            f"{header.path}: holds {len(more)} tensors that {architecture} with {layers} layers "
            f"has no place for, {more[0]!r:.80} first, so they would be lost",
            f"{CURE}",
        )
    for name, tensor in header.tensors.items():
        right = wanted.get(name) or optional[name]
        if tensor.shape != right:
            raise SourceError(
                f"{header.path}: {name} is {list(tensor.shape)}, by the metadata {list(right)}",
                "download it again",
            )


def _shapes(architecture: str, fields: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, head = fields["hidden_size"], fields["intermediate_size"], fields["head_dim"]
    q, kv = fields["num_attention_heads"] * head, fields["num_key_value_heads"] * head
    sizes: list[tuple[int, ...]] = [
        (hidden,), (q, hidden), (kv, hidden), (kv, hidden), (hidden, q),
        (hidden,), (inner, hidden), (inner, hidden), (hidden, inner),
    ]  # fmt: skip
    shapes = {f"{name}.weight": size for name, size in zip(_LAYER, sizes, strict=True)}
    if architecture == "qwen2":
        shapes |= {f"{name}.bias": shapes[f"{name}.weight"][:1] for name in _BIASED}
    if architecture == "qwen3":
        shapes |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    return shapes
