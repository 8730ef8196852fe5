"""The bundle's manifest: frozen dataclasses, read strictly from JSON.

Every key must be there and no other may: a manifest this version does not fully understand is
refused by the name of the first thing that is wrong, never half-read. A key that is added, removed
or changes its meaning takes a new FORMAT_VERSION, so that an older bundle is refused as one.
The hash of its bytes stands in a file beside it (see `check_hash`), so that a changed manifest is
seen as well as a changed file. `docs/bundle.md` is the specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
import unicodedata
from pathlib import PurePosixPath
from typing import Any, TypeVar

from runtime.bundle.chat import ChatSpec, check_chat
from runtime.bundle.contract import PRECISIONS, TensorSpec
from runtime.bundle.plans import PlanSpec, check_plan_graph
from runtime.bundle.rules import ACCURACY_LEVELS as ACCURACY_LEVELS
from runtime.bundle.rules import (
    INT32,
    INT64,
    check_depth,
    check_model,
    check_plan,
    check_quantization,
    check_tensors,
    is_sha256,
    shorten,
)
from runtime.errors import BundleError

FORMAT_VERSION = 4
MANIFEST_NAME = "manifest.json"
HASH_NAME = "manifest.sha256"  # as `sha256sum manifest.json` prints it
POOLINGS = ("causal", "mean", "token")
BRIDGES = ("none", "entry", "exit")

SPECIAL_TOKENS = ("tokenizer.bos_token", "tokenizer.eos_token")  # may be a line break
CHAT = "tokenizer.chat."  # its pieces hold line breaks

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Dimensions of the model.

    `bridge` says where a linear map stands beside the loop, `recurrent_layers` how many layers the
    loop runs in each step, `halting` whether the graph can choose its depth (`halt_threshold`,
    `depth_used`). `step_bytes` and `once_bytes` are what a token reads of the weights as they are
    stored: in every step of the loop, and in everything around it.
    """

    source: str
    model_type: str
    hidden_size: int
    num_layers: int
    prelude: int
    coda: int
    recurrent_layers: int
    bridge: str
    halting: bool
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    pooling: str
    parameters: int
    step_bytes: int
    once_bytes: int


@dataclasses.dataclass(frozen=True)
class DepthSpec:
    """The depths a bundle accepts, its default, and those the model was trained at."""

    min: int
    max: int
    default: int
    trained: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """The ONNX file, the files that hold its large weights, and its tensors."""

    file: str
    data: tuple[str, ...]
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclasses.dataclass(frozen=True)
class GraphsSpec:
    """The graphs of a bundle by flavour."""

    onnx: GraphSpec


@dataclasses.dataclass(frozen=True)
class TokenizerSpec:
    """Tokenizer file, chat template and special tokens.

    `prefix_token_ids` go before every text that begins a sequence. `chat` is the chat template as
    plain data, null where there is none or it can't be had so.
    """

    file: str
    chat_template: str | None
    chat: ChatSpec | None
    bos_token: str | None
    eos_token: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    prefix_token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
    """Sampling used where a request names none.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclasses.dataclass(frozen=True)
class QuantizationSpec:
    """How integer weights were made, and the arithmetic that the engine runs them in.

    bits: of the matrices that bear it; sensitive_bits: of those whose errors cost most, among them
        embedding, LM head and all of the looped layer.
    method: "rtn" (round to nearest) or "gptq".
    calibration: sha256 of the calibration tokens; None for "rtn".
    accuracy_level: ONNX Runtime's for MatMulNBits: 1 float32, 4 8-bit activations.
    """

    bits: int
    sensitive_bits: int
    block: int
    symmetric: bool
    method: str
    calibration: str | None
    accuracy_level: int


@dataclasses.dataclass(frozen=True)
class ParitySpec:
    """The bounds of the parity check, and the type of PyTorch's recorded outputs.

    relative_l2: on the error against PyTorch; of a half-precision bundle, each case is also
        allowed twice the error that PyTorch itself makes at that precision.
    kl: in nats, on what the engine's fast arithmetic may add; None where it has none.
    """

    relative_l2: float
    kl: float | None
    float: str


@dataclasses.dataclass(frozen=True)
class FileSpec:
    """Hash and size of one file."""

    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
    """The checkpoint a bundle was exported from."""

    sha256: str
    name: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself."""

    format_version: int
    model: ModelSpec
    depth: DepthSpec
    precision: str
    quantization: QuantizationSpec | None
    graphs: GraphsSpec
    tokenizer: TokenizerSpec
    sampling: SamplingSpec
    parity: ParitySpec
    files: dict[str, FileSpec]
    plans: tuple[PlanSpec, ...]
    checkpoint: CheckpointSpec
    tools: dict[str, str]

    @property
    def cache_dtype(self) -> str:
        """The type of keys and values, such as float32."""
        return PRECISIONS[self.precision].compute

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def parse(data: object) -> Manifest:
        """Reads a manifest from JSON values.

        Raises:
            BundleError: a version, key or value that this version does not understand.
        """
        return parse_manifest(data)


