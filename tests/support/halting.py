"""A tiny checkpoint with a halter, whose prompts choose different depths."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def give_halter(model: Any, kind: str, depth: int = 4, threshold: float = 0.5) -> Any:
    """Puts a random halter into a model."""
    import torch

    from ouroboros.halting.run import new_halter, with_halter

    halter = new_halter(model, kind)
    if kind == "trained":
        with torch.no_grad():
            halter.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
            halter.bias.fill_(-1.5)
    return with_halter(model, halter, kind, depth, threshold)


def write_halting(checkpoint: Path, out: Path, kind: str) -> None:
    """Writes a checkpoint with a halter made from one that has none."""
    from ouroboros import load_checkpoint, save_checkpoint

    model, tokenizer = load_checkpoint(checkpoint)
    save_checkpoint(give_halter(model, kind), tokenizer, out)
