"""What a bundle's manifest says of the model, its graph and its tokenizer."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from export.errors import ExportError
from export.graph.passes.weight_only import graphs_of
from export.graph.storage import DATA_SUFFIX
from export.tokens import TEMPLATE, TOKENIZER
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.modeling import OuroborosForCausalLM
from runtime.bundle.contract import ELEMENT_TYPES
from runtime.bundle.manifest import QuantizationSpec
from runtime.parity.check import FAST_KL
from runtime.parity.verdict import RELATIVE_L2

_TOOLS = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript")


def describe_bundle(
    model: OuroborosForCausalLM,
    tokens: dict[str, Any],
    graph: ir.Model,
    graph_file: Path,
    *,
    parameters: int,
    max_depth: int,
    precision: str,
    quantization: QuantizationSpec | None,
) -> dict[str, Any]:
    """Returns the manifest's fields but for the checkpoint's, as JSON values.

    Args:
        model: the PyTorch model.
        tokens: special tokens, of `describe_tokens`.
        graph: the graph as it was written.
        graph_file: where it was written, in the bundle.
        parameters: of the checkpoint; calibration unties what it tied.
        max_depth: largest depth the bundle will run.
        precision: name of the bundle's precision.
        quantization: how integer weights were made, None where there are none.
    """
    config = model.config
    folder = graph_file.parent
    data = graph_file.name + DATA_SUFFIX
    return {
        "model": {
            "source": str(config.source.get("name", "")),
            "model_type": str(config.base_config["model_type"]),
            **{name: getattr(config, name) for name in _DIMENSIONS},
            "recurrent_layers": config.recurrent_layers,
            "halting": config.halting,
            "parameters": parameters,
            **_count_bytes(graph),
        },
        "depth": {
            "min": 1,
            "max": max_depth,
            "default": min(config.depth, max_depth),
            "trained": list(config.trained_depths),
            **_describe_halting(config, max_depth),
        },
        "precision": precision,
        "quantization": quantization,
        "graphs": {
            "onnx": {
                "file": graph_file.name,
                "data": [data] if (folder / data).is_file() else [],
                "opset": graph.graph.opset_imports[""],
                "inputs": [_spec(value) for value in graph.graph.inputs],
                "outputs": [_spec(value) for value in graph.graph.outputs],
            }
        },
        "tokenizer": {
            "file": TOKENIZER,
            "chat_template": TEMPLATE if (folder / TEMPLATE).is_file() else None,
            **tokens,
        },
        "sampling": _GREEDY,
        "parity": {
            "relative_l2": RELATIVE_L2,
            "float": "float32",
            "kl": None if quantization is None else FAST_KL,
        },
        "tools": {"ouroboros": _version("ouroboros-llm"), **{n: _version(n) for n in _TOOLS}},
    }


_GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
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
    "bridge",
)


def _count_bytes(graph: ir.Model) -> dict[str, int]:
    """Bytes of weights that one step and that everything around the loop reads for a token.

    Of what is only looked up in (embedding, step tables, bases of a step) it reads one entry.
    """
    outer, *bodies = graphs_of(graph)
    return {
        "step_bytes": sum(_read_bytes(body) for body in bodies),
        "once_bytes": _read_bytes(outer),
    }


def _read_bytes(graph: ir.Graph) -> int:
    total = 0
    for value in graph.initializers.values():
        if (tensor := value.const_value) is not None:
            axis = _looked_up(value)
            total += tensor.nbytes // (1 if axis is None else tensor.shape.numpy()[axis])
    return total


def _looked_up(value: ir.Value) -> int | None:
    """The dimension of which all that reads a value, perhaps cast, takes an entry; else None."""
    uses = [(use.node, use.idx) for use in value.uses()]
    if [node.op_type for node, _ in uses] == ["Cast"]:
        return _looked_up(uses[0][0].outputs[0])
    axes = {
        node.attributes.get_int("axis", 0) if node.op_type == "Gather" and place == 0 else None
        for node, place in uses
    }
    return axes.pop() if len(axes) == 1 else None


def _describe_halting(config: OuroborosConfig, max_depth: int) -> dict[str, Any]:
    if not config.halting:
        return {}
    return {
        "halting": {
            "kind": config.halter,
            "threshold": config.halt_threshold,
            "max": min(config.halt_depth, max_depth),
        }
    }


_DTYPES = {ir.DataType[one.onnx]: one.name for one in ELEMENT_TYPES.values()}


def _spec(value: ir.Value) -> dict[str, Any]:
    if value.dtype is None:
        raise ExportError(f"the graph's {value.name} has no type", "this is a bug")
    shape = [size if isinstance(size, int) else str(size) for size in value.shape or ()]
    return {"name": value.name, "dtype": _DTYPES[value.dtype], "shape": shape}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        from ouroboros import __version__

        return __version__
