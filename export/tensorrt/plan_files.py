"""The files around a plan: the graph that it is made from, the folders, and how it gets its place.

TensorRT is given a copy of the graph, in which no two weights share their bytes. What is in the
bundle is left as it is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import ExportError
from export.tensorrt.child import TIMING_CACHE
from export.tensorrt.process import build_in_child
from runtime.bundle.plans import hash_graph
from runtime.bundle.reader import hash_file
from runtime.files.replacing import replacing

if TYPE_CHECKING:
    import onnx_ir as ir


def make_plan(
    graph: ir.Model,
    target: Path,
    title: str,
    request: dict[str, Any],
    timing_cache: Path | None = None,
) -> dict[str, Any]:
    """Lets a child make one plan from a graph, and puts it in its place, whole or not at all.

    Args:
        graph: of a bundle; changed in place.
        target: the plan's file; its folder is made where it is missing.
        title: the flavour, for messages.
        request: as export.tensorrt.child reads it, but for the names of the graph and the plan.
        timing_cache: where the child's timing cache is kept; None keeps none.

    Returns:
        The child's `done`, the plan's `sha256` in it.

    Raises:
        ExportError: TensorRT refused or crashed, or the timing cache can't be written.
        OSError: the plan can't be written.
    """
    with plan_folders(target.parent) as (copy, staging):
        onnx = write_plan_graph(graph, copy)
        done = build_in_child(
            {**request, "title": title, "onnx": str(onnx.resolve()), "plan": target.name},
            title,
            staging,
        )
        os.replace(staging / target.name, target)
        if timing_cache is not None:
            _keep_timing_cache(staging / TIMING_CACHE, timing_cache)
    return done


def read_graph(onnx_file: Path) -> tuple[ir.Model, list[Path]]:
    """The graph, and every file that it consists of.

    Raises:
        ExportError: it is not an ONNX graph.
    """
    import onnx_ir as ir

    try:
        model = ir.load(onnx_file)
    except Exception as error:  # protobuf's errors share no base class
        reason = " ".join(str(error).split())[:200]
        raise ExportError(
            f"{onnx_file} is not an ONNX graph: {reason}", "export the bundle again"
        ) from error
    data = {
        onnx_file.parent / tensor.location
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }
    return model, [onnx_file, *sorted(data)]


def hash_graph_files(files: Sequence[Path], hashes: Mapping[str, str] | None = None) -> str:
    """The hash that a plan names its graph by.

    Args:
        files: of the graph, as `read_graph` gives them.
        hashes: the sha256 of files by name, where whoever wrote them computed it meanwhile; the
            others are read, which takes a minute for billions of weights.
    """
    known = hashes or {}
    return hash_graph({file.name: known.get(file.name) or hash_file(file) for file in files})


@contextmanager
def plan_folders(out_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Two folders that are there for the block only: for the graph, and for what is made from it.

    Args:
        out_dir: the folder of the plans, which they lie in; it is made, and removed again where
            it was not there before and the block fails.
    """
    existed = out_dir.is_dir()
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".graph-", dir=out_dir) as copy,
            tempfile.TemporaryDirectory(prefix=".building-", dir=out_dir) as staging,
        ):
            yield Path(copy), Path(staging)
    except BaseException:
        if not existed:
            shutil.rmtree(out_dir, ignore_errors=True)
        raise


def write_plan_graph(graph: ir.Model, folder: Path) -> Path:
    """Writes a graph the way TensorRT takes it, see this module.

    Args:
        graph: of a bundle; changed in place.
        folder: where it and its data file are written.

    Returns:
        The file to give to TensorRT's parser.

    Raises:
        OSError: it can't be written.
    """
    from export.graph.storage import save_graph

    file = folder / "plan.onnx"
    save_graph(graph, file, share=False)
    return file


def _keep_timing_cache(written: Path, target: Path) -> None:
    """Puts a timing cache where the user wants it, perhaps on another disk, whole or not at all."""
    target = target.resolve()
    try:
        with replacing(target) as staged:
            shutil.copyfile(written, staged)
    except OSError as error:
        raise ExportError(
            f"timing_cache={target} can't be written: {error.strerror or error}",
            "it is as it was",
        ) from error