def parse_manifest_text(text: str | bytes) -> Manifest:
    """Reads a manifest from the text of manifest.json.

    Raises:
        BundleError: not JSON, or not a manifest this version understands.
    """
    return parse_manifest(_read_json(text))


def check_hash(text: bytes, said: bytes | None) -> None:
    """Compares the bytes of manifest.json with the hash beside it.

    Args:
        text: of manifest.json.
        said: the content of manifest.sha256: the sha256 in lower-case hexadecimal, two spaces and
            the name, as `sha256sum` prints it; None where there is no such file.

    Raises:
        BundleError: an older bundle, which has none; or they differ.
    """
    if said is None:
        check_version(_read_json(text))
        raise BundleError(f"the bundle lacks {HASH_NAME}", "copy or export it again")
    if said != render_hash(text):
        raise BundleError(
            f"{MANIFEST_NAME} is damaged or was changed: its sha256 is not the one in {HASH_NAME}",
            "copy or export the bundle again",
        )


def render_hash(text: bytes) -> bytes:
    """The content of manifest.sha256."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST_NAME}\n".encode()


def render_manifest(data: dict[str, Any]) -> str:
    """The text of manifest.json as it is written; any other JSON of the same values reads alike."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _read_json(text: str | bytes) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_NAME} is not JSON: {str(error).splitlines()[0]}") from error


def check_version(data: object) -> dict[str, Any]:
    """Refuses what is no manifest of this version, and returns what is.

    Raises:
        BundleError: not an object, or of another format version.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{MANIFEST_NAME} holds a {type(data).__name__}, not an object")
    version = data.get("format_version")
    if version is None:
        raise BundleError(f"{MANIFEST_NAME} has no format_version", "is this an Ouroboros bundle?")
    if type(version) is not int or version != FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        advice = "update ouroboros" if newer else "export the checkpoint again"
        raise BundleError(
            f"bundle format_version {shorten(version)} is not the {FORMAT_VERSION} that this "
            f"version reads",
            f"{advice}",
        )
    return data


def parse_manifest(data: object) -> Manifest:
    """Reads a manifest from JSON values; see `Manifest.parse`."""
    manifest = typing.cast(Manifest, _read(Manifest, check_version(data), ""))
    _check(manifest)
    return manifest


def check_file_name(name: str) -> None:
    """Refuses a file name that could lead out of the bundle.

    Raises:
        BundleError: absolute, with `..`, a backslash, a drive or `*` (which ONNX Runtime reads as
            an address in memory), or not in its simplest form.
    """
    path = PurePosixPath(name)
    unsafe = (
        not path.parts
        or path.is_absolute()
        or str(path) != name
        or any(part in ("..", ".") for part in path.parts)
        or any(character in name for character in "\\:*")
        or any(ord(character) < 32 for character in name)
    )
    if unsafe:
        raise BundleError(f"{MANIFEST_NAME} names the file {name!r}, outside the bundle")


def _is_plain(text: str) -> bool:
    """No control characters, which steer a terminal, and no half of a surrogate pair."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} appears twice")
        result[key] = value
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _read(kind: Any, value: Any, where: str) -> Any:
    """Reads `value` as the type `kind`; `where` is its dotted name for the error message."""
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        for option in arguments:
            try:
                return _read(option, value, where)
            except BundleError:
                continue
        raise _wrong(where, value, " or ".join(_type_name(option) for option in arguments))
    if kind is type(None):
        if value is None:
            return None
        raise _wrong(where, value, "null")
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        for key in value:
            if not _is_plain(key):
                raise _wrong(f"a key of {where}", key, "text without control characters")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        if abs(value) > 2**53:
            raise _wrong(where, value, "a number of that size")
        return float(value)
    if type(value) is not kind:
        raise _wrong(where, value, _type_name(kind))
    free = where in SPECIAL_TOKENS or where.startswith(CHAT)
    if kind is str and not free and not _is_plain(value):
        raise _wrong(where, value, "text without control characters")
    return value


