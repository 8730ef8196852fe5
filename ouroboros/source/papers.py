"""Licence and attribution of an original model: what must travel with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
NOTICE_NAMES = ("NOTICE", "NOTICE.txt", "NOTICE.md")

_GGUF_KEYS = {
    "model": ("general.name",),
    "organization": ("general.organization", "general.base_model.0.organization"),
    "author": ("general.author", "general.base_model.0.author"),
    "license": ("general.license.name", "general.license"),
    "license_link": ("general.license.link",),
    "url": (
        "general.source.url",
        "general.source.repo_url",
        "general.source.huggingface.repository",
        "general.repo_url",
        "general.url",
        "general.base_model.0.repo_url",
    ),
}


@dataclass(frozen=True)
class Papers:
    """Whose weights these are and on what terms; empty where nothing is known.

    Attributes:
        name: the name the model was asked for by.
        model: the model's own name for itself.
        organization: who published it.
        author: who made it.
        license: identifier of its licence, as `apache-2.0`.
        license_link: where that licence stands.
        url: the page of the model.
        license_text: its licence file.
        notice: its NOTICE file, which some licences ask to pass on.
        read: the files that told, of those that lie in its folder.
    """

    name: str
    model: str = ""
    organization: str = ""
    author: str = ""
    license: str = ""
    license_link: str = ""
    url: str = ""
    license_text: str = ""
    notice: str = ""
    read: tuple[Path, ...] = ()

    def license_file(self) -> str:
        """Returns the content of the file LICENSE: the licence, or where to find it."""
        if self.license_text:
            return self.license_text
        terms = f"its metadata name the licence {self.license}" if self.license else ""
        terms = terms or "the terms of its publisher apply"
        where = self.license_link or self.url
        return (
            f"No licence file came with {self.name}; {terms}{f': see {where}' if where else ''}.\n"
        )

    def attribution_file(self, changes: str) -> str:
        """Returns the content of the file ATTRIBUTION.

        Args:
            changes: what was done to the model, in whole sentences.
        """
        facts = {
            "Model": self.model,
            "Organization": self.organization,
            "Author": self.author,
            "Licence": self.license,
            "Source": self.url,
        }
        lines = [f"The weights derive from {self.name}; its licence stands in the file LICENSE."]
        lines += [f"{title}: {value}" for title, value in facts.items() if value]
        lines += [f"Changed by Ouroboros: {changes}"]
        if self.notice:
            lines += ["", "The NOTICE that came with it:", "", self.notice.rstrip()]
        return "\n".join(lines) + "\n"


def papers_of_folder(
    name: str,
    folder: Path,
    gguf: Mapping[str, Any] | None = None,
    known: Mapping[str, str] | None = None,
) -> Papers:
    """Returns the papers that lie in a folder: licence, notice, model card.

    Args:
        name: the model's name.
        folder: where it lies.
        gguf: the metadata of a .gguf file, which say more than a card beside it.
        known: facts that are known from elsewhere, such as the hub's page.
    """

    def find(file: str) -> Path | None:
        return folder / file if (folder / file).is_file() else None

    return _collect(name, find, {**(known or {}), **_gguf_facts(gguf or {})})


def _collect(name: str, find: Callable[[str], Path | None], known: Mapping[str, str]) -> Papers:
    card = find("README.md")
    told = _card_facts(card) if card else {}
    files = [_first(find, names) for names in (LICENSE_NAMES, NOTICE_NAMES)]
    license_text, notice = (_text(file) for file in files)
    # What is known from elsewhere says more than a card.
    read = (*files, card if told.keys() - known.keys() else None)
    return Papers(
        name,
        license_text=license_text,
        notice=notice,
        read=tuple(file for file in read if file is not None),
        **{**told, **known},
    )


def _first(find: Callable[[str], Path | None], names: tuple[str, ...]) -> Path | None:
    return next((path for name in names if (path := find(name)) is not None), None)


def _text(file: Path | None) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file else ""


def _card_facts(path: Path) -> dict[str, str]:
    from huggingface_hub import metadata_load

    try:
        data = metadata_load(path) or {}
    except Exception:  # a README of something else, or none that can be read: it says nothing
        return {}
    named = data.get("license_name") or data.get("license")
    facts = {"license": named, "license_link": data.get("license_link")}
    return {name: _short(value) for name, value in facts.items() if isinstance(value, str)}


def _gguf_facts(metadata: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    for name, keys in _GGUF_KEYS.items():
        value = next((metadata[key] for key in keys if isinstance(metadata.get(key), str)), "")
        if value:
            facts[name] = _short(value)
    return facts


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
