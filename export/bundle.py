"""Checkpoint to bundle: graph, manifest, tokenizer, recorded cases, licence."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors import SafetensorError

from export.cases import record_cases
from export.chat import compile_checkpoint_chat
from export.errors import ExportError, refuse_unused
from export.graph.compile import compile_graph
from export.graph.halting import require_halter
from export.graph.passes.opset import check_opset
from export.graph.passes.result import PassResult
from export.graph.storage import save_graph
from export.manifest import describe_bundle
from export.options import DEFAULT_MAX_DEPTH, ExportOptions, TrtOptions, with_paths
from export.precision import Precision, find_precision
from export.quantize.model import Quantization, quantize_model
from export.quantize.options import as_trained, cut_calibration, make_quantization
from export.tensorrt.builder import GraphFacts, build_plans
from export.tensorrt.check import require_buildable
from export.tensorrt.options import check_options
from export.tensorrt.refit import find_refittable, refit_plans
from export.tokens import (
    TEMPLATE,
    TOKENIZER,
    describe_tokens,
    name_unused,
    name_unused_templates,
)
from ouroboros.checkpoint import checkpoint_sha256, load_checkpoint, read_config
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.text.corpus import read_whole
from runtime.bundle.plans import PlanSpec
from runtime.bundle.reader import CASES_NAME, write_manifest
from runtime.files.atomic import check_place, publish
from runtime.files.destinations import BUNDLE
from runtime.parity.cases import save_cases

FORMATS = ("onnx", "trt")
PLANS = "plans"
GRAPH_NAME = "model.onnx"

PlanBuilder = Callable[[Path, Mapping[str, str]], tuple[list[PlanSpec], dict[str, str]]]
"""See `plan_builder`."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        seconds: wall time.
        bytes: size of the bundle.
        nodes: nodes of the graph, the loop's body included.
        passes: what each graph pass changed, in order.
        plans: the TensorRT plans.
    """

    seconds: float
    bytes: int
    nodes: int
    passes: tuple[PassResult, ...]
    plans: tuple[PlanSpec, ...]


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    trt: TrtOptions | None = None,
    report: Callable[[str], None] | None = None,
    **changes: Any,
) -> ExportReport:
    """Exports `checkpoint` to the bundle directory `out`, atomically.

    Args:
        checkpoint: an Ouroboros checkpoint.
        out: the bundle to write.
        options: how; None for the defaults.
        trt: how plans are built; None for TensorRT's defaults. Only with format `trt`.
        report: called with a line of progress now and then.
        changes: options by name, in place of those of `options`.

    Raises:
        ExportError: an option is not allowed or would have no effect, or the model can't be
            traced or written.
        CheckpointError: the checkpoint can't be loaded.
        ConfigError: its config says what no model is.
        BundleError: that of `refit_from` is not whole.
        DataError: the calibration text is unusable or too short.
        TypeError: there is no such option.
    """
    asked = with_paths(replace(options or ExportOptions(), **changes))
    trt = trt and with_paths(trt)
    started = time.perf_counter()
    say = report or (lambda line: None)
    _check_options(asked, trt)  # before anything is read
    checkpoint, out = Path(checkpoint), Path(out)
    _check_place(checkpoint, out, asked, trt)
    found = _stamps(checkpoint)
    chosen, how, max_depth, build = _settle(checkpoint, asked, trt, say)
    file = asked.calibration
    calibration = None if file is None else (file, read_whole(file))
    say(f"loading {checkpoint}")
    model, tokenizer = load_checkpoint(checkpoint)
    if tokenizer is None:
        raise ExportError(f"{checkpoint} has no {TOKENIZER}", "a bundle needs one to run text")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = _describe_text(checkpoint, model, tokenizer, say)
    windows = None if calibration is None else cut_calibration(*calibration, tokenizer)
    spec = None if how is None else how.describe(windows)
    graph, passes = _make_graph(model, chosen, how, windows, max_depth, asked, say)
    try:
        with publish(out, replaces=(BUNDLE,)) as staging:
            say("writing the graph")
            nodes, graph_hashes = _write_graph(graph, staging / GRAPH_NAME)
            # Before PyTorch's outputs, which take minutes: TensorRT may refuse the graph.
            plans, plan_hashes = build(staging, graph_hashes) if build else ([], {})
            say(f"recording PyTorch's outputs at depths 1..{max_depth}")
            cases = record_cases(model, tokenizer, range(1, max_depth + 1), half=chosen.half)
            hashes = {CASES_NAME: save_cases(cases, staging / CASES_NAME)}
            hashes |= graph_hashes | plan_hashes
            _copy_papers(checkpoint, staging)
            fields = describe_bundle(
                model,
                tokens,
                graph,
                staging / GRAPH_NAME,
                parameters=parameters,
                max_depth=max_depth,
                precision=asked.precision,
                quantization=spec,
            )
            origin = _origin(checkpoint, model)
            write_manifest(staging, hashes, **fields, plans=plans, checkpoint=origin)
            _refuse_replaced(checkpoint, found)
            size = _count_bytes(staging)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"{out}: can't write the bundle: {_reason(error)}", "what was there is untouched"
        ) from error
    seconds = time.perf_counter() - started
    return ExportReport(seconds, size, nodes, tuple(passes), tuple(plans))


def _check_place(checkpoint: Path, out: Path, asked: ExportOptions, trt: TrtOptions | None) -> None:
    """Refuses to write where something is that is read, or that no export wrote."""
    read = [checkpoint, asked.calibration, *((trt.refit_from, trt.timing_cache) if trt else ())]
    if obstacle := check_place(out, (BUNDLE,), [path for path in read if path is not None]):
        raise ExportError(f"{out} {obstacle.problem}", obstacle.cure)


def _origin(checkpoint: Path, model: OuroborosForCausalLM) -> dict[str, str]:
    """What the manifest says of the checkpoint."""
    name = str(model.config.source.get("name", ""))
    return {"sha256": checkpoint_sha256(checkpoint), "name": name}


def _count_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _make_graph(
    model: OuroborosForCausalLM,
    precision: Precision,
    how: Quantization | None,
    windows: torch.Tensor | None,
    max_depth: int,
    asked: ExportOptions,
    say: Callable[[str], None],
) -> tuple[ir.Model, list[PassResult]]:
    """Quantises and traces; integers are the graph's alone then: a copy may be gigabytes."""
    quantized = None if how is None else quantize_model(model, how, windows, say)
    say("tracing prelude, step and coda")
    half_scales = asked.format != "trt"
    return compile_graph(model, precision, max_depth, quantized, asked.opset, half_scales)


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What tells a file from another that took its name, for every file of a checkpoint."""
    files = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    found = {file.name: file.stat() for file in files}
    return {name: (one.st_ino, one.st_size, one.st_mtime_ns) for name, one in found.items()}


def _refuse_replaced(checkpoint: Path, found: dict[str, tuple[int, int, int]]) -> None:
    if _stamps(checkpoint) != found:
        raise ExportError(f"{checkpoint} was replaced while it was exported", "export it again")


def _settle(
    checkpoint: Path, asked: ExportOptions, trt: TrtOptions | None, say: Callable[[str], None]
) -> tuple[Precision, Quantization | None, int, PlanBuilder | None]:
    """Settles what the config alone decides, and refuses what it forbids: before the weights.

    Returns:
        The precision, how integers are made, the largest depth, and what builds plans.
    """
    config = read_config(checkpoint)
    _require_loop(checkpoint, config)
    chosen, how = _check_options(as_trained(asked, config.qat), trt)
    require_halter(config.halter, chosen, asked.format == "trt")
    max_depth = _choose_depth(asked.max_depth, config.max_depth)
    if how is not None:
        how = replace(how, depth=min(config.depth, max_depth))
    if asked.format != "trt":
        return chosen, how, max_depth, None
    build = plan_builder(trt or TrtOptions(), config, max_depth, asked.precision, say)
    return chosen, how, max_depth, build


def _check_options(
    asked: ExportOptions, trt: TrtOptions | None
) -> tuple[Precision, Quantization | None]:
    """Refuses options before anything is loaded; returns what they say of the precision."""
    if asked.format not in FORMATS:
        raise ExportError(f"format={asked.format} is not known", f"allowed: {', '.join(FORMATS)}")
    check_opset(asked.opset)
    chosen = find_precision(asked.precision)
    if asked.format != "trt":
        refuse_unused({"trt=TrtOptions(...)": trt}, "format trt", f"format {asked.format}")
    return chosen, make_quantization(
        chosen,
        asked.block_size,
        asked.symmetric,
        asked.calibration,
        asked.accuracy_level,
        tensorrt=asked.format == "trt",
        sensitive_bits=asked.sensitive_bits,
    )


def _describe_text(
    checkpoint: Path, model: OuroborosForCausalLM, tokenizer: Any, say: Callable[[str], None]
) -> dict[str, Any]:
    """What the manifest says of the tokenizer; says what of it a bundle leaves out."""
    tokens = describe_tokens(checkpoint, model, tokenizer)
    for line in name_unused(model, tokenizer):
        say(line)
    tokens["chat"] = compile_checkpoint_chat(checkpoint, tokens)
    if tokens["chat"] is None and (checkpoint / TEMPLATE).is_file():
        say("the chat template has no form but Jinja's: engines without Jinja can't render it")
    if others := name_unused_templates(checkpoint):
        say(f"of the chat templates only the default is kept; left out: {', '.join(others)}")
    return tokens


def _require_loop(checkpoint: Path, config: OuroborosConfig) -> None:
    if not config.recurrent_layers:
        raise ExportError(
            f"{checkpoint} loops nothing (it was converted for comparison, recurrent=none), "
            "and a bundle is a loop",
            "convert with --recurrent auto or the number of a layer",
        )


def _choose_depth(asked: int | None, limit: int) -> int:
    """The bundle's largest depth, which the checkpoint must have step norms for."""
    chosen = min(DEFAULT_MAX_DEPTH, limit) if asked is None else asked
    if not 1 <= chosen <= limit:
        raise ExportError(
            f"max_depth={chosen} is outside 1..{limit}, what the checkpoint has step norms for",
            "the --max-depth of `ouro convert` sets it",
        )
    return chosen


