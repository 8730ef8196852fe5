"""Compares greedy tokens: the engine's against those of PyTorch's `generate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cli.errors import one_line_errors
from cli.output import require_writable, write_json
from demo import settings
from demo.samples import continue_prompt
from runtime.parity.comparison import measure_text
from runtime.parity.verdict import RELATIVE_L2, judge


@dataclass(frozen=True)
class Comparison:
    """One prompt at one depth.

    Attributes:
        prompt: the text.
        depth: recurrences.
        tokens: how many PyTorch generated.
        ties: tokens that differ where PyTorch's two best logits are closer than twice the
            largest absolute error, of logits that are right within the parity check's bound: an
            engine that is wrong has no ties.
        different: tokens that differ and are no ties.
        first_divergence: index of the first token that differs, or None.
        margin: between PyTorch's two best logits there, or None.
    """

    prompt: str
    depth: int
    tokens: int
    ties: int
    different: int
    first_divergence: int | None = None
    margin: float | None = None


def compare(model: Any, engine: Any, prompt: str, depth: int, new_tokens: int) -> Comparison:
    """Generates with both; where they part, looks at every token, fed PyTorch's own.

    Args:
        model: the PyTorch model, from `load_checkpoint`.
        engine: the same model's bundle, opened.
        prompt: text.
        depth: recurrences.
        new_tokens: tokens to generate at most.
    """
    import torch

    ids = engine.tokenize(prompt)
    batch = torch.tensor([ids])
    with torch.inference_mode():
        output = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            depth=depth,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
        )
    expected = output[0, len(ids) :].tolist()
    found = engine.generate(ids, depth=depth, max_new_tokens=new_tokens, temperature=0.0).tokens
    if found == expected:
        return Comparison(prompt, depth, len(expected), 0, 0)
    with torch.inference_mode():
        logits = model(input_ids=output, depth=depth, use_cache=False).logits[0].numpy()
    measured = measure_text(
        prompt,
        depth,
        engine.logits([*ids, *expected], depth=depth)[len(ids) - 1 : -1],
        logits[len(ids) - 1 : -1],
    )
    (row,), _ = judge([measured], RELATIVE_L2)
    # The sequences part, yet nothing differs when fed the same tokens, or there is no number to
    # compare: that is no tie.
    different = len(measured.divergences) - row.ties if measured.divergences else 1
    return Comparison(
        prompt, depth, len(expected), row.ties, different, row.first_divergence, row.margin
    )


def summarise(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """The entry `tokens` of the report."""
    total = sum(one.tokens for one in comparisons)
    ties = sum(one.ties for one in comparisons)
    different = sum(one.different for one in comparisons)
    return {
        "prompts": len({one.prompt for one in comparisons}),
        "depths": sorted({one.depth for one in comparisons}),
        "total": total,
        "ties": ties,
        "different": different,
        "equal": different == 0 and total > 0,
        "rows": [asdict(one) for one in comparisons],
    }


def main() -> None:
    """Compares the prompts of the settings at its depths."""
    parser = argparse.ArgumentParser(prog="python -m demo.tokens", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    require_writable(arguments.json, [arguments.bundle, arguments.checkpoint])
    from ouroboros.checkpoint import load_checkpoint
    from runtime import Engine

    model, _ = load_checkpoint(arguments.checkpoint)
    comparisons = []
    with Engine.open(arguments.bundle) as engine:
        for depth in settings.DEPTHS:
            rows = [
                compare(model, engine, prompt, depth, settings.NEW_TOKENS)
                for prompt in settings.PROMPTS
            ]
            comparisons.extend(rows)
            different = sum(row.different for row in rows)
            print(
                f"depth {depth:>2}: {sum(row.tokens for row in rows)} tokens of {len(rows)} "
                f"prompts, {different} different, {sum(row.ties for row in rows)} ties",
                flush=True,
            )
        samples = continue_prompt(engine, settings.SHOWN_PROMPT)
    summary = summarise(comparisons) | {"samples": samples}
    write_json(arguments.json, summary)


if __name__ == "__main__":
    with one_line_errors():
        main()
