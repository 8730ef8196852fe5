"""Pictures of a training run, drawn from the trainer's history."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = Sequence[Mapping[str, Any]]

EVAL_LOSS = "eval_loss_depth_{depth}"
GATE = "eval_gate_step_{step}"


def series(history: History, key: str) -> tuple[list[int], list[float]]:
    """Returns the train steps and values of everything logged under `key`."""
    found = [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]
    return [step for step, _ in found], [value for _, value in found]


def numbered_keys(history: History, pattern: str) -> list[tuple[int, str]]:
    """Returns (number, key) of the logged keys like `pattern`, by number."""
    shape = re.compile(re.sub(r"\{\w+\}", r"(\\d+)", pattern))
    keys = {key for entry in history for key in entry}
    return sorted((int(m[1]), key) for key in keys if (m := shape.fullmatch(key)))


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Averages each value with up to `width - 1` before it."""
    return [
        sum(values[max(0, i - width + 1) : i + 1]) / min(width, i + 1) for i in range(len(values))
    ]


def plot_training(history: History, terms: str = "") -> bytes:
    """Draws training loss and held-out loss by depth over train steps; returns a PNG.

    Args:
        history: what was logged.
        terms: what the training loss is made of, where it is not next-token loss alone.
    """
    figure, axes = _new_figure()
    steps, losses = series(history, "loss")
    if steps:
        width = max(1, len(steps) // 30)
        mean = width > 1  # else both lines would be one
        mark = "o" if len(steps) == 1 else None
        name = f"training ({terms})" if terms else "training"
        color, line = ("0.8", 0.8) if mean else ("0.35", 1.5)
        label = f"{name}, each step" if len(steps) > 1 else name
        axes.plot(steps, losses, color=color, linewidth=line, marker=mark, label=label)
        if mean:
            label = f"{name}, mean of {width} steps"
            axes.plot(steps, smooth(losses, width), color="0.35", linewidth=1.5, label=label)
    kind = " CE" if terms else ""
    for depth, key in numbered_keys(history, EVAL_LOSS):
        label = f"held-out{kind}, depth {depth}"
        axes.plot(*series(history, key), marker="o", markersize=3, label=label)
    axes.set_title("Loss while training")
    axes.set_xlabel("train step (optimizer updates)")
    axes.set_ylabel(f"{'' if terms else 'next-token '}loss (nats per token)")
    return _to_png(figure, axes)


def plot_gates(history: History) -> bytes:
    """Draws the mean gate of every step at the start, in the middle and at the end; a PNG."""
    figure, axes = _new_figure()
    keys = numbered_keys(history, GATE)
    scored = [entry for entry in history if any(key in entry for _, key in keys)]
    chosen = sorted({0, len(scored) // 2, len(scored) - 1}) if scored else []
    for index in chosen:
        entry = scored[index]
        points = [(step, float(entry[key])) for step, key in keys if key in entry]
        taken = int(entry["step"])
        label = f"after {taken} train step{'' if taken == 1 else 's'}"
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes.set_title("How much of each step's output is kept")
    axes.set_xlabel("step of the loop (1 is the first)")
    axes.set_ylabel("mean gate g (0 keeps the old state, 1 the new)")
    axes.set_ylim(bottom=0)
    return _to_png(figure, axes)


def _new_figure() -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _to_png(figure: Figure, axes: Axes) -> bytes:
    from matplotlib.ticker import MaxNLocator

    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(
        MaxNLocator(integer=True, min_n_ticks=1)
    )  # there is no half a step
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2)  # within it would hide a curve
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
