"""What a manifest may say, and which of its parts must agree: bounds and contradictions.

Whoever writes a bundle can also write its hashes: what is refused here would otherwise end in an
error deep inside numpy, or in an engine that is fed what its graph does not take.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import NoReturn

from runtime.bundle import contract
from runtime.bundle.chat import check_chat
from runtime.bundle.contract import PRECISIONS, ModelNumber, Tensor, TensorSpec
from runtime.bundle.cures import EXPORT_AGAIN
from runtime.bundle.plans import PlanSpec, RangeSpec, check_plan_graph
from runtime.bundle.specs import (
    BRIDGES,
    CASES_NAME,
    HALTERS,
    HASH_NAME,
    MANIFEST_NAME,
    POOLINGS,
    DepthSpec,
    Manifest,
    ModelSpec,
    QuantizationSpec,
)
from runtime.depths import MAX_DEPTH
from runtime.errors import BundleError

ACCURACY_LEVELS = (1, 4)  # ONNX Runtime's for MatMulNBits: float32, 8-bit activations
INT32, INT64 = 2**31 - 1, 2**63 - 1
MAX_OPSET = 1000  # ONNX is at 24; ONNX Runtime says which it takes
# Least and most; far above any model there is, far below what overflows.
MODEL_BOUNDS = {
    "hidden_size": (1, 2**20),
    "num_layers": (0, 2**16),
    "prelude": (0, 2**16),
    "coda": (0, 2**16),
    "recurrent_layers": (1, 2**16),
    "num_attention_heads": (1, 2**16),
    "num_key_value_heads": (1, 2**16),
    "head_dim": (1, 2**16),
    "vocab_size": (1, 2**24),
    "max_position_embeddings": (1, INT32),
    "parameters": (1, INT64),
    "step_bytes": (1, INT64),
    "once_bytes": (1, INT64),
}


def check_model(model: ModelSpec) -> None:
    """Refuses dimensions that no model has.

    Raises:
        BundleError: one is outside its bounds.
    """
    for name, (least, most) in MODEL_BOUNDS.items():
        value = getattr(model, name)
        if value < least:
            _refuse(f"model.{name} is {shorten(value)}, allowed: {least} or more")
        if value > most:
            _refuse(f"model.{name} is {shorten(value)}, allowed: at most {most}")


def check_depth(depth: DepthSpec) -> None:
    """Refuses depths that no checkpoint has.

    Raises:
        BundleError: a range without its default, or a depth outside 1..MAX_DEPTH.
    """
    if not (depth.min == 1 and depth.min <= depth.default <= depth.max):
        _refuse(
            f"depth range {shorten(depth.min)}..{shorten(depth.max)} with default "
            f"{shorten(depth.default)} is not 1 <= default <= max"
        )
    if depth.max > MAX_DEPTH:
        _refuse(f"depth.max is {shorten(depth.max)}, allowed: at most {MAX_DEPTH}")
    for value in depth.trained:
        if not 1 <= value <= MAX_DEPTH:
            side = "below 1" if value < 1 else f"above {MAX_DEPTH}"
            _refuse(f"depth.trained holds a depth {side}")
    halting = depth.halting
    if halting is None:
        return
    if halting.kind not in HALTERS:
        _refuse(f"depth.halting.kind is {shorten(halting.kind)}, allowed: {HALTERS}")
    if not 0 < halting.threshold <= 1:
        _refuse(f"depth.halting.threshold is {halting.threshold}, allowed: above 0 and at most 1")
    if not 1 <= halting.max <= depth.max:
        _refuse(f"depth.halting.max is {shorten(halting.max)}, allowed: 1..{depth.max}")


def check_quantization(spec: QuantizationSpec) -> None:
    """Refuses what `ouro export` can't have done.

    Raises:
        BundleError: a value that is not allowed.
    """
    allowed: dict[str, tuple[object, ...]] = {
        "bits": (4, 8),
        "sensitive_bits": (4, 8),
        "block": (32, 64, 128),
        "method": ("rtn", "gptq"),
        "accuracy_level": ACCURACY_LEVELS,
    }
    for name, values in allowed.items():
        value = getattr(spec, name)
        if value not in values:
            listed = ", ".join(map(str, values))
            _refuse(f"quantization.{name} is {shorten(value)}, allowed: {listed}")
    if spec.method == "rtn" and spec.calibration is not None:
        _refuse("quantization.calibration is given, method rtn has none")
    if spec.method == "gptq" and not is_sha256(spec.calibration or ""):
        _refuse("quantization.calibration is not 64 lower-case hexadecimal digits, as gptq needs")


def check_tensors(manifest: Manifest) -> None:
    """Refuses a graph whose tensors are not those of its model and precision.

    Raises:
        BundleError: one is missing or unknown, or of another type or shape.
    """
    model, graph = manifest.model, manifest.graphs.onnx
    if not 1 <= graph.opset <= MAX_OPSET:
        _refuse(f"graphs.onnx.opset is {shorten(graph.opset)}, allowed: 1..{MAX_OPSET}")
    for side, listed, wanted in (
        ("input", graph.inputs, contract.input_tensors(model)),
        ("output", graph.outputs, contract.output_tensors(model)),
    ):
        missing = {tensor.name: tensor for tensor in wanted}
        for spec in listed:
            if spec.name not in missing:
                _refuse(f"the graph's {side} {shorten(spec.name)} is unknown here, or listed twice")
            _check_tensor(spec, missing.pop(spec.name), manifest)
        if missing:
            _refuse(f"the graph lacks the {side} {next(iter(missing))}")


def _check_tensor(spec: TensorSpec, wanted: Tensor, manifest: Manifest) -> None:
    dtype = wanted.resolve(manifest.model, manifest.precision).dtype
    if spec.dtype != dtype:
        kept = f"precision {manifest.precision} keeps keys and values in {dtype}, "
        opening = kept if wanted.dtype == contract.CACHE else ""
        instead = "" if opening else f", not {dtype!r}"
        _refuse(f"{opening}the graph's {spec.name} is {shorten(spec.dtype)}{instead}")
    if len(spec.shape) != len(wanted.shape):
        _refuse(
            f"the graph's {spec.name} has {len(spec.shape)} dimensions, not {len(wanted.shape)}"
        )
    for size, dimension in zip(spec.shape, wanted.shape, strict=True):
        if isinstance(dimension, ModelNumber):
            value = getattr(manifest.model, dimension)
            if size != value:
                _refuse(
                    f"model.{dimension} is {value}, the graph's {spec.name} has {shorten(size)}"
                )
        elif size != dimension:
            _refuse(f"the graph's {spec.name} has {shorten(size)} in the place of {dimension!r}")


def check_plan(plan: PlanSpec, manifest: Manifest) -> None:
    """Refuses a plan that can't be this bundle's, or whose profiles are none.

    Raises:
        BundleError: a file of another use, another precision, a profile without sense.
    """
    graph, tokenizer = manifest.graphs.onnx, manifest.tokenizer
    others = {graph.file, *graph.data, tokenizer.file, tokenizer.chat_template}
    others |= {"tokenizer_config.json", CASES_NAME, "LICENSE", "ATTRIBUTION"}
    if plan.file in others:
        _refuse(f"the plan {plan.file!r} is another file of the bundle's")
    if plan.precision != manifest.precision:
        _refuse(
            f"{plan.file} has the precision {plan.precision!r}, the bundle {manifest.precision!r}"
        )
    for limit in ("max_new_tokens", "max_logits"):
        if not 1 <= getattr(plan, limit) <= INT32:
            _refuse(f"{plan.file}: {limit} is {shorten(getattr(plan, limit))}, allowed: 1..{INT32}")
    if not plan.profiles:
        _refuse(f"{plan.file} has no profile")
    ranks = {tensor.name: len(tensor.shape) for tensor in graph.inputs}
    for profile in plan.profiles:
        where = f"{plan.file}, profile {profile.name!r}"
        for one in (*profile.shapes, *profile.values):
            if one.name not in ranks:
                _refuse(f"{where}: the graph has no input {one.name!r}")
            _check_range(one, where)
        for one in profile.shapes:
            if len(one.max) != ranks[one.name]:
                _refuse(
                    f"{where}: {one.name} has {len(one.max)} dimensions, the graph's has "
                    f"{ranks[one.name]}"
                )


def _check_range(one: RangeSpec, where: str) -> None:
    if not len(one.min) == len(one.opt) == len(one.max):
        _refuse(f"{where}: min, opt and max of {one.name} differ in length")
    for low, best, high in zip(one.min, one.opt, one.max, strict=True):
        if not 0 <= low <= best <= high <= INT64:
            _refuse(
                f"{where}: {one.name} goes from {shorten(low)} by {shorten(best)} to "
                f"{shorten(high)}, not 0 <= min <= opt <= max"
            )


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
        raise BundleError(
            f"{MANIFEST_NAME} names the file {name!r}, outside the bundle", EXPORT_AGAIN
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        _refuse(message)


def check_manifest(manifest: Manifest) -> None:
    """Refuses values that are out of bounds or contradict each other.

    Raises:
        BundleError: naming the first of them.
    """
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
    _require(
        model.halting == (manifest.depth.halting is not None),
        f"model.halting is {str(model.halting).lower()}, and depth.halting "
        f"{'is missing' if model.halting else 'is there all the same'}",
    )
    _check_files(manifest)
    if manifest.tokenizer.chat is not None:
        check_chat(manifest.tokenizer.chat)
    _check_numbers(manifest)
    onnx = manifest.graphs.onnx
    for plan in manifest.plans:
        _require(plan.file in manifest.files, f"{plan.file!r} is used but not listed under files")
        graph_files = (onnx.file, *onnx.data)
        check_plan_graph(plan, {name: manifest.files[name].sha256 for name in graph_files})
        check_plan(plan, manifest)
    if manifest.quantization is not None:
        check_quantization(manifest.quantization)
    check_tensors(manifest)
    _check_tokens(manifest)


def _check_files(manifest: Manifest) -> None:
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


def _check_numbers(manifest: Manifest) -> None:
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


def _check_tokens(manifest: Manifest) -> None:
    model = manifest.model
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


def is_sha256(text: str) -> bool:
    """64 lower-case hexadecimal digits."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def shorten(value: object) -> str:
    """A value as Python writes it, cut to 60 characters."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _refuse(message: str) -> NoReturn:
    raise BundleError(f"{MANIFEST_NAME}: {message}", EXPORT_AGAIN)
