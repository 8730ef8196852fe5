"""Writes src/bundle/contract.hpp from runtime/bundle/contract.py: the tensors of the graph in C++.

python runtime/cpp/tools/make_contract.py

writes it anew; a test compares what stands there with what would be written.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
TARGET = ROOT / "runtime" / "cpp" / "src" / "bundle" / "contract.hpp"
sys.path.insert(0, str(ROOT))

from runtime.bundle import contract  # noqa: E402
from runtime.bundle.contract import ModelNumber, Tensor  # noqa: E402

NAMES = (
    *("INPUT_IDS", "POSITION_IDS", "ATTENTION_MASK", "DEPTH", "ROW_DEPTH", "LOGIT_INDEX"),
    *("PAST_POOL_SUM", "HALT_THRESHOLD", "DEPTH_USED", "LOGITS", "POOL_SUM"),
    *("PAST_PREFIX", "NEW_PREFIX", "RECURRENT"),
    *("BATCH", "NEW", "PAST", "TOTAL", "PICKED", "SLOTS", "CACHE"),
)
SIZES = ("BUCKET", "PREFILL_CHUNK", "SCORE_CHUNK")
LISTS = ("PARTS", "COMPARED_OUTPUTS", "ROWLESS")

HEAD = """\
// Written by runtime/cpp/tools/make_contract.py from runtime/bundle/contract.py: do not edit.
// The graph's tensors: the one place in C++ that spells their names, order, types and dimensions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace ouro::core {

struct ModelSpec;  // bundle/manifest.hpp

// A dimension: a number, or the name of one that differs from call to call.
using Dimension = std::variant<std::int64_t, std::string>;

// One input or output of a bundle's graph.
struct TensorSpec {
  std::string name, dtype;
  std::vector<Dimension> shape;
};

