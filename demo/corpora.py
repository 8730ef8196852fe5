"""Builds the training texts from pinned packages: python -m demo.corpora OUT.

recipes/corpora.toml names every package, what is taken out of it, and its licence. Written is
OUT/<kind>/<source>.jsonl, one document an object {"text": ...} a line, and OUT/report.json. The
same packages give the same files, byte for byte.

Left out are documents that share a run of words with a text that the model is judged on, and
documents most of which an earlier one has said already.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from demo.documents import write_documents
from demo.fetch import KINDS, WHEELS
from demo.forms import FORMS, documents
from demo.markup import without_common_lines
from demo.packages import (
    REGISTRIES,
    FetchError,
    Package,
    default_cache,
    fetch_package,
    read_members,
)
from ouroboros.text.overlap import Runs, found_in, shares_any
from runtime.files.atomic import publish

PLAN = Path(__file__).parent.parent / "recipes" / "corpora.toml"
TEXT_KINDS = ("prose", "technical", "code", "qa")
# A document of which this share of runs stood in earlier ones adds nothing.
REPEATED = 0.5
# One run in so many is remembered, the same ones in every text.
REMEMBERED = 16
LONGEST = 60_000
SHORTEST = 200
_KEYS = {"name", "kind", "registry", "package", "version", "sha256", "license", "form", "members"}
_MORE = {"skip", "limit_mb", "record", "first_of"}


@dataclass(frozen=True)
class Source:
    """One source of texts: a package and what is taken out of it.

    Attributes:
        name: of the file that is written.
        kind: one of `TEXT_KINDS`, or `forbidden` for a text that nothing may be trained on.
        package: where it comes from.
        license: of the texts, as an SPDX expression or in words.
        form: how documents are told apart and read; see `demo.forms`.
        members: patterns of paths in the package.
        skip: patterns of paths that are left out all the same.
        limit_mb: at most so many megabytes of text, files in the order of their paths' hashes.
        fields: what the form asks for beside it.
    """

    name: str
    kind: str
    package: Package
    license: str
    form: str
    members: tuple[str, ...]
    skip: tuple[str, ...] = ()
    limit_mb: float = 1e9
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Count:
    """What became of a source's documents.

    Attributes:
        written: documents that were written.
        characters: in them.
        overlapping: left out, as they share a run with a text that must not be trained on.
        repeated: left out, as earlier documents say the same.
        shares: of each held-out text's runs, the share found in the source before any was left
            out.
    """

    written: int
    characters: int
    overlapping: int
    repeated: int
    shares: dict[str, float]


def read_plan(path: Path = PLAN) -> tuple[Source, ...]:
    """Reads the list of sources.

    Raises:
        FetchError: it is no list of sources, or one lacks a key, has an unknown one, or names what
            there is not.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["source"]
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError) as error:
        raise FetchError(f"{path} is no list of [[source]] in TOML ({error})") from error
    sources = tuple(_read_source(entry, path) for entry in entries)
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise FetchError(f"{path} has two sources called {name!r}; rename one")
    return sources


def _read_source(entry: dict[str, Any], path: Path) -> Source:
    what = f"the source {entry.get('name')!r} in {path}"
    if missing := sorted(_KEYS - set(entry)):
        raise FetchError(f"{what} lacks {', '.join(missing)}; add it")
    if unknown := sorted(set(entry) - _KEYS - _MORE):
        raise FetchError(f"{what} has {', '.join(unknown)}, known are {sorted(_KEYS | _MORE)}")
    allowed = {
        "kind": (*TEXT_KINDS, "forbidden"),
        "registry": REGISTRIES,
        "form": (*FORMS, "r-strings"),
    }
    for key, values in allowed.items():
        if entry[key] not in values:
            raise FetchError(f"{what} has {key} {entry[key]!r}; allowed are {', '.join(values)}")
    package = Package(entry["registry"], entry["package"], entry["version"], entry["sha256"])
    return Source(
        entry["name"],
        entry["kind"],
        package,
        entry["license"],
        entry["form"],
        tuple(entry["members"]),
        tuple(entry.get("skip", ())),
        float(entry.get("limit_mb", 1e9)),
        {key: entry[key] for key in ("record", "first_of") if key in entry},
    )


