"""The picture of a parity report."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import EngineError
from runtime.parity import ParityReport

FLOOR = 1e-12  # an error of zero has no place on a logarithmic axis


def check_picture(file: Path) -> None:
    """Refuses a picture that can't be drawn, before there is anything to draw.

    Args:
        file: an image file; its ending chooses the format.

    Raises:
        EngineError: matplotlib is not installed, or knows no such format.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise EngineError(
            'a picture needs matplotlib; run pip install ".[plot]" in the checkout of ouroboros'
        ) from error
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.removeprefix(".").lower() not in known:
        raise EngineError(f"cannot draw {file}: allowed endings are {', '.join(known)}")


def draw_parity(report: ParityReport, file: Path) -> None:
    """Draws the worst relative L2 error of the logits by depth and by position.

    Args:
        report: from `check_bundle`.
        file: an image file; its ending chooses the format.

    Raises:
        EngineError: matplotlib is not installed, or knows no such format.
    """
    check_picture(file)
    from matplotlib.figure import Figure

    by_depth: dict[str, dict[int, float]] = {}
    by_position: dict[int, dict[int, float]] = {}
    for row in report.rows:
        measured = row.measurement
        if measured.output not in ("logits", "tokens"):
            continue
        _keep_worst(
            by_depth.setdefault(measured.kind, {}), measured.depth, measured.worst_relative_l2
        )
        for position, distance in measured.position_errors:
            _keep_worst(by_position.setdefault(measured.depth, {}), position, distance)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for kind, points in sorted(by_depth.items()):
        depths = sorted(points)
        left.plot(depths, [points[d] for d in depths], marker="o", markersize=4, label=kind)
    for depth, points in sorted(by_position.items()):
        places = sorted(points)
        color = _color(depth, max(by_position))
        label = f"depth {depth}" if depth in (min(by_position), max(by_position)) else None
        right.plot(places, [points[p] for p in places], ".", color=color, label=label)
    for axes, name in ((left, "depth"), (right, "position in the sequence")):
        axes.axhline(report.bound, color="red", linestyle="--", label=f"bound {report.bound:.0e}")
        axes.set_yscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    left.set_ylabel("worst relative L2 error of the logits")
    figure.suptitle(f"Engine against PyTorch: {report.verdict}")
    figure.savefig(file, dpi=120)


def _keep_worst(points: dict[int, float], key: int, error: float) -> None:
    shown = min(max(error, FLOOR), 1e3)  # an infinite error is drawn at the top
    points[key] = max(points.get(key, FLOOR), shown)


def _color(depth: int, most: int) -> tuple[float, float, float]:
    share = depth / max(most, 1)
    return (0.1 + 0.8 * share, 0.2, 0.9 - 0.8 * share)
