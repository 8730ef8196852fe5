"""Files of documents: one JSON object with `text` a line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def read_documents(path: Path, key: str = "text") -> list[str]:
    """Returns the documents of a file, in order; `key` names what of an object holds them."""
    with path.open(encoding="utf-8") as file:
        return [str(json.loads(line)[key]) for line in file]


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """Writes documents into a file, the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in documents)


def up_to(documents: Sequence[str], characters: int) -> list[str]:
    """Returns documents up to the one that brings them to so many characters; of none, none."""
    ends = itertools.accumulate((len(one) for one in documents), initial=0)
    return list(documents[: sum(end < characters for end in ends)])
