"""A small manifest, what may not stand in it, and those of bundles, read and changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.bundle import contract

SIZES = SimpleNamespace(
    recurrent_layers=1,
    halting=False,
    hidden_size=16,
    num_layers=2,
    num_key_value_heads=1,
    head_dim=8,
    vocab_size=32,
)
FIELDS: dict[str, Any] = {
    "model": {
        "source": "tests",
        "model_type": "llama",
        "hidden_size": 16,
        "num_layers": 2,
        "prelude": 1,
        "coda": 1,
        "recurrent_layers": 1,
        "bridge": "none",
        "halting": False,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "vocab_size": 32,
        "max_position_embeddings": 64,
        "pooling": "causal",
        "parameters": 1000,
        "step_bytes": 400,
        "once_bytes": 2000,
    },
    "depth": {"min": 1, "max": 4, "default": 2, "trained": [1, 2]},
    "precision": "fp32",
    "quantization": None,
    "graphs": {
        "onnx": {
            "file": "model.onnx",
            "data": ["model.onnx.data"],
            "opset": 24,
            "inputs": [dataclasses.asdict(one) for one in contract.inputs(SIZES, "fp32")],
            "outputs": [dataclasses.asdict(one) for one in contract.outputs(SIZES, "fp32")],
        }
    },
    "tokenizer": {
        "file": "tokenizer.json",
        "chat_template": None,
        "chat": None,
        "bos_token": None,
        "eos_token": "<end>",
        "bos_token_id": None,
        "eos_token_ids": [2],
        "pad_token_id": None,
        "prefix_token_ids": [],
    },
    "sampling": {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    },
    "parity": {"relative_l2": 1e-5, "kl": None, "float": "float32"},
    "plans": [],
    "checkpoint": {"sha256": "0" * 64, "name": "tiny"},
    "tools": {"ouroboros": "0.1.0"},
}


LOGITS = [{"name": "logits", "dtype": "float32", "shape": ["batch", "logits", 33]}]
# Keys, the value put there, and what the refusal says of it (a regular expression).
WRONG: list[tuple[tuple[str, ...], Any, str]] = [
    (("model", "hidden_size"), "16", "not an integer"),
    (("model", "hidden_size"), True, "not an integer"),
    (("model", "hidden_size"), 0, "1 or more"),
    (("model", "num_layers"), 5, "prelude"),
    (("model", "pooling"), "max", "allowed"),
    *(
        (("model", name), 10**30, rf"model\.{name} is 10+, allowed: at most")
        for name, value in FIELDS["model"].items()
        if type(value) is int
    ),
    (("model", "vocab_size"), 10**100, r"vocab_size is 10{56}\.\.\., allowed"),
    (("model", "head_dim"), 16, "head_dim is 16, the graph's past_key_values.0.key has 8"),
    (("model", "num_key_value_heads"), 2, "heads is 2, the graph's past_.* has 1"),
    (("graphs", "onnx", "outputs"), LOGITS, "vocab_size is 32, the graph's logits has 33"),
    (("precision",), "fp16", "fp16 keeps .* in float16, the graph's past_.* is 'float32'"),
    (("precision",), "bf16", "bf16 keeps .* in bfloat16"),
    (("depth", "max"), 1, "depth range"),
    (("depth", "max"), 4097, "depth.max is 4097, allowed: at most 4096"),
    (("depth", "trained"), [10**30], "above 4096"),
    (("sampling", "temperature"), float("inf"), "finite temperature"),
    (("graphs", "onnx", "data"), ["w.bin"], "not listed"),
    (("graphs", "onnx", "data"), ["../w.bin"], "outside the bundle"),
    (("graphs", "onnx", "data"), ["*/_ORT_MEM_ADDR_/*"], "outside the bundle"),
    (("checkpoint", "sha256"), "0" * 63, r"checkpoint\.sha256 is not 64"),
    (("depth", "trained"), [0], "below 1"),
    (("depth", "trained"), 3, "not a list"),
    (("depth", "trained"), [1.5], r"depth\.trained\[0\]"),
    (("sampling", "top_p"), 0.0, "top_p"),
    (("sampling", "min_p"), 1.5, "min_p"),
    (("sampling", "repetition_penalty"), 0.0, "repetition_penalty"),
    (("tokenizer", "prefix_token_ids"), [32], "token id 32 is outside"),
    (("parity", "relative_l2"), 2.0, "relative_l2"),
    (("tokenizer", "eos_token_ids"), [32], "outside"),
    (("tokenizer", "chat_template"), "chat.jinja", "not listed"),
    (("graphs", "onnx", "file"), "other.onnx", "not listed"),
    (("files", "model.onnx", "sha256"), "zz", "hexadecimal"),
    (("files", "model.onnx", "bytes"), -1, "bytes"),
    *(
        (("model", name), -1, rf"model\.{name} is -1, allowed")
        for name, value in FIELDS["model"].items()
        if type(value) is int
    ),
    (("depth", "min"), -1, "depth range"),
    (("depth", "default"), -(10**30), "depth range"),
    (("depth", "trained"), [-1], "below 1"),
    (("sampling", "top_k"), -1, "top_k"),
    (("graphs", "onnx", "opset"), -1, "opset is -1, allowed"),
    (("graphs", "onnx", "opset"), 10**30, "opset is 10"),
    (("sampling", "temperature"), 10**400, "not a number of that size"),
    (("sampling", "temperature"), 2**64, "not a number of that size"),
    (("sampling", "top_k"), 2**64, r"top_k in 0\.\.2147483647"),
    (("sampling", "top_k"), 10**400, r"top_k in 0\.\.2147483647"),
    (("files", "model.onnx", "bytes"), 2**64, r"bytes is 18446744073709551616, allowed: 0"),
    (("tokenizer", "pad_token_id"), 10**400, r"token id 10{56}\.\.\. is outside 0\.\.31"),
    (("model", "num_layers"), 10**4000, r"num_layers is 10{56}\.\.\., allowed: at most"),
    (("format_version",), 10**4000, r"format_version 10{56}\.\.\. is not the 4"),
    (("graphs", "onnx", "inputs"), [], "lacks the input input_ids"),
    (("graphs", "onnx", "outputs"), [], "lacks the output logits"),
    (("graphs", "onnx", "outputs"), LOGITS * 2, "vocab_size is 32"),
    (
        ("graphs", "onnx", "inputs"),
        [{"name": "halt", "dtype": "float32", "shape": []}],
        "input 'halt' is unknown here",
    ),
    (
        ("graphs", "onnx", "inputs"),
        [{"name": "input_ids", "dtype": "int32", "shape": ["batch", "sequence"]}],
        "input_ids is 'int32', not 'int64'",
    ),
    (
        ("graphs", "onnx", "inputs"),
        [{"name": "row_depth", "dtype": "int64", "shape": []}],
        "row_depth has 0 dimensions, not 1",
    ),
    (("parity", "kl"), -1.0, "parity.kl is -1.0"),
    (("tokenizer", "eos_token_ids"), [-1], "token id -1 is outside"),
    (("tokenizer", "bos_token_id"), -1, "token id -1 is outside"),
    (("tokenizer", "pad_token_id"), 32, "token id 32 is outside"),
    (
        ("graphs", "onnx", "inputs"),
        [{"name": "past_key_values.0.key", "dtype": "float32", "shape": [-1, 1, 1, 8]}],
        "key has -1 in the place of 'batch'",
    ),
]


def read(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "manifest.json").read_text()))


def changed(bundle: Path, *keys: str, value: Any) -> dict[str, Any]:
    data = read(bundle)
    inner = data
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return data
