"""Takes a portion of the training texts, of no source more than its share.

    python -m demo.portion CORPORA OUT

CORPORA is what `python -m demo.corpora CORPORA` wrote. Written are OUT/train.jsonl, and
OUT/like.jsonl with documents of every source that are not trained on. The same texts give the same
files.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo.corpora import TEXT_KINDS
from demo.documents import read_documents, up_to, write_documents
from runtime.files.atomic import publish

# Characters of each kind: 5 M tokens of SmolLM2's. Half of what models are judged on here is prose.
CHARACTERS = {"prose": 9_500_000, "technical": 4_500_000, "code": 4_500_000, "qa": 500_000}
LIKE = 0.01  # the share of documents that is kept apart
_APART = 1 << 32


def equal_shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Shares a total out among sources: as much of each, but of none more than it has.

    Args:
        sizes: what each has.
        total: of all shares, if there is so much.
    """
    shares: dict[str, int] = {}
    left = total
    # The smallest first: what one lacks goes to those after it.
    for place, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[name] = min(size, left // (len(sizes) - place))
        left -= shares[name]
    return {name: shares[name] for name in sizes}


def take_portion(
    corpora: Path, characters: Mapping[str, int]
) -> tuple[list[str], list[str], dict[str, int]]:
    """Returns documents to train on, documents kept apart, and the characters of each source.

    Args:
        corpora: the folder of texts, a folder for each kind.
        characters: to train on, by kind.

    Raises:
        FileNotFoundError: it has no texts of a kind.
    """
    train: list[str] = []
    apart: list[str] = []
    taken: dict[str, int] = {}
    for kind, total in characters.items():
        files = sorted((corpora / kind).glob("*.jsonl"))
        if not files:
            raise FileNotFoundError(f"{corpora / kind} holds no .jsonl file")
        kept: dict[str, list[str]] = {}
        for path in files:
            # By a hash: from all of a source, and whichever others there are, the same ones.
            found = sorted(read_documents(path), key=_draw)
            kept[path.stem] = [one for one in found if not _is_apart(one)]
            apart += [one for one in found if _is_apart(one)]
        shares = equal_shares({name: sum(map(len, found)) for name, found in kept.items()}, total)
        for name, found in kept.items():
            chosen = up_to(found, shares[name])
            train += chosen
            taken[f"{kind}/{name}"] = sum(map(len, chosen))
    return train, sorted(apart, key=_draw), taken


def _draw(document: str) -> int:
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big")


def _is_apart(document: str) -> bool:
    return _draw(document) % _APART < LIKE * _APART


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a portion; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.portion", description=__doc__)
    parser.add_argument("corpora", type=Path, help="what python -m demo.corpora wrote")
    parser.add_argument("out", type=Path)
    for kind in TEXT_KINDS:
        parser.add_argument(
            f"--{kind}", type=int, default=CHARACTERS[kind], metavar="CHARACTERS", help="0: none"
        )
    given = parser.parse_args(arguments)
    wanted = {kind: number for kind in TEXT_KINDS if (number := getattr(given, kind)) > 0}
    try:
        train, apart, taken = take_portion(given.corpora, wanted)
        with publish(given.out, known=["train.jsonl", "like.jsonl"]) as staging:
            write_documents(staging / "train.jsonl", train)
            write_documents(staging / "like.jsonl", apart)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, number in taken.items():
        print(f"{number:11,} {name}")
    print(f"{len(train):,} documents, {sum(taken.values()):,} characters; {len(apart):,} apart")
    return 0


if __name__ == "__main__":
    sys.exit(main())
