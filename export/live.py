"""Fresh cases for a bundle, recorded from its checkpoint: what its own recording can't know."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from export.cases import record_cases
from export.errors import ExportError
from export.precision import find_precision
from export.quantize.model import Quantization, quantize_model
from ouroboros.checkpoint import checkpoint_sha256, load_checkpoint
from runtime.bundle.reader import read_manifest
from runtime.parity.cases import Case


def record_live(
    bundle: str | Path,
    checkpoint: str | Path,
    seed: int | None = None,
    report: Callable[[str], None] | None = None,
) -> list[Case]:
    """Records cases on random inputs with PyTorch, over every depth of a bundle.

    No seed gives the inputs that a bundle's own recording has.

    Args:
        bundle: names depths and precision; only its manifest is read.
        checkpoint: the PyTorch model; rounded as the bundle is.
        seed: of the random inputs; None draws one and reports it.
        report: called with each line that the user should know.

    Returns:
        Cases for `runtime.parity.check.check_bundle`.

    Raises:
        ExportError: the seed is below 0, or the bundle's weights were calibrated: the checkpoint
            does not tell them.
        BundleError: the bundle's manifest can't be read.
        CheckpointError: the checkpoint can't be loaded.
    """
    bundle, checkpoint = Path(bundle), Path(checkpoint)
    say = report or (lambda line: None)
    if seed is None:
        seed = secrets.randbelow(1 << 31)
        say(f"fresh inputs of --seed {seed}")
    if seed < 0:
        raise ExportError(f"seed={seed} is not allowed", "it must be 0 or more")
    manifest = read_manifest(bundle)
    depth, spec = manifest.depth, manifest.quantization
    if spec is not None and spec.calibration is not None:
        raise ExportError(
            f"{bundle} holds calibrated weights, which the checkpoint alone does not tell",
            "leave out --live to compare with the outputs that were recorded from them",
        )
    model, tokenizer = load_checkpoint(checkpoint)
    if manifest.checkpoint.sha256 not in ("", checkpoint_sha256(checkpoint)):
        say(
            f"{checkpoint} is not the checkpoint that {bundle} was made from; "
            "comparing all the same"
        )
    if spec is not None:
        quantize_model(model, Quantization.from_spec(spec))
    depths = range(depth.min, depth.max + 1)
    half = find_precision(manifest.precision).half
    # A pair, since a bundle's own inputs come of a single number.
    return record_cases(model, tokenizer, depths=depths, seed=(seed, 1), half=half)
