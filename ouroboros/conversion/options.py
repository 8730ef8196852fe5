"""How a model is converted. Standard library only: `ouro convert --help` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.options import option


@dataclass(frozen=True)
class ConvertOptions:
    """Options of one conversion; what they may be is checked with the model at hand.

    Source: arXiv 2604.02051, section 3; `auto`, `matched` and `per_step` are ours or named there.
    """

    prelude: int = option(8, "first layers to keep")
    coda: int = option(8, "last layers to keep")
    recurrent: int | str = option(
        "auto",
        "the layer to loop, counted from 0, or a block of them as 18-21; auto measures which layer "
        "is best, auto:4 which block of 4; none loops nothing",
    )
    split: str = option(
        "fixed",
        "fixed keeps what --prelude and --coda say; auto measures how as many layers are best "
        "split into first and last ones",
    )
    depth: int = option(8, "the default depth; auto and matched measure at it")
    max_depth: int = option(64, "the largest depth that will ever be used")
    rank: int = option(32, "rank of the low-rank bases")
    alpha: float = option(16.0, "scale of the low-rank updates: alpha / rank")
    pooling: str = option(
        "causal",
        "what the Controller sees: causal, the mean up to each position; mean, the paper's, of "
        "all; or token, the position itself",
    )
    norm_init: str = option(
        "matched", "start of the per-step norms: matched to the model on text, or ones, the paper's"
    )
    bases: str = option("mean", "one SVD of the mean residual, or one a step: mean or per_step")
    modulation: str = option(
        "controller",
        "controller; static, the paper's ablation; free, a low-rank update a step that trains; "
        "or none",
    )
    bridge: str = option(
        "entry", "a linear map fitted before the loop, after it or not at all: entry, exit or none"
    )
    input_injection: str = option(
        "none", "none, or add: the looped layers of every step are fed the loop's entry state too"
    )
    gate: bool = option(
        True,
        "how much of a step is taken is learned; without, all of it: the paper's ablation",
        "--gate/--no-gate",
    )
    gate_start: str = option(
        "alike",
        "alike in every step, or open: the first takes the looped layers whole, later ones little",
    )
    seed: int = option(0, "of what starts at random: the Controller's inner layers, free updates")
    calibration: Path | None = option(
        None,
        "text that the bridge is fitted and everything is measured on, like what the model is for; "
        "default: one that comes with ouro",
    )
