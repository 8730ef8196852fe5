"""Text drawn from a model itself: what it is asked most often, when no text of its kind is at hand.

A folded model is to match the original on whatever is written to it, and the texts at hand are
narrow. The original's own continuations are as wide as what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from transformers import GenerationConfig

from ouroboros.errors import DataError
from ouroboros.model.limits import check_ids, check_seq_len
from ouroboros.source.locate import (
    Location,
    load_source,
    load_tokenizer,
    locate,
    quiet_transformers,
)
from ouroboros.text.boundaries import encode, end_of_text_id, prefix_ids
from ouroboros.text.corpus import read_documents
from ouroboros.text.files import Report, find_files, require_readable
from ouroboros.text.sample_options import SampleOptions

_STREAM = 3  # keeps these random numbers apart from a training run's of the same seed


def sample_text(
    source: str,
    out: Path,
    options: SampleOptions,
    report: Report | None = None,
) -> int:
    """Draws texts from an original model and writes them, one `{"text": ...}` a line.

    Until it is done they stand in a file beside `out`, its name with `.part` behind, which stays
    where the drawing is stopped.

    Args:
        source: hub id, local directory or .gguf file.
        out: the .jsonl file to write.
        options: how.
        report: called with a line of progress now and then.

    Returns:
        How many tokens were drawn, openings counted.

    Raises:
        CheckpointError: the model can't be loaded.
        DataError: `out` is there or can't be written, an opening can't be read, none is long
            enough, or the model can't read it or nothing so long.
    """
    part = out.with_name(f"{out.name}.part")
    if out.exists():
        raise DataError(f"{out} is there already", "name another file, or delete it")
    if part.is_symlink():
        raise DataError(f"{part} is a link, and would be written through", "delete it")
    if not out.parent.is_dir():
        raise DataError(f"{out}: its directory is not there", "make it, or name another file")
    if options.openings:
        require_readable(find_files(options.openings))
    place = locate(source)
    check_seq_len(options.length, place.config.max_position_embeddings, "length")
    with quiet_transformers():
        tokenizer = load_tokenizer(place)
    if tokenizer is None:
        raise DataError(f"{source} comes without a tokenizer", "put its own beside its weights")
    starts = _openings(tokenizer, options, report)
    check_ids("the openings", np.asarray(starts), place.config.vocab_size)
    try:
        with part.open("w", encoding="utf-8") as file:
            drawn = _draw(place, tokenizer, starts, options, file, report)
        part.replace(out)
    except OSError as error:
        raise DataError(
            f"{out}: can't be written: {error.strerror or error}", "name another file"
        ) from error
    return drawn


def _draw(
    place: Location,
    tokenizer: Any,
    starts: Sequence[list[int]],
    options: SampleOptions,
    file: IO[str],
    report: Report | None,
) -> int:
    """Draws and writes texts, a line each; returns how many tokens."""
    original = load_source(place)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = original.model.eval().to(device, kind)
    # What comes with a model, a penalty of repetition or a length of its own, is not its
    # distribution.
    model.generation_config = GenerationConfig()
    order = _repeat(len(starts), options.seed)
    ends = sorted({end_of_text_id(tokenizer), *_ids(tokenizer.eos_token_id)})
    drawn = number = 0
    while drawn < options.tokens:
        draw = np.random.default_rng([_STREAM, options.seed, number])
        torch.manual_seed(int(draw.integers(2**62)))
        ids = torch.tensor([starts[next(order)] for _ in range(options.batch)], device=device)
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
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        number += 1
        if report is not None:
            report(f"{drawn:,} of {options.tokens:,} tokens")
    return drawn


def _ids(value: Any) -> list[int]:
    return [] if value is None else [int(value)] if isinstance(value, int) else list(value)


def _cut(row: list[int], given: int, ends: Sequence[int]) -> list[int]:
    """Returns a drawn row up to its end, which may be one of the tokens given."""
    stop = next((i for i, token in enumerate(row) if i >= given and token in ends), len(row))
    return row[:stop]


def _openings(tokenizer: Any, options: SampleOptions, report: Report | None) -> list[list[int]]:
    """Returns what texts begin with, all of one length."""
    if not options.openings:
        return [prefix_ids(tokenizer) or [end_of_text_id(tokenizer)]]
    pieces: list[list[int]] = []
    for file in find_files(options.openings, report):
        for document in read_documents(file, report):
            # A few characters a token are enough of it.
            (ids,) = encode(tokenizer, [document[: 16 * options.opening]])
            if len(ids) >= options.opening:
                pieces.append(ids[: options.opening])
    if not pieces:
        raise DataError(
            f"the openings hold no document of {options.opening} tokens",
            "give longer texts or a shorter opening",
        )
    return pieces


def _repeat(count: int, seed: int) -> Iterator[int]:
    """Yields so many numbers in a random order, and in another, for ever."""
    generator = np.random.default_rng([_STREAM, seed])
    while True:
        yield from map(int, generator.permutation(count))
