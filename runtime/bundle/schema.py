"""The JSON Schema of manifest.json, made from the dataclasses that read it.

`python -m runtime.bundle.schema > docs/manifest.schema.json` writes it anew.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from runtime.bundle.contract import ELEMENT_TYPES, PRECISIONS
from runtime.bundle.manifest import BRIDGES, FORMAT_VERSION, HALTERS, POOLINGS, Manifest
from runtime.bundle.rules import INT32, INT64, MODEL_BOUNDS
from runtime.depths import MAX_DEPTH

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_NO_DEFAULT = dataclasses.MISSING
_SHA256 = {"pattern": "^[0-9a-f]{64}$"}
# What a type does not say of a value, by its dotted name; `*` stands for any key or item.
_RULES: dict[str, dict[str, Any]] = {
    "format_version": {"const": FORMAT_VERSION},
    "model.pooling": {"enum": list(POOLINGS)},
    "model.bridge": {"enum": list(BRIDGES)},
    **{f"model.{k}": {"minimum": lo, "maximum": hi} for k, (lo, hi) in MODEL_BOUNDS.items()},
    "depth.min": {"const": 1},
    "depth.max": {"minimum": 1, "maximum": MAX_DEPTH},
    "depth.default": {"minimum": 1, "maximum": MAX_DEPTH},
    "depth.trained.*": {"minimum": 1, "maximum": MAX_DEPTH},
    "depth.halting.kind": {"enum": list(HALTERS)},
    "depth.halting.threshold": {"exclusiveMinimum": 0, "maximum": 1},
    "depth.halting.max": {"minimum": 1, "maximum": MAX_DEPTH},
    "precision": {"enum": list(PRECISIONS)},
    "graphs.onnx.inputs.*.dtype": {"enum": list(ELEMENT_TYPES)},
    "graphs.onnx.outputs.*.dtype": {"enum": list(ELEMENT_TYPES)},
    "tokenizer.eos_token_ids.*": {"minimum": 0},
    "tokenizer.prefix_token_ids.*": {"minimum": 0},
    "sampling.temperature": {"minimum": 0},
    "sampling.top_k": {"minimum": 0, "maximum": INT32},
    "sampling.top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "sampling.min_p": {"minimum": 0, "maximum": 1},
    "sampling.repetition_penalty": {"exclusiveMinimum": 0},
    "parity.relative_l2": {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "files.*.sha256": _SHA256,
    "files.*.bytes": {"minimum": 0, "maximum": INT64},
    "plans.*.max_new_tokens": {"minimum": 1, "maximum": INT32},
    "plans.*.max_logits": {"minimum": 1, "maximum": INT32},
    "checkpoint.sha256": _SHA256,
}


def make_schema() -> dict[str, Any]:
    """Returns the schema as JSON values; what values must agree with each other it can't say."""
    unused = set(_RULES)
    schema = _describe(Manifest, "", unused)
    if unused:
        raise ValueError(f"no key of the manifest is called {min(unused)}; this is a bug")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"manifest.json of an Ouroboros bundle, format version {FORMAT_VERSION}",
        **schema,
    }


def _describe(kind: Any, where: str, unused: set[str]) -> dict[str, Any]:
    found = _describe_type(kind, where, unused)
    if where in _RULES:
        unused.discard(where)
        found |= _RULES[where]
    return found


def _describe_type(kind: Any, where: str, unused: set[str]) -> dict[str, Any]:
    prefix = f"{where}." if where else ""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind)]
        return {
            "type": "object",
            "description": " ".join(str(kind.__doc__).split()),
            "properties": {name: _describe(hints[name], prefix + name, unused) for name in names},
            "required": [f.name for f in dataclasses.fields(kind) if f.default is _NO_DEFAULT],
            "additionalProperties": False,
        }
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        options = [_describe_type(option, where, unused) for option in arguments]
        plain = [option["type"] for option in options]
        simple = all(set(option) == {"type"} for option in options)
        return {"type": plain} if simple else {"anyOf": options}
    if origin is tuple:
        return {"type": "array", "items": _describe(arguments[0], f"{prefix}*", unused)}
    if origin is dict:
        inner = _describe(arguments[1], f"{prefix}*", unused)
        return {"type": "object", "additionalProperties": inner}
    return {"type": _PLAIN[kind]}


def render_schema() -> str:
    """The text of docs/manifest.schema.json."""
    return json.dumps(make_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(render_schema(), end="")
