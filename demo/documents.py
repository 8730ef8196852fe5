"""Files of documents: one JSON object with `text` a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


def read_documents(path: Path, key: str = "text") -> list[str]:
    """Returns the documents of a file, in order; `key` names what of an object holds them."""
    with path.open(encoding="utf-8") as file:
        return [str(json.loads(line)[key]) for line in file]


def write_documents(path: Path, documents: Iterable[str]) -> None:
    """Writes documents into a file, the same bytes on every system."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in documents)
