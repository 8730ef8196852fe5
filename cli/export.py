"""`ouro export`: compile a checkpoint into a bundle."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from cli.options import takes_options
from export.options import ExportOptions, TrtOptions
from runtime.options import flag_of


@takes_options(ExportOptions)
@takes_options(TrtOptions, name="plan", left_out=True)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="made by `ouro convert` or `ouro train`")],
    out: Annotated[Path, typer.Argument(help="the bundle directory to write")],
    options: ExportOptions,
    plan: dict[str, Any],
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
    plans = _trt_options(options.format, plan)
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
        _write_triton(out, triton, report.plans[0].file if report.plans else None)
    name = quote(str(out))
    typer.echo(f'next: ouro check {name}, then ouro run {name} "prompt"')


def _write_triton(bundle: Path, repository: Path, plan: str | None) -> None:
    from export import write_triton

    backend = "onnxruntime" if plan is None else "tensorrt"
    written = write_triton(bundle, repository, backend=backend, plan=plan)
    folder, size = repository / written.name, written.bytes / 1e6
    typer.echo(f"wrote {folder}: {size:,.0f} MB for Triton, backend {backend}")


def _trt_options(format: str, given: dict[str, Any]) -> TrtOptions | None:
    """The options of the plan; None where none is built, and none of them may be given then."""
    from export.errors import refuse_unused

    if format != "trt":
        named = {flag_of(TrtOptions, name): one for name, one in given.items()}
        refuse_unused(named, "--format trt", f"--format {format}")
        return None
    asked = given.pop("compute_capabilities", None) or ()
    # Blank is no list of capabilities, and not the default either: it is refused as it stands.
    listed = [part for one in asked for part in one.replace(",", " ").split() or [one]]
    return TrtOptions(**given, compute_capabilities=tuple(listed))