def _read_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise BundleError(f"{MANIFEST_NAME} has the unknown key {prefix}{repr(key)[1:-1]}")
    for field in dataclasses.fields(kind):
        if field.name not in value:
            raise BundleError(f"{MANIFEST_NAME} lacks the key {prefix}{field.name}")
    return kind(**{key: _read(hints[key], value[key], prefix + key) for key in value})


def _type_name(kind: Any) -> str:
    names = {type(None): "null", str: "a string", int: "an integer", float: "a number"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _wrong(where: str, value: object, wanted: str) -> BundleError:
    return BundleError(f"{MANIFEST_NAME}: {where} is {shorten(value)}, not {wanted}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BundleError(f"{MANIFEST_NAME}: {message}")


def _check(manifest: Manifest) -> None:
    """Refuses values that contradict each other."""
    model = manifest.model
    check_model(model)
    _require(
        model.num_layers == model.prelude + model.coda,
        f"model.num_layers is {model.num_layers}, not prelude + coda = {model.prelude}"
        f" + {model.coda}",
    )
    _require(model.pooling in POOLINGS, f"model.pooling is {model.pooling!r}, allowed: {POOLINGS}")
    _require(model.bridge in BRIDGES, f"model.bridge is {model.bridge!r}, allowed: {BRIDGES}")
    check_depth(manifest.depth)
    for name, file in manifest.files.items():
        check_file_name(name)
        _require(name not in (MANIFEST_NAME, HASH_NAME), f"files lists {name} itself")
        _require(
            is_sha256(file.sha256), f"files.{name}.sha256 is not 64 lower-case hexadecimal digits"
        )
        _require(
            0 <= file.bytes <= INT64,
            f"files.{name}.bytes is {shorten(file.bytes)}, allowed: 0..{INT64}",
        )
    used = [manifest.graphs.onnx.file, *manifest.graphs.onnx.data, manifest.tokenizer.file]
    if manifest.tokenizer.chat_template is not None:
        used.append(manifest.tokenizer.chat_template)
    for name in used:
        check_file_name(name)
        _require(name in manifest.files, f"{name!r} is used but not listed under files")
    if manifest.tokenizer.chat is not None:
        check_chat(manifest.tokenizer.chat)
    sampling, bound = manifest.sampling, manifest.parity.relative_l2
    _require(
        0 <= sampling.temperature < float("inf")
        and 0 <= sampling.top_k <= INT32
        and 0 < sampling.top_p <= 1
        and 0 <= sampling.min_p <= 1
        and 0 < sampling.repetition_penalty < float("inf"),
        f"sampling needs a finite temperature >= 0, top_k in 0..{INT32}, 0 < top_p <= 1, "
        "0 <= min_p <= 1 and a finite repetition_penalty > 0",
    )
    _require(0 < bound < 1, f"parity.relative_l2 is {bound}, allowed: above 0 and below 1")
    kl = manifest.parity.kl
    _require(kl is None or 0 < kl < 1, f"parity.kl is {kl}, allowed: above 0 and below 1, or null")
    precision, quantization = manifest.precision, manifest.quantization
    _require(precision in PRECISIONS, f"precision is {precision!r}, allowed: {tuple(PRECISIONS)}")
    bits = None if quantization is None else quantization.bits
    _require(
        PRECISIONS[precision].bits == bits,
        f"precision {precision} with quantization of {bits} bits",
    )
    _require(
        is_sha256(manifest.checkpoint.sha256),
        "checkpoint.sha256 is not 64 lower-case hexadecimal digits",
    )
    onnx = manifest.graphs.onnx
    for plan in manifest.plans:
        _require(plan.file in manifest.files, f"{plan.file!r} is used but not listed under files")
        graph_files = (onnx.file, *onnx.data)
        check_plan_graph(plan, {name: manifest.files[name].sha256 for name in graph_files})
        check_plan(plan, manifest)
    if quantization is not None:
        check_quantization(quantization)
    check_tensors(manifest)
    identifiers = [*manifest.tokenizer.eos_token_ids, *manifest.tokenizer.prefix_token_ids]
    identifiers += [
        i
        for i in (manifest.tokenizer.bos_token_id, manifest.tokenizer.pad_token_id)
        if i is not None
    ]
    for identifier in identifiers:
        _require(
            0 <= identifier < model.vocab_size,
            f"tokenizer: token id {shorten(identifier)} is outside 0..{model.vocab_size - 1}",
        )