def read_source(source: Source, path: Path) -> list[str]:
    """Returns a source's documents out of its package's file, up to its limit.

    Long documents are cut between paragraphs, short ones left out.
    """
    members = read_members(path, source.members, source.skip)
    if not members:
        raise FetchError(f"{source.package} holds nothing of {', '.join(source.members)}")
    order = sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest())
    room = source.limit_mb * 1e6
    texts: list[str] = []
    for name in order:
        for text in documents(source.form, name, members[name], source.fields):
            texts.append(text)
            room -= len(text)
            if room < 0:
                break
        if room < 0:
            break
    if source.form == "markup":
        texts = without_common_lines(texts)
    return [piece for text in texts for piece in cut(text.strip()) if is_english(piece)]


def cut(text: str) -> Iterator[str]:
    """Cuts a text between paragraphs (lines, where there are none) to at most `LONGEST`."""
    while len(text) > LONGEST:
        place = text.rfind("\n\n", LONGEST // 2, LONGEST)
        if place < 0:
            place = text.rfind("\n", LONGEST // 2, LONGEST)
        place = LONGEST if place < 0 else place
        yield text[:place]
        text = text[place:].lstrip("\n")
    yield text


def is_english(text: str) -> bool:
    """Tells a document from crumbs, tables of numbers and other scripts."""
    if len(text) < SHORTEST:
        return False
    letters = sum(c.isascii() and c.isalpha() for c in text)
    return letters > 0.45 * len(text) and sum(ord(c) > 255 for c in text) < 0.03 * len(text)


class Sieve:
    """Keeps out what must not be trained on, and what was said already.

    Attributes:
        heldout: names of the texts that shares are told of.
    """

    def __init__(self, heldout: Mapping[str, str], forbidden: Iterable[str]) -> None:
        self._runs = Runs()
        self._heldout = {n: np.unique(self._runs.between_spaces(t)) for n, t in heldout.items()}
        both = [self._runs.both(text) for text in (*heldout.values(), *forbidden)]
        self._forbidden = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *both]))
        self._seen: set[int] = set()

    def sift(self, texts: Sequence[str]) -> tuple[list[str], Count]:
        """Returns the documents to write, in order, and what became of the others."""
        kept: list[str] = []
        overlapping = repeated = 0
        shared: list[np.ndarray] = []
        for text in texts:
            spaced, letters = self._runs.between_spaces(text), self._runs.of_letters(text)
            if shares_any(spaced, self._forbidden) or shares_any(letters, self._forbidden):
                overlapping += 1
                shared.append(spaced[found_in(spaced, self._forbidden)])
                continue
            marks = spaced[spaced % REMEMBERED == 0].tolist() or [_mark(text)]
            if sum(mark in self._seen for mark in marks) > REPEATED * len(marks):
                repeated += 1
                continue
            self._seen.update(marks)
            kept.append(text)
        shares = self._shares_of(shared)
        return kept, Count(len(kept), sum(map(len, kept)), overlapping, repeated, shares)

    def shares(self, texts: Iterable[str]) -> dict[str, float]:
        """Of each held-out text's runs, the share found in any of the texts."""
        spaced = (self._runs.between_spaces(text) for text in texts)
        return self._shares_of([runs[found_in(runs, self._forbidden)] for runs in spaced])

    def _shares_of(self, shared: Sequence[np.ndarray]) -> dict[str, float]:
        met = np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *shared]))
        return {
            n: float(found_in(r, met).mean()) if len(r) else 0.0 for n, r in self._heldout.items()
        }


