"""Export at every precision: seconds, peak memory, bytes, and whether two exports are the same.

python -m bench.export                          the checkpoint that `make demo` left
python -m bench.export CHECKPOINT --precision int4 --precision fp16
python -m bench.export --rtx 8.9                also a plan of TensorRT for RTX at every precision
python -m bench.export --calibration TEXT       int8 and int4 by GPTQ

Every export is a process of its own.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.decode import DEMO
from bench.large import OURO, Stage, run_stage
from bench.measure import PACKAGES, make_parser
from cli.errors import CommandError, one_line_errors
from cli.output import require_writable, write_json
from export.precision import PRECISIONS
from runtime.measure.speed import describe_machine

LIMIT_S = 60


@dataclass(frozen=True)
class Exported:
    """One precision.

    Attributes:
        precision: its name.
        calibrated: whether GPTQ chose the weights.
        seconds: of the first of two exports.
        peak_bytes: most memory it held, mapped files included.
        bytes: of the bundle.
        identical: whether a second export wrote the same bytes.
        plan_seconds: of an export with a TensorRT plan, everything included; None without.
        plan_bytes: of the plan; None without.
    """

    precision: str
    calibrated: bool
    seconds: float
    peak_bytes: int
    bytes: int
    identical: bool
    plan_seconds: float | None
    plan_bytes: int | None


def measure_export(
    checkpoint: Path,
    scratch: Path,
    precision: str,
    max_depth: int,
    capability: str | None,
    calibration: Path | None,
) -> Exported:
    """Exports a checkpoint twice, and once more with a plan.

    Args:
        checkpoint: made by `ouro convert` or `ouro train`.
        scratch: an empty directory; it is empty again afterwards.
        precision: of the bundles.
        max_depth: of the bundles.
        capability: compute capability of a plan of TensorRT for RTX; None builds none.
        calibration: text for GPTQ, where weights are integers; None rounds.
    """
    command = [*OURO, "export", str(checkpoint)]
    options = ["--precision", precision, "--max-depth", str(max_depth)]
    calibrated = calibration is not None and PRECISIONS[precision].quantized
    if calibrated:
        options += ["--calibration", str(calibration)]
    first, second = scratch / "first", scratch / "second"
    runs = [run_stage("export", [*command, str(out), *options], out) for out in (first, second)]
    identical = _same(first, second)
    shutil.rmtree(first)
    shutil.rmtree(second)
    plan: Stage | None = None
    plan_bytes = None
    if capability is not None:
        out = scratch / "plan"
        options += ["--format", "trt", "--trt", "rtx", "--compute-capability", capability]
        plan = run_stage("plan", [*command, str(out), *options], out)
        plan_bytes = sum(file.stat().st_size for file in (out / "plans").iterdir())
        shutil.rmtree(out)
    return Exported(
        precision,
        calibrated,
        runs[0].seconds,
        runs[0].peak_bytes,
        runs[0].written_bytes,
        identical,
        None if plan is None else plan.seconds,
        plan_bytes,
    )


def _same(one: Path, other: Path) -> bool:
    """Whether two bundles hold the same bytes: the manifest has the hash of every file."""
    return (one / "manifest.json").read_bytes() == (other / "manifest.json").read_bytes()


def print_exports(rows: Sequence[Exported]) -> None:
    """Prints a line a precision."""
    print(
        f"{'precision':<16} {'seconds':>8} {'peak GB':>8} {'MB':>6} {'same again':>11} "
        f"{'with a plan, s':>15} {'plan MB':>8}"
    )
    for row in rows:
        name = f"{row.precision}, GPTQ" if row.calibrated else row.precision
        plan = "" if row.plan_seconds is None else f"{row.plan_seconds:.1f}"
        size = "" if row.plan_bytes is None else f"{row.plan_bytes / 1e6:.0f}"
        print(
            f"{name:<16} {row.seconds:8.1f} {row.peak_bytes / 1e9:8.2f} {row.bytes / 1e6:6.0f} "
            f"{'yes' if row.identical else 'NO':>11} {plan:>15} {size:>8}"
        )
    print(f"asked: an export, calibration apart, and a plan in {LIMIT_S} s each; the same again")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; with `--json` writes the figures too."""
    parser = make_parser("bench.export", __doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=DEMO / "trained")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="else all")
    parser.add_argument("--max-depth", type=int, default=16)
    parser.add_argument("--rtx", metavar="CAPABILITY", help="compute capability of the plans")
    parser.add_argument("--calibration", type=Path, help="text for int8 and int4")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if not given.checkpoint.is_dir():
        raise CommandError(f"{given.checkpoint} is not there; run `make demo`, or name another")
    require_writable(given.json, [given.checkpoint, given.calibration])
    rows = []
    with tempfile.TemporaryDirectory(prefix="ouro-bench-") as temporary:
        for precision in given.precision or PRECISIONS:
            rows.append(
                measure_export(
                    given.checkpoint,
                    Path(temporary),
                    precision,
                    given.max_depth,
                    given.rtx,
                    given.calibration,
                )
            )
    print_exports(rows)
    if given.json is not None:
        figures = {"machine": describe_machine(PACKAGES), "rows": [asdict(row) for row in rows]}
        write_json(given.json, figures)


if __name__ == "__main__":
    with one_line_errors():
        main()
