"""Writes src/bundle/contract.hpp from runtime/bundle: what manifests say, the graph's tensors.

And src/defaults.hpp, from the options of a generation and of a measurement.

python -m runtime.cpp.tools.make_contract

writes them anew; a test compares what stands there with what would be written.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.bundle import chat, contract, external_data, reader, rules, specs
from runtime.bundle.contract import ModelNumber, Tensor
from runtime.decode.options import Options
from runtime.depths import MAX_DEPTH
from runtime.measure.options import CONTEXTS, BenchOptions

ROOT = Path(__file__).resolve().parents[3]
TARGET = ROOT / "runtime" / "cpp" / "src" / "bundle" / "contract.hpp"
DEFAULTS = ROOT / "runtime" / "cpp" / "src" / "defaults.hpp"

NAMES = (
    *("INPUT_IDS", "POSITION_IDS", "ATTENTION_MASK", "DEPTH", "ROW_DEPTH", "LOGIT_INDEX"),
    *("PAST_POOL_SUM", "HALT_THRESHOLD", "DEPTH_USED", "LOGITS", "POOL_SUM"),
    *("PAST_PREFIX", "NEW_PREFIX", "RECURRENT"),
    *("BATCH", "NEW", "PAST", "TOTAL", "PICKED", "SLOTS", "CACHE"),
)
SIZES = ("BUCKET", "PREFILL_CHUNK", "SCORE_CHUNK")
LISTS = ("PARTS", "COMPARED_OUTPUTS", "ROWLESS")
SCALARS = {str: "std::string", int: "std::int64_t", float: "double", bool: "bool"}
RENAMED = {"default": "default_depth", "float": "float_type"}  # no names in C++

HEAD = """\
// Written by runtime/cpp/tools/make_contract.py from runtime/bundle: do not edit.
//
// What a bundle's manifest says (bundle/manifest.hpp reads it), and the graph's tensors: the one
// place in C++ that spells their names, order, types and dimensions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace ouro::core {

// A dimension: a number, or the name of one that differs from call to call.
using Dimension = std::variant<std::int64_t, std::string>;

// A JSON object of values of one kind, in the order of the file; its keys differ.
template <class Value>
using Named = std::vector<std::pair<std::string, Value>>;

using Texts = std::initializer_list<const char*>;

"""

BOUND = """
// The least and most that a number of the model may be.
struct ModelBound {
  const char* name;
  std::int64_t ModelSpec::*field;
  std::int64_t least, most;
};
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

// A dimension of any bundle's tensor: a number, a name, a name times k where the loop runs k,
// or the number of the model that `field` is.
struct Size {
  enum Kind { kNumber, kName, kStacked, kModel } kind;
  std::int64_t number;
  const char* name;
  std::int64_t ModelSpec::*field;
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

// A field of an ONNX message that leads to an external tensor, and the message it holds.
struct Lead {
  const char* message;
  int field;
  const char* holds;
};

"""

TAIL = """
// The element type or precision of that name; null where there is none.
const ElementType* find_type(std::string_view name);
const PrecisionSpec* find_precision(std::string_view name);

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

// What any bundle says of an input or output of its own name, as kDepth or kLogits.
TensorSpec input(std::string_view name, const ModelSpec& model, std::string_view precision);
TensorSpec output(std::string_view name, const ModelSpec& model, std::string_view precision);

// What holds the keys, and like them the values, of a kept layer and of the loop. A kept layer's is
// the first one's, even of a model that keeps none.
std::pair<TensorSpec, TensorSpec> past_specs(const ModelSpec& model, std::string_view precision);

// What the names of dimensions stand for in one call.
using Sizes = std::map<std::string, std::int64_t>;

// The number that a dimension is in one call, from what its names stand for ("4 * slots" is four
// times "slots"). Throws engine_error where a name is not among `sizes`.
std::int64_t resolve_size(const Dimension& size, const Sizes& sizes);

// The numbers that a tensor's dimensions are in one call, as resolve_size gives them.
std::vector<std::int64_t> resolve_shape(const TensorSpec& one, const Sizes& sizes);

}  // namespace contract
}  // namespace ouro::core
"""

DEFAULTS_HEAD = """\
// Written by runtime/cpp/tools/make_contract.py from runtime/decode/options.py and
// runtime/measure/options.py: do not edit.
//
// What options are where they are not given.
#pragma once