def _mark(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def build(
    out: Path,
    sources: Sequence[Source],
    heldout: Mapping[str, str],
    cache: Path,
    say: Callable[[str], None] = print,
) -> dict[str, Count]:
    """Builds the texts of all sources.

    Args:
        out: directory to write; replaced whole.
        sources: as `read_plan` gives them.
        heldout: texts by name that nothing may be trained on.
        cache: directory that keeps packages.
        say: called with a line a source.

    Returns:
        What became of each source's documents, by its name.

    Raises:
        FetchError: a package can't be had, is not the pinned one, or holds nothing of its source.
        OSError: `out` or the cache can't be written.
    """
    paths = _fetch_all(sources, cache, say)
    with ProcessPoolExecutor(2) as pool:
        read = pool.map(read_texts, sources, paths)
        texts = {source.name: found for source, found in zip(sources, read, strict=True)}
    sieve = Sieve(heldout, (t for s in sources if s.kind == "forbidden" for t in texts[s.name]))
    counts: dict[str, Count] = {}
    trained = [source for source in sources if source.kind != "forbidden"]
    names = [f"{source.kind}/{source.name}.jsonl" for source in trained]
    with publish(out, known=[*names, "report.json"]) as staging:
        for source, name in zip(trained, names, strict=True):
            kept, counts[source.name] = sieve.sift(texts.pop(source.name))
            left = sieve.shares(kept)
            (staging / source.kind).mkdir(exist_ok=True)
            write_documents(staging / name, kept)
            say(describe(source, counts[source.name], left))
        report = {s.name: _report(s, counts[s.name]) for s in trained}
        (staging / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return counts


def _fetch_all(sources: Sequence[Source], cache: Path, say: Callable[[str], None]) -> list[Path]:
    """Returns the file of each source; those that can't be had are told of together."""
    paths: list[Path] = []
    failed: dict[str, FetchError] = {}
    for source in sources:
        try:
            paths.append(fetch_package(source.package, cache, "recipes/corpora.toml", say))
        except FetchError as error:
            say(f"not there: {source.name}: {error}")
            failed[source.name] = error
    if failed:
        first = next(iter(failed.values()))
        names = " ".join(f"--without {name}" for name in failed)
        raise FetchError(
            f"{len(failed)} of {len(sources)} sources can't be had, the first since: {first}. "
            f"Registries drop old versions; to do without, add {names}"
        ) from first
    return paths


def leave_out(sources: Sequence[Source], names: Sequence[str]) -> tuple[Source, ...]:
    """Returns the sources but for those named.

    Raises:
        FetchError: a name is none of theirs, or of a text that must be known to be kept out.
    """
    known = {source.name: source for source in sources}
    for name in names:
        if name not in known:
            raise FetchError(f"no source is called {name!r}; known are {', '.join(known)}")
        if known[name].kind == "forbidden":
            raise FetchError(
                f"{name} can't be left out: nothing of it may be trained on, so it must be read"
            )
    return tuple(source for source in sources if source.name not in names)


def describe(source: Source, count: Count, left: Mapping[str, float]) -> str:
    """A line on a source: what was written, left out, and shared before and after."""
    before = ", ".join(f"{name} {share:.2%}" for name, share in count.shares.items())
    after = max(left.values(), default=0.0)
    return (
        f"{source.kind:9} {source.name:28} {count.characters / 1e6:7.2f} MB "
        f"{count.written:6} documents; {count.overlapping} overlap, {count.repeated} repeat; "
        f"shared with held-out text before: {before}; after: at most {after:.2%}"
    )


def read_texts(source: Source, path: Path) -> list[str]:
    """A source's documents; of forbidden ones the shortest too, uncut."""
    if source.kind == "forbidden":
        members = read_members(path, source.members, source.skip)
        return [
            text
            for name, content in members.items()
            for text in documents(source.form, name, content, source.fields)
        ]
    return read_source(source, path)


def _report(source: Source, count: Count) -> dict[str, Any]:
    return {
        "kind": source.kind,
        "package": str(source.package),
        "license": source.license,
        "documents": count.written,
        "characters": count.characters,
        "overlapping": count.overlapping,
        "repeated": count.repeated,
        "shares_before": count.shares,
    }


def read_heldout(cache: Path, say: Callable[[str], None] = print) -> dict[str, str]:
    """Returns the four held-out texts by kind, out of the package that `demo.fetch` pins."""
    (wheel,) = (w for w in WHEELS if w.package.name == "exllamav2")
    path = fetch_package(wheel.package, cache, "demo/fetch.py", say)
    found = read_members(path, list(wheel.members))
    texts = {Path(name).stem: content.decode("utf-8") for name, content in found.items()}
    return {kind: texts[kind] for kind in KINDS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the texts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.corpora", description=__doc__)
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--plan", type=Path, default=PLAN, help="the list of sources")
    parser.add_argument("--cache", type=Path, default=None, help="default: $OURO_CACHE/packages")
    parser.add_argument(
        "--without", action="append", default=[], metavar="SOURCE", help="leave one out; repeatable"
    )
    given = parser.parse_args(arguments)
    cache = given.cache or default_cache() / "packages"
    try:
        sources = leave_out(read_plan(given.plan), given.without)
        build(given.out, sources, read_heldout(cache), cache)
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
