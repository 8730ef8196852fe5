"""What TensorRT's parser and builder say, made into an error that names the layer and a cure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from export.errors import ExportError

# "IBuilder::buildSerializedNetwork: Error Code 1: Myelin (...)", "[file.cpp::f::12] Error Code ..."
_WRAPPED = re.compile(r"^.*?Error Code \d+: [^(]*\((?P<body>.*)\)\s*$", re.DOTALL)
_PLACE_BEFORE = re.compile(r"^\s*\[[^\]]*\.\w+:{1,2}[^\]]*\]\s*")
_ASSERTED = re.compile(r"^\w+ && \"(?P<body>[^\"]+)\"$")  # the parser shows its own condition
_PLACE_AFTER = re.compile(r"\.?\s+In [\w:~<>()\s]+ at \S+?:\d+\)*\s*$")
# A machine without a GPU says this of everything, and builds ahead of time all the same.
_NOISE = ("CUDA driver version is insufficient", "no CUDA-capable device", "cudaError 100")

_CURES = (
    (
        r"FP32 GEMM is not supported",
        "compute capability 7.5 needs half precision: leave it out or take --precision fp16",
    ),
    (
        r"HW-specific datatypes",
        "leave the older compute capability out, or take --precision fp16",
    ),
    (
        r"CUDA_SUCCESS",
        "TensorRT wanted a GPU for this and can use none here: build where it is, without --refit",
    ),
    (
        r"[Ww]orkspace|[Oo]ut of memory|OutOfMemory|could not find any implementation",
        "allow more workspace, or a smaller --max-batch or --max-seq",
    ),
    (
        r"[Uu]nsupported|[Nn]ot supported|No importer registered",
        "export with another --precision or --opset, or with --format onnx",
    ),
)
_DEFAULT_CURE = "--format onnx writes the same model for ONNX Runtime; --debug shows TensorRT's log"


def describe_parser_error(title: str, operator: str, node: str, text: str) -> ExportError:
    """The error for a node that the ONNX parser refused.

    Args:
        title: of the flavour.
        operator: of the node, such as "MatMul".
        node: its name.
        text: what the parser said.
    """
    reason = clean(text)
    where = f"the node {node or 'without a name'} ({operator or 'unknown operator'})"
    return ExportError(f"{title} cannot read {where}: {reason}", cure_for(reason, parser=True))


def describe_builder_error(title: str, errors: Sequence[str], last_layer: str) -> ExportError:
    """The error for a build that failed.

    Args:
        title: of the flavour.
        errors: messages of severity ERROR, in order.
        last_layer: the layer that was logged last; used where the message names none.
    """
    told = [text for text in errors if not any(sign in text for sign in _NOISE)]
    reasons = [reason for reason in map(clean, told) if reason]
    if not reasons:
        reason = clean(errors[-1]) if errors else "TensorRT gave no reason"
    else:
        reason = reasons[-1]
    named = re.search(r"'[^']+'|\{ForeignNode|\bnode\b|\blayer\b", reason, re.IGNORECASE)
    where = "" if named or not last_layer else f" at {last_layer}"
    return ExportError(f"{title} cannot build the plan{where}: {reason}", cure_for(reason))


def describe_crash(title: str, status: int, last_layer: str) -> ExportError:
    """The error for a builder that died.

    Args:
        title: of the flavour.
        status: the child's exit status, below 0 for the signal that ended it.
        last_layer: the layer that was logged last.
    """
    import signal

    how = f"exit status {status}"
    cure = _DEFAULT_CURE
    if status < 0:
        try:
            how = signal.Signals(-status).name
        except ValueError:
            how = f"signal {-status}"
        if how == "SIGKILL":
            cure = "often the system was out of memory: close other programs, or --max-batch 1"
    where = last_layer or "the start"
    return ExportError(
        f"the builder of {title} crashed with {how}; the last thing it logged was {where}", cure
    )


def clean(text: str) -> str:
    """The sentence inside one of TensorRT's messages, without error codes and source files."""
    line = " ".join(text.split())
    wrapped = _WRAPPED.match(line)
    if wrapped:
        line = wrapped["body"]
    # Myelin's come once more in brackets: "([pass.cpp:337: check] Cannot compile ... In f at ...)".
    for _ in range(3):
        line = _PLACE_BEFORE.sub("", _PLACE_AFTER.sub("", line)).strip()
    asserted = _ASSERTED.match(line)
    return (asserted["body"] if asserted else line)[:400].rstrip(" .")


def cure_for(reason: str, parser: bool = False) -> str:
    """What to do about a reason.

    Args:
        reason: a cleaned message.
        parser: it came from the ONNX parser.
    """
    for pattern, cure in _CURES:
        if re.search(pattern, reason):
            return cure
    if parser:
        return _CURES[-1][1]
    return _DEFAULT_CURE