namespace contract {

"""

TYPES = """
// An element type by its names: in manifests, ONNX's number, ONNX Runtime's, Triton's.
struct ElementType {
  const char* name;
  std::int64_t item_bytes;
  int onnx_number;
  const char* ort;
  const char* triton;
};

// What a bundle computes in and stores; bits 0 where weights are floats of `compute`.
struct PrecisionSpec {
  const char* name;
  const char* compute;
  std::int64_t bits;
};

// A dimension of any bundle's tensor: a number, a name, a name times k where the loop runs k layers,
// or one of the model's numbers.
struct Size {
  enum Kind { kNumber, kName, kStacked, kModel } kind;
  std::int64_t number;
  const char* name;
};

// A tensor of any bundle, or the keys and values of every kept layer, or of the looped ones, whose
// name is then a prefix: the layer and one of kParts follow. dtype kCache is the type that the
// bundle's precision computes in.
struct Tensor {
  enum Kind { kPlain, kKept, kLooped, kHalting } kind;
  const char* name;
  const char* dtype;
  std::size_t rank;
  Size shape[5];
};

"""

TAIL = """
// The element type or precision of that name; null where there is none.
const ElementType* find_type(std::string_view name);
const PrecisionSpec* find_precision(std::string_view name);

// The input that holds the past keys or values ("key", "value") of a kept layer ("0") or of
// kRecurrent, and the output that holds the new ones.
std::string past_name(std::string_view layer, std::string_view part);
std::string new_name(std::string_view layer, std::string_view part);

// A tensor of a model's graph by its full name.
struct NamedTensor {
  std::string name;
  const Tensor* tensor;
};

// Every input and output of a model's graph, in order.
std::vector<NamedTensor> input_tensors(const ModelSpec& model);
std::vector<NamedTensor> output_tensors(const ModelSpec& model);

// The tensor of one bundle; `precision` is a name of kPrecisions.
TensorSpec resolve(const NamedTensor& one, const ModelSpec& model, std::string_view precision);

// The inputs and outputs of a bundle's graph, in order; `precision` is a name of kPrecisions.
std::vector<TensorSpec> inputs(const ModelSpec& model, std::string_view precision);
std::vector<TensorSpec> outputs(const ModelSpec& model, std::string_view precision);

// The number that a dimension is in one call, from what its names stand for ("4 * slots" is four
// times "slots"). Throws engine_error where a name is not among `sizes`.
std::int64_t resolve_size(const Dimension& size, const std::map<std::string, std::int64_t>& sizes);

}  // namespace contract
}  // namespace ouro::core
"""


def render() -> str:
    """The text of contract.hpp."""
    parts = [HEAD]
    for name in NAMES:
        parts.append(f'inline constexpr char {_constant(name)}[] = "{getattr(contract, name)}";\n')
    for name in SIZES:
        value = getattr(contract, name)
        parts.append(f"inline constexpr std::int64_t {_constant(name)} = {value};\n")
    for name in LISTS:
        listed = ", ".join(f'"{one}"' for one in getattr(contract, name))
        parts.append(
            _wrap(f"inline constexpr const char* {_constant(name)}[] = {{", listed, "};\n")
        )
    parts.append(TYPES)
    rows = [
        f'{{"{t.name}", {t.item_bytes}, {t.onnx_number}, "{t.ort}", "{t.triton}"}}'
        for t in contract.ELEMENT_TYPES.values()
    ]
    parts.append(_table("ElementType", "kElementTypes", rows))
    rows = [
        f'{{"{p.name}", "{p.compute}", {p.bits or 0}}}' for p in contract.PRECISIONS.values()
    ]
    parts.append(_table("PrecisionSpec", "kPrecisions", rows))
    parts.append("\n// Every input and output, in order.\n")
    for name, tensors in (("Inputs", contract.input_tensors), ("Outputs", contract.output_tensors)):
        parts.append(_table("Tensor", f"k{name}", _tensors(tensors)))
    return "".join([*parts, TAIL])


def _tensors(tensors: Callable[[Any], Iterable[Tensor]]) -> Iterator[str]:
    """The rows of a side's table, from the tensors of small models."""
    model, looped, plain = (
        SimpleNamespace(num_layers=1, recurrent_layers=k, halting=halting)
        for k, halting in ((1, True), (2, True), (1, False))
    )
    unhalted = {tensor.name for tensor in tensors(plain)}
    twice = {tensor.name: tensor.shape for tensor in tensors(looped)}
    for tensor in tensors(model):
        prefix = tensor.name.partition(".")[0] + "."
        end = tensor.name.removeprefix(prefix)
        if end in contract.cache_ends(1):
            if not end.endswith(contract.PARTS[0]):
                continue  # values lie as keys do
            kind = "kLooped" if end.startswith(contract.RECURRENT) else "kKept"
            yield _row(kind, dataclasses.replace(tensor, name=prefix), twice[tensor.name])
        else:
            kind = "kPlain" if tensor.name in unhalted else "kHalting"
            yield _row(kind, tensor, twice[tensor.name])


def _row(kind: str, tensor: Tensor, twice: tuple[int | str, ...]) -> str:
    sizes = []
    for size, double in zip(tensor.shape, twice, strict=True):
        if isinstance(size, int):
            sizes.append(f"{{Size::kNumber, {size}, nullptr}}")
        elif isinstance(size, ModelNumber):
            sizes.append(f'{{Size::kModel, 0, "{size}"}}')
        else:
            stacked = double == f"2 * {size}"
            assert stacked or size == double, tensor
            sizes.append(f'{{Size::{"kStacked" if stacked else "kName"}, 0, "{size}"}}')
    opening = f'Tensor::{kind}, "{tensor.name}", "{tensor.dtype}", {len(sizes)}'
    lines = ",\n      ".join(sizes)
    return f"{{{opening},\n     {{{lines}}}}}"


def _constant(name: str) -> str:
    return "k" + "".join(word.capitalize() for word in name.split("_"))


def _wrap(opening: str, content: str, closing: str) -> str:
    line = f"{opening}{content}{closing}"
    if len(line) <= 101:
        return line
    return f"{opening}\n    {content}{closing}"


def _table(kind: str, name: str, rows: Iterable[str]) -> str:
    lines = "".join(f"    {row},\n" for row in rows)
    return f"inline constexpr {kind} {name}[] = {{\n{lines}}};\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
