"""The picture of a parity report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.bundle.contract import LOGITS
from runtime.errors import EngineError
from runtime.parity.verdict import Comparison

LINEAR_POSITIONS = 32
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
            "a picture needs matplotlib", 'run pip install ".[plot]" in the checkout of ouroboros'
        ) from error
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.removeprefix(".").lower() not in known:
        raise EngineError(
            f"cannot draw {file}: its name ends like no picture",
            f"allowed endings are {', '.join(known)}",
        )


def draw_parity(report: Comparison, file: Path) -> None:
    """Draws the worst relative L2 error of the logits by depth and by position.

    Args:
        report: of an engine with PyTorch, say from `check_bundle`.
        file: an image file; its ending chooses the format.

    Raises:
        EngineError: matplotlib is not installed, or knows no such format.
    """
    check_picture(file)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullLocator

    by_depth: dict[str, dict[int, float]] = {}
    by_position: dict[int, dict[int, float]] = {}
    for row in report.rows:
        measured = row.measurement
        if measured.output not in (LOGITS, "tokens"):
            continue
        _keep_worst(
            by_depth.setdefault(measured.kind, {}), measured.depth, measured.worst_relative_l2
        )
        for position, distance in measured.position_errors:
            _keep_worst(by_position.setdefault(measured.depth, {}), position, distance)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for kind, points in sorted(by_depth.items()):
        depths = sorted(points)
        # A kind of one depth is a mark above the lines, so that none hides it.
        style = {"marker": "D", "linestyle": "", "zorder": 3} if len(depths) == 1 else {}
        style = {"marker": "o", "markersize": 4, **style}
        left.plot(depths, [points[d] for d in depths], label=kind, **style)
    ends = (min(by_position, default=0), max(by_position, default=0))
    for depth, points in sorted(by_position.items()):
        places = sorted(points)
        label = f"depth {depth}" if depth in ends else None
        color = _color(depth, ends[1])
        right.plot(places, [points[p] for p in places], ".", color=color, label=label)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    farthest = max((place for points in by_position.values() for place in points), default=0)
    if farthest >= LINEAR_POSITIONS:  # from here on each step of the axis doubles the position
        right.set_xscale("symlog", base=2, linthresh=LINEAR_POSITIONS)
        doubled = range(LINEAR_POSITIONS.bit_length() - 1, farthest.bit_length() + 1)
        ticks = [0, *(2**power for power in doubled)]
        right.set_xticks(ticks, [str(tick) for tick in ticks], fontsize="small", rotation=45)
        right.xaxis.set_minor_locator(NullLocator())
    for axes, name in ((left, "depth"), (right, "position in the sequence")):
        own = report.reference_error
        if 0 < own < float("inf"):
            axes.axhline(own, color="0.5", linestyle=":", label=f"PyTorch's own {own:.1e}")
        if 0 < report.allowed < float("inf"):
            label = f"allowed {report.allowed:.1e}"
            axes.axhline(report.allowed, color="red", linestyle="--", label=label)
        axes.set_yscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    # Below both: inside it would hide marks wherever it stood.
    shown: dict[str, Any] = {}
    for axes in (left, right):
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    if shown:
        figure.legend(
            shown.values(), shown.keys(), loc="outside lower center", ncols=6, fontsize="small"
        )
    left.set_ylabel("worst relative L2 error of the logits")
    figure.suptitle(f"Engine against PyTorch in float64: {report.verdict}")
    figure.savefig(file, dpi=120)


def _keep_worst(points: dict[int, float], key: int, error: float) -> None:
    shown = min(max(error, FLOOR), 1e3)  # an infinite error is drawn at the top
    points[key] = max(points.get(key, FLOOR), shown)


def _color(depth: int, most: int) -> tuple[float, float, float]:
    share = depth / max(most, 1)
    return (0.1 + 0.8 * share, 0.2, 0.9 - 0.8 * share)