#include <cstdint>

namespace ouro::core {

"""


def render_defaults() -> str:
    """The text of defaults.hpp."""
    bench = BenchOptions()
    numbers = {
        "MAX_NEW_TOKENS": Options().max_new_tokens,
        "BENCH_TOKENS": bench.tokens,
        "BENCH_REPEATS": bench.repeats,
    }
    lines = [
        f"inline constexpr std::int64_t {_constant(name)} = {number};\n"
        for name, number in numbers.items()
    ]
    contexts = ", ".join(map(str, CONTEXTS))
    lines.append(f"inline constexpr std::int64_t kBenchContexts[] = {{{contexts}}};\n")
    return "".join([DEFAULTS_HEAD, *lines, "\n}  // namespace ouro::core\n"])


def render() -> str:
    """The text of contract.hpp."""
    return "".join([HEAD, *_specs(), "\nnamespace contract {\n\n", *_contract(), TAIL])


def _specs() -> list[str]:
    """What a manifest says."""
    parts = []
    for name, number in (
        ("FORMAT_VERSION", specs.FORMAT_VERSION),
        ("MAX_DEPTH", MAX_DEPTH),
        ("MAX_OPSET", rules.MAX_OPSET),
        ("INT32", rules.INT32),
        ("INT64", rules.INT64),
        ("MANIFEST_BYTES_LIMIT", reader.MANIFEST_BYTES_LIMIT),
        ("HASH_BYTES_LIMIT", reader.HASH_BYTES_LIMIT),
    ):
        parts.append(f"inline constexpr std::int64_t {_constant(name)} = {number};\n")
    for name in ("MANIFEST_NAME", "HASH_NAME", "CASES_NAME"):
        parts.append(f'inline constexpr char {_constant(name)}[] = "{getattr(specs, name)}";\n')
    for home, names in (
        (specs, ("POOLINGS", "BRIDGES", "HALTERS")),
        (chat, ("ROLES", "ORDERS", "STRIPS", "FOLDS")),
    ):
        for name in names:
            listed = ", ".join(f'"{one}"' for one in getattr(home, name))
            parts.append(f"inline constexpr Texts {_constant(name)} = {{{listed}}};\n")
    kinds = list(dict.fromkeys(_kinds(specs.Manifest)))
    parts += [_struct(kind) for kind in kinds]
    parts.append("\n// What errors call a kind of value.\n")
    called = {"std::string": "a string", "std::int64_t": "an integer", "double": "a number"}
    called |= {kind.__name__: kind.__name__ for kind in kinds}
    parts += [
        f'inline const char* kind_name(const {spelled}&) {{ return "{name}"; }}\n'
        for spelled, name in called.items()
    ]
    parts.append(
        "\n// The keys of each part and its fields: `add(key, field)` for one after another."
    )
    parts += [_listing(kind) for kind in kinds]
    rows = [
        f'{{"{name}", &ModelSpec::{name}, {least}, {most}}}'
        for name, (least, most) in rules.MODEL_BOUNDS.items()
    ]
    return [*parts, BOUND, _table("ModelBound", "kModelBounds", rows)]


def _kinds(kind: type) -> Iterator[type]:
    """The dataclasses that one is made of, each after those it needs."""
    for hint in typing.get_type_hints(kind).values():
        yield from _inner(hint)
    yield kind


def _inner(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield from _kinds(typing.cast(type, hint))
    for argument in typing.get_args(hint):
        yield from _inner(argument)


def _struct(kind: type) -> str:
    summary = (kind.__doc__ or "").splitlines()[0]
    hints = typing.get_type_hints(kind)
    lines = [
        f"  {_spell(hints[field.name])} {RENAMED.get(field.name, field.name)}{{}};\n"
        for field in dataclasses.fields(kind)
    ]
    if kind is specs.Manifest:
        lines.append("\n  // The type of keys and values, such as float32.\n")
        lines.append("  const char* cache_dtype() const;\n")
    return f"\n// {summary}\nstruct {kind.__name__} {{\n{''.join(lines)}}};\n"


def _spell(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if set(arguments) == {int, str}:
            return "Dimension"
        inner, nothing = arguments
        assert nothing is type(None), hint
        return f"std::optional<{_spell(inner)}>"
    if origin is tuple:
        assert arguments[1:] == (...,), hint
        return f"std::vector<{_spell(arguments[0])}>"
    if origin is dict:
        assert arguments[0] is str, hint
        return f"Named<{_spell(arguments[1])}>"
    return SCALARS.get(hint, getattr(hint, "__name__", ""))


def _listing(kind: type) -> str:
    lines = [
        f'  add("{field.name}", it.{RENAMED.get(field.name, field.name)});\n'
        for field in dataclasses.fields(kind)
    ]
    # One key alone may be missing, which the reader spells out.
    may_lack = [f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING]
    assert may_lack == (["halting"] if kind is specs.DepthSpec else []), kind
    opening = f"template <class Add>\nvoid list_fields({kind.__name__}& it, Add&& add) {{\n"
    return f"\n{opening}{''.join(lines)}}}\n"


def _contract() -> list[str]:
    """The graph's tensors."""
    parts = []
    for name in NAMES:
        parts.append(f'inline constexpr char {_constant(name)}[] = "{getattr(contract, name)}";\n')
    for name in SIZES:
        value = getattr(contract, name)
        parts.append(f"inline constexpr std::int64_t {_constant(name)} = {value};\n")
    for name in LISTS:
        rows = [f'"{one}"' for one in getattr(contract, name)]
        parts.append(_table("const char*", _constant(name), rows))
    parts.append(TYPES)
    rows = [
        f'{{"{t.name}", {t.item_bytes}, {t.onnx_number}, "{t.ort}", "{t.triton}"}}'
        for t in contract.ELEMENT_TYPES.values()
    ]
    parts.append(_table("ElementType", "kElementTypes", rows))
    rows = [f'{{"{p.name}", "{p.compute}", {p.bits or 0}}}' for p in contract.PRECISIONS.values()]
    parts.append(_table("PrecisionSpec", "kPrecisions", rows))
    listed = ", ".join(f'"{name}"' for name in contract.PRECISIONS)
    parts.append(f"inline constexpr Texts kPrecisionNames = {{{listed}}};\n")
    parts.append("\n// Every input and output, in order.\n")
    for name, tensors in (("Inputs", contract.input_tensors), ("Outputs", contract.output_tensors)):
        parts.append(_table("Tensor", f"k{name}", _tensors(tensors)))
    rows = [
        f'{{"{message}", {field}, "{holds}"}}'
        for message, fields in external_data.LEADS.items()
        for field, holds in fields.items()
    ]
    return [*parts, _table("Lead", "kLeads", rows)]


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
            sizes.append(f"{{Size::kNumber, {size}, nullptr, nullptr}}")
        elif isinstance(size, ModelNumber):
            sizes.append(f'{{Size::kModel, 0, "{size}", &ModelSpec::{size}}}')
        else:
            stacked = double == f"2 * {size}"
            assert stacked or size == double, tensor
            sizes.append(f'{{Size::{"kStacked" if stacked else "kName"}, 0, "{size}", nullptr}}')
    opening = f'Tensor::{kind}, "{tensor.name}", "{tensor.dtype}", {len(sizes)}'
    lines = ",\n      ".join(sizes)
    return f"{{{opening},\n     {{{lines}}}}}"


def _constant(name: str) -> str:
    return "k" + "".join(word.capitalize() for word in name.split("_"))


def _table(kind: str, name: str, rows: Iterable[str]) -> str:
    lines = "".join(f"    {row},\n" for row in rows)
    return f"inline constexpr {kind} {name}[] = {{\n{lines}}};\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    DEFAULTS.write_text(render_defaults(), encoding="utf-8")
