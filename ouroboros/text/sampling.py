"""Text drawn from a model itself: what it is asked most often, when no text of its kind is at hand.

A folded model is to match the original on whatever is written to it, and the texts at hand are
narrow. The original's own continuations are as wide as what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from ouroboros.errors import DataError
from ouroboros.source.locate import load_source, quiet_transformers
from ouroboros.text.boundaries import end_of_text_id, prefix_ids
from ouroboros.text.corpus import Report, find_files, read_documents
from ouroboros.text.sample_options import SampleOptions

_STREAM = 3  # keeps these random numbers apart from a training run's of the same seed


def sample_text(
    source: str,
    out: Path,
    options: SampleOptions,
    report: Report | None = None,
) -> int:
    """Draws texts from an original model and writes them, one `{"text": ...}` a line.

    Args:
        source: hub id, local directory or .gguf file.
        out: the .jsonl file to write.
        options: how.
        report: called with a line of progress now and then.

    Returns:
        How many tokens were drawn, openings counted.

    Raises:
        CheckpointError: the model can't be loaded.
        DataError: `out` is there, an opening can't be read, or none is long enough.
    """
    if out.exists():
        raise DataError(f"{out} is there already", "name another file, or delete it")
    original = load_source(source)
    tokenizer = original.tokenizer
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = original.model.eval().to(device, kind)
    # What comes with a model, a penalty of repetition or a length of its own, is not its
    # distribution.
    model.generation_config = GenerationConfig()
    starts = _openings(tokenizer, options, report)
    ends = sorted({end_of_text_id(tokenizer), *_ids(tokenizer.eos_token_id)})
    lines: list[str] = []
    drawn = number = 0
    while drawn < options.tokens:
        draw = np.random.default_rng([_STREAM, options.seed, number])
        torch.manual_seed(int(draw.integers(2**62)))
        ids = torch.tensor([next(starts) for _ in range(options.batch)], device=device)
        with torch.no_grad(), quiet_transformers():
            texts = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=options.temperature,
                top_k=0,
                top_p=1.0,
                max_length=options.length,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )
        for row in texts.tolist():
            body = _cut(row, ids.shape[1], ends)
            drawn += len(body)
            text = tokenizer.decode(body, skip_special_tokens=True)
            if text.strip():  # a model may end a document before it began
                lines.append(json.dumps({"text": text}, ensure_ascii=False))
        number += 1
        if report is not None:
            report(f"{drawn:,} of {options.tokens:,} tokens")
    staged = out.with_name(f".{out.name}.new")
    staged.write_text("\n".join(lines) + "\n", encoding="utf-8")
    staged.replace(out)
    return drawn


def _ids(value: Any) -> list[int]:
    return [] if value is None else [int(value)] if isinstance(value, int) else list(value)


def _cut(row: list[int], given: int, ends: Sequence[int]) -> list[int]:
    """Returns a drawn row up to its end, which may be one of the tokens given."""
    stop = next((i for i, token in enumerate(row) if i >= given and token in ends), len(row))
    return row[:stop]


def _openings(tokenizer: Any, options: SampleOptions, report: Report | None) -> Iterator[list[int]]:
    """Yields what texts begin with, for ever, all of one length."""
    if not options.openings:
        start = prefix_ids(tokenizer) or [end_of_text_id(tokenizer)]
        while True:
            yield start
    pieces: list[list[int]] = []
    for file in find_files(options.openings, report):
        for document in read_documents(file, report):
            # A few characters a token are enough of it.
            ids = tokenizer(document[: 16 * options.opening], add_special_tokens=False)["input_ids"]
            if len(ids) >= options.opening:
                pieces.append(ids[: options.opening])
    if not pieces:
        raise DataError(
            f"the openings hold no document of {options.opening} tokens",
            "give longer texts or a shorter opening",
        )
    generator = np.random.default_rng([_STREAM, options.seed])
    while True:
        for index in generator.permutation(len(pieces)):
            yield pieces[index]
