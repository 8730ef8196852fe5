"""Tokenises the training texts once, for a machine that has only what is copied to it.

python -m demo.packing TEXTS TOKENIZER.JSON OUT writes, in as many parts as asked for, whole
documents in one random order of all kinds, each followed by the end-of-text token, as
`ouroboros.text.windows.pack_documents` joins them:

- OUT<part>/tokens.npy.xz: uint16 [tokens]
- OUT<part>/documents.npy.xz: int64 [documents, 2], first token and place in the list of sources
- OUT<part>/sources.json: kind and name of the sources, and tokens and documents of the whole

`load_part` reads a part back.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from demo.documents import read_documents
from ouroboros.text.boundaries import END_OF_TEXT
from runtime.files.atomic import publish

SEED = 13
_FILES = ("tokens.npy.xz", "documents.npy.xz", "sources.json")
_CALL = 2_000
# Two bytes a token: the literal coder is told of the alignment, which saves some per cent.
_FILTERS: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 1, "pb": 1},
]


def tokenise(folder: Path, tokenizer_file: Path) -> tuple[list[np.ndarray], list[int], list[str]]:
    """Tokenises every text of a folder that `demo.corpora` wrote.

    Args:
        folder: with <kind>/<source>.jsonl.
        tokenizer_file: a tokenizer.json that puts nothing before a text.

    Returns:
        Documents as uint16 [tokens] with end-of-text at the end, the place of each one's source,
        and the sources as "kind/name".

    Raises:
        ValueError: the vocabulary has no end-of-text token or does not fit 16 bits.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    end = next((i for t in END_OF_TEXT if (i := tokenizer.token_to_id(t)) is not None), None)
    size = tokenizer.get_vocab_size()
    if end is None or size > 1 << 16:
        raise ValueError(
            f"{tokenizer_file}: {size} tokens, end-of-text {end}; packed are vocabularies of at "
            f"most {1 << 16} with one of {', '.join(END_OF_TEXT)}"
        )
    documents: list[np.ndarray] = []
    origins: list[int] = []
    files = sorted(folder.glob("*/*.jsonl"))
    for place, file in enumerate(files):
        texts = read_documents(file)
        for first in range(0, len(texts), _CALL):
            for coded in tokenizer.encode_batch_fast(
                texts[first : first + _CALL], add_special_tokens=False
            ):
                documents.append(np.asarray([*coded.ids, end], dtype=np.uint16))
                origins.append(place)
    return documents, origins, [f"{file.parent.name}/{file.stem}" for file in files]


def pack(
    folder: Path,
    tokenizer_file: Path,
    out: Path,
    parts: int = 2,
    seed: int = SEED,
    most: Mapping[str, int] | None = None,
) -> dict[str, dict[str, int]]:
    """Writes the parts; returns tokens and documents by source.

    Args:
        folder: as `demo.corpora` wrote it.
        tokenizer_file: the model's tokenizer.json.
        out: start of the parts' names.
        parts: how many there are, of about the same number of tokens.
        seed: of the order.
        most: tokens of a kind, at most; what comes later in the order is left out.
    """
    documents, origins, sources = tokenise(folder, tokenizer_file)
    order = np.random.default_rng(seed).permutation(len(documents))
    room = dict(most or {})
    kept: list[int] = []
    for index in order.tolist():
        kind = sources[origins[index]].split("/")[0]
        if kind in room:
            room[kind] -= len(documents[index])
            if room[kind] < 0:
                continue
        kept.append(index)
    order = np.asarray(kept)
    totals = {name: {"tokens": 0, "documents": 0} for name in sources}
    for index in kept:
        totals[sources[origins[index]]]["tokens"] += len(documents[index])
        totals[sources[origins[index]]]["documents"] += 1
    ends = np.cumsum([len(documents[i]) for i in order])
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], parts + 1)[1:-1], side="left") + 1
    jobs = []
    for number, chosen in enumerate(np.split(order, bounds)):
        tokens = np.concatenate([documents[i] for i in chosen])
        lengths = np.asarray([len(documents[i]) for i in chosen], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        table = np.stack([starts, np.asarray([origins[i] for i in chosen])], axis=1)
        jobs.append((out.with_name(f"{out.name}{number}"), tokens, table))
    with ProcessPoolExecutor(min(parts, 2)) as pool:
        packed = [(pool.submit(_xz, t), pool.submit(_xz, d)) for _, t, d in jobs]
        for (place, _, _), (tokens_xz, table_xz) in zip(jobs, packed, strict=True):
            with publish(place, known=_FILES) as staging:
                (staging / _FILES[0]).write_bytes(tokens_xz.result())
                (staging / _FILES[1]).write_bytes(table_xz.result())
                about = {"sources": sources, "seed": seed, "totals": totals}
                (staging / _FILES[2]).write_text(json.dumps(about, indent=1) + "\n")
    return totals


def load_part(place: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads a part: tokens, uint16; documents, int64 [documents, 2]; names of the sources."""
    packed = [(place / name).read_bytes() for name in _FILES[:2]]
    arrays = [np.load(io.BytesIO(lzma.decompress(content))) for content in packed]
    return arrays[0], arrays[1], json.loads((place / _FILES[2]).read_text())["sources"]


def _xz(array: np.ndarray) -> bytes:
    raw = io.BytesIO()
    np.save(raw, array)
    return lzma.compress(raw.getvalue(), filters=_FILTERS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Packs the texts and prints totals by kind and by source; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.packing", description=__doc__)
    parser.add_argument("texts", type=Path, help="folder that demo.corpora wrote")
    parser.add_argument("tokenizer", type=Path, help="the model's tokenizer.json")
    parser.add_argument("out", type=Path, help="start of the parts' names")
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument(
        "--most", action="append", default=[], metavar="KIND=TOKENS", help="cap of a kind"
    )
    given = parser.parse_args(arguments)
    most = {kind: int(tokens) for kind, _, tokens in (m.partition("=") for m in given.most)}
    totals = pack(given.texts, given.tokenizer, given.out, given.parts, most=most)
    kinds: dict[str, int] = {}
    for name, count in totals.items():
        print(f"{name:40} {count['documents']:7,} documents {count['tokens']:12,} tokens")
        kinds[name.split("/")[0]] = kinds.get(name.split("/")[0], 0) + count["tokens"]
    whole = sum(kinds.values())
    for kind, tokens in kinds.items():
        print(f"{kind:40} {tokens:12,} tokens, {tokens / whole:.1%}")
    print(f"{'all':40} {whole:12,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