def plan_builder(
    options: TrtOptions,
    config: OuroborosConfig,
    max_depth: int,
    precision: str,
    say: Callable[[str], None],
) -> PlanBuilder:
    """Checks what is asked of TensorRT before the graph is made, which may take minutes.

    Args:
        options: the user's.
        config: the model's.
        max_depth: largest depth of the bundle.
        precision: name of the bundle's precision.
        say: called with a line of progress now and then.

    Returns:
        What builds the plans of a bundle's directory, once the graph is in it. It takes the sha256
        of the graph's files by name, and gives the plans and theirs.

    Raises:
        ExportError: an option is not allowed, or nothing here can build such plans.
    """
    source = options.refit_from
    check_options(options, config.max_position_embeddings, config.pooling == "mean")
    facts = GraphFacts(
        max_depth=max_depth,
        default_depth=min(config.depth, max_depth),
        max_positions=config.max_position_embeddings,
        precision=precision,
        whole_prompt=config.pooling == "mean",
    )
    if source is not None:
        find_refittable(source, options, facts)
        return lambda folder, hashes: refit_plans(
            folder / GRAPH_NAME, folder / PLANS, source, options, facts, say, hashes
        )
    require_buildable(options)
    return lambda folder, hashes: build_plans(
        folder / GRAPH_NAME, folder / PLANS, options, facts, say, hashes
    )


def _reason(error: Exception) -> str:
    # numpy says only "12288 requested and 9024 written" where a write came to nothing.
    if isinstance(error, OSError) and error.errno is None and "requested and" in str(error):
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error)


def _write_graph(graph: ir.Model, path: Path) -> tuple[int, dict[str, str]]:
    """Writes and checks a graph; returns how many nodes it has and the sha256 of its files."""
    import onnx

    hashes = save_graph(graph, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"the exported graph is not valid ONNX: {reason}", "this is a bug"
        ) from error
    return sum(1 for _ in ir.traversal.RecursiveGraphIterator(graph.graph)), hashes


def _copy_papers(checkpoint: Path, folder: Path) -> None:
    shutil.copyfile(checkpoint / TOKENIZER, folder / TOKENIZER)
    for name in ("tokenizer_config.json", TEMPLATE, "LICENSE", "ATTRIBUTION"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
