"""Checkpoint to bundle: graph, manifest, tokenizer, recorded cases, licence."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir
from safetensors import SafetensorError
from safetensors.numpy import save_file

from export.cases import record_cases
from export.errors import ExportError
from export.graph import build_graph
from ouroboros.atomic import publish
from ouroboros.checkpoint import checkpoint_sha256, load_checkpoint
from ouroboros.modeling import OuroborosForCausalLM
from runtime.bundle import write_manifest

PRECISIONS = ("fp32",)
FORMATS = ("onnx",)
RELATIVE_L2 = 1e-5
GRAPH_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        seconds: wall time.
        bytes: size of the bundle.
        nodes: nodes of the graph, the loop's body included.
    """

    seconds: float
    bytes: int
    nodes: int


def export_bundle(
    checkpoint: str | Path,
    out: str | Path,
    *,
    max_depth: int = 16,
    precision: str = "fp32",
    format: str = "onnx",
    report: Callable[[str], None] | None = None,
) -> ExportReport:
    """Exports `checkpoint` to the bundle directory `out`, atomically.

    Args:
        checkpoint: an Ouroboros checkpoint.
        out: the bundle to write.
        max_depth: largest depth the bundle will run; at most the checkpoint's own.
        precision: `fp32`.
        format: `onnx`.
        report: called with a line of progress now and then.

    Raises:
        ExportError: an option is not allowed, or the model can't be traced or written.
        CheckpointError: the checkpoint can't be loaded.
    """
    started = time.perf_counter()
    say = report or (lambda line: None)
    for name, given, allowed in (("format", format, FORMATS), ("precision", precision, PRECISIONS)):
        if given not in allowed:
            raise ExportError(
                f"--{name} {given} is not built in this version; allowed: {', '.join(allowed)}"
            )
    checkpoint, out = Path(checkpoint), Path(out)
    say(f"loading {checkpoint}")
    model, tokenizer = load_checkpoint(checkpoint)
    limit = model.config.max_depth
    if not 1 <= max_depth <= limit:
        raise ExportError(
            f"--max-depth {max_depth} is outside 1..{limit}, what the checkpoint has step norms "
            "for; convert with a larger --max-depth for more"
        )
    if tokenizer is None:
        raise ExportError(f"{checkpoint} has no tokenizer.json; a bundle needs one to run text")
    say("tracing prelude, step and coda")
    graph = build_graph(model, max_depth)
    try:
        with publish(out) as staging:
            say("writing the graph")
            nodes = _write_graph(graph, staging)
            say(f"recording PyTorch's outputs at depths 1..{max_depth}")
            tensors, entries = record_cases(model, tokenizer, range(1, max_depth + 1))
            save_file(
                tensors, staging / "cases.safetensors", metadata={"cases": json.dumps(entries)}
            )
            _copy_papers(checkpoint, staging)
            fields = _manifest(model, tokenizer, graph, staging, max_depth)
            fields["checkpoint"] = {
                "sha256": checkpoint_sha256(checkpoint),
                "name": str(model.config.source.get("name", "")),
            }
            write_manifest(staging, **fields)
            size = sum(file.stat().st_size for file in staging.iterdir())
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"{out}: can't write the bundle: {_reason(error)}; what was there is untouched"
        ) from error
    return ExportReport(time.perf_counter() - started, size, nodes)


def _reason(error: Exception) -> str:
    # numpy says only "12288 requested and 9024 written" where a write came to nothing.
    if isinstance(error, OSError) and error.errno is None and "requested and" in str(error):
        return "the disk is full"
    return getattr(error, "strerror", None) or str(error)


def _write_graph(graph: ir.Model, folder: Path) -> int:
    import onnx

    path = folder / GRAPH_NAME
    ir.save(graph, path, external_data=DATA_NAME, size_threshold_bytes=1024)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"the exported graph is not valid ONNX: {reason}") from error
    return sum(1 for _ in ir.traversal.RecursiveGraphIterator(graph.graph))


def _copy_papers(checkpoint: Path, folder: Path) -> None:
    shutil.copyfile(checkpoint / "tokenizer.json", folder / "tokenizer.json")
    for name in ("chat_template.jinja", "LICENSE", "ATTRIBUTION"):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)


def _manifest(
    model: OuroborosForCausalLM, tokenizer: Any, graph: ir.Model, folder: Path, max_depth: int
) -> dict[str, Any]:
    config = model.config
    template = "chat_template.jinja"
    return {
        "model": {
            "source": str(config.source.get("name", "")),
            "model_type": str(config.base_config["model_type"]),
            **{name: getattr(config, name) for name in _DIMENSIONS},
            **_count_parameters(model, graph),
        },
        "depth": {
            "min": 1,
            "max": max_depth,
            "default": min(config.depth, max_depth),
            "trained": [d for d in config.trained_depths if d <= max_depth],
        },
        "precision": "fp32",
        "graphs": {
            "onnx": {
                "file": GRAPH_NAME,
                "data": [DATA_NAME] if (folder / DATA_NAME).is_file() else [],
                "opset": graph.graph.opset_imports[""],
                "inputs": [_spec(value) for value in graph.graph.inputs],
                "outputs": [_spec(value) for value in graph.graph.outputs],
            }
        },
        "tokenizer": {
            "file": "tokenizer.json",
            "chat_template": template if (folder / template).is_file() else None,
            **_special_tokens(model, tokenizer),
        },
        "sampling": {"temperature": 0.0, "top_k": 0, "top_p": 1.0},
        "parity": {"relative_l2": RELATIVE_L2, "float": "float32"},
        "tools": {"ouroboros": _version("ouroboros-llm"), **{n: _version(n) for n in _TOOLS}},
    }


_DIMENSIONS = (
    "hidden_size",
    "num_layers",
    "prelude",
    "coda",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "pooling",
)


def _count_parameters(model: OuroborosForCausalLM, graph: ir.Model) -> dict[str, int]:
    """Counts weights as the graph holds them: what one step and what one token reads."""
    step = sum(
        int(value.const_value.size)
        for node in graph.graph
        if node.op_type == "Loop"
        for value in node.attributes["body"].as_graph().initializers.values()
        if value.const_value is not None and not str(value.name).endswith(_TABLES)
    )
    config = model.config
    kept = sum(p.numel() for part in (model.prelude, model.coda) for p in part.parameters())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        # Of the tables with an entry a step, a step reads one row.
        "step_parameters": step + config.hidden_size,
        "once_parameters": kept + model.lm_head.weight.numel() + config.hidden_size,
    }


_TABLES = ("step_norm", "step_bias", "vectors")


def _special_tokens(model: OuroborosForCausalLM, tokenizer: Any) -> dict[str, Any]:
    eos = model.generation_config.eos_token_id
    eos = model.config.eos_token_id if eos is None else eos
    ids = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    plain = tokenizer("a", add_special_tokens=True)["input_ids"]
    bos = tokenizer.bos_token_id
    return {
        "bos_token": tokenizer.bos_token,
        "eos_token": tokenizer.eos_token,
        "bos_token_id": bos,
        "eos_token_ids": ids,
        "pad_token_id": tokenizer.pad_token_id,
        "add_bos": bos is not None and len(plain) > 1 and plain[0] == bos,
    }


_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.INT64: "int64"}


def _spec(value: ir.Value) -> dict[str, Any]:
    if value.dtype is None:
        raise ExportError(f"the graph's {value.name} has no type")
    shape = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
    return {"name": value.name, "dtype": _DTYPES[value.dtype], "shape": shape}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        from ouroboros import __version__

        return __version__
