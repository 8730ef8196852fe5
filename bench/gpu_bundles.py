"""What the GPU benchmark exports: a bundle a precision, made or found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.bundle.reader import read_manifest


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is measured: recurrences, rows, and tokens in the cache before the first one timed."""

    depth: int
    batch: int
    context: int


@dataclasses.dataclass(frozen=True)
class Bundles:
    """The bundles of a checkpoint, one a precision, in a folder.

    Attributes:
        checkpoint: the PyTorch model.
        work: the bundle of a precision is its entry named after it.
        plans: also build TensorRT plans; where that fails the bundle goes without, and says so.
        reuse: take those that are there, of this checkpoint and as deep as asked for.
        report: called with a line of progress now and then.
    """

    checkpoint: Path
    work: Path
    plans: bool
    reuse: bool
    report: Callable[[str], None]

    def make(self, precision: str, shapes: Sequence[Shape], tokens: int) -> tuple[Path | None, str]:
        """Exports a precision for the shapes to be measured.

        Args:
            precision: of PRECISIONS.
            shapes: to be measured.
            tokens: that follow the context.

        Returns:
            The bundle, None where there is none; and why it has no plan, or why there is none.
        """
        from export import TrtOptions, export_bundle
        from export.errors import ExportError

        out = self.work / precision
        depth = max(shape.depth for shape in shapes)
        if self.reuse and self._fits(out, depth):
            return out, ""
        longest = max(shape.context for shape in shapes) + tokens
        options = TrtOptions(
            max_batch=max(shape.batch for shape in shapes), opt_past=longest // 2, max_seq=longest
        )
        self.work.mkdir(parents=True, exist_ok=True)
        refused = ""
        for format, trt in (("trt", options), ("onnx", None))[0 if self.plans else 1 :]:
            self.report(f"{precision}: exporting, --format {format}")
            try:
                export_bundle(
                    self.checkpoint,
                    out,
                    max_depth=depth,
                    precision=precision,
                    format=format,
                    trt=trt,
                )
            except ExportError as error:
                refused = str(error)
                self.report(f"{precision}: {refused}")
            else:
                return out, refused
        return None, refused

    def _fits(self, bundle: Path, depth: int) -> bool:
        from ouroboros.checkpoint import checkpoint_sha256

        if not (bundle / "manifest.json").is_file():
            return False
        manifest = read_manifest(bundle)
        return (
            manifest.checkpoint.sha256 == checkpoint_sha256(self.checkpoint)
            and manifest.depth.max >= depth
            and bool(manifest.plans) >= self.plans
        )
