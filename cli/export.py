"""`ouro export`: compile a checkpoint into a bundle."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import takes_options
from export.options import ExportOptions

if TYPE_CHECKING:
    from export import TrtOptions


@takes_options(ExportOptions)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="made by `ouro convert` or `ouro train`")],
    out: Annotated[Path, typer.Argument(help="the bundle directory to write")],
    options: ExportOptions,
    trt: Annotated[
        str | None,
        typer.Option(
            help="auto, trt (TensorRT) or rtx (TensorRT for RTX, needs no GPU); default: auto"
        ),
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="of the GPUs an rtx plan is for, such as 8.6,8.9,12.0")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="most rows of a plan; default: 4")] = None,
    max_seq: Annotated[
        int | None, typer.Option(help="most tokens of a plan; default: 2048 or the model's")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="keep a plan's weights replaceable")
    ] = False,
    refit_from: Annotated[
        Path | None,
        typer.Option(
            help="a bundle with a plan built with --refit: takes that plan, with this checkpoint's "
            "weights, in place of a build"
        ),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            help="keep the kernels that TensorRT times in this file, and start the next build "
            "from it; not for rtx"
        ),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            help="a Triton model repository to write the model to as well, in its folder "
            "ouroboros: the graph, or with --format trt the plan"
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="print the graph passes and what each changed")
    ] = False,
) -> None:
    """Compile a checkpoint into a bundle: one graph, its tokenizer and recorded cases.

    Examples:
      ouro export trained bundle
      ouro export trained bundle --format onnx --max-depth 16
      ouro export trained small --precision int4 --calibration text.jsonl
      ouro export trained plans --format trt --precision fp16 --compute-capability 8.9,12.0
      ouro export trained plans --format trt --refit
      ouro export retrained newer --format trt --refit-from plans
    """
    from export import export_bundle
    from export.triton.config import require_servable
    from export.triton.folder import check_folder

    if triton is not None:
        check_folder(triton, out)
    plans = _trt_options(
        options.format,
        {
            "flavour": trt,
            "compute_capabilities": compute_capability,
            "max_batch": max_batch,
            "max_seq": max_seq,
            "refit": refit or None,
            "refit_from": refit_from,
            "timing_cache": timing_cache,
        },
    )
    if triton is not None and plans is not None:
        require_servable(plans)
    report = export_bundle(checkpoint, out, options, trt=plans, report=typer.echo)
    if explain:
        for change in report.passes:
            typer.echo(f"  {change.name:<18} {change.changed:>5}  {change.note}")
    for spec in report.plans:
        capabilities = ", ".join(spec.compute_capabilities)
        typer.echo(f"  {spec.file}: {spec.flavour} {spec.version}, GPUs {capabilities}")
    typer.echo(f"wrote {out}: {report.bytes / 1e6:,.0f} MB in {report.seconds:.1f} s")
    if triton is not None:
        plan = report.plans[0].file if report.plans else None
        _write_triton(out, triton, plan)
    name = quote(str(out))
    typer.echo(f'next: ouro check {name}, then ouro run {name} "prompt"')


def _write_triton(bundle: Path, repository: Path, plan: str | None) -> None:
    from export import write_triton

    backend = "onnxruntime" if plan is None else "tensorrt"
    written = write_triton(bundle, repository, backend=backend, plan=plan)
    folder, size = repository / written.name, written.bytes / 1e6
    typer.echo(f"wrote {folder}: {size:,.0f} MB for Triton, backend {backend}")


_NAMES = {"flavour": "--trt", "compute_capabilities": "--compute-capability"}


def _trt_options(format: str, values: dict[str, Any]) -> TrtOptions | None:
    """The options of the plans; None where none are built, and none of them may be given then."""
    from export import TrtOptions
    from export.errors import refuse_unused

    if format != "trt":
        names = {_NAMES.get(key, f"--{key.replace('_', '-')}"): one for key, one in values.items()}
        refuse_unused(names, "--format trt", f"--format {format}")
        return None
    given = {name: one for name, one in values.items() if one is not None}
    if (capabilities := given.get("compute_capabilities")) is not None:
        # Blank is no list of capabilities, and not the default either: it is refused as it stands.
        listed = capabilities.replace(",", " ").split() or [capabilities]
        given["compute_capabilities"] = tuple(listed)
    return TrtOptions(**given)
