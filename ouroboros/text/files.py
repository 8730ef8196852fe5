"""Which files hold text: finds them under folders, and refuses what can't be read."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ouroboros.errors import DataError

Report = Callable[[str], None]

TEXT_SUFFIXES = (".txt", ".utf8")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
ALLOWED = f"{', '.join(SUFFIXES)}, all but the last also with {', '.join(COMPRESSIONS)} after it"
# Files that come along with data and hold none, by their name without the ending, in lower case.
COMPANIONS = (
    "readme",
    "license",
    "licence",
    "notice",
    "attribution",
    "dataset_info",
    "dataset_infos",
    "dataset_dict",
    "state",
    "_success",
    "checksums",
    "sha256sums",
    "md5sums",
    "desktop",
    "thumbs",
)
COMPANION_SUFFIXES = (".sha256", ".md5", ".crc", ".lock", ".gitignore", ".gitattributes")
_NAMES_A_KIND = 3


def file_kind(path: Path) -> str:
    """Returns the ending that tells how a file is read, in lower case; "" where it is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        inner = suffixes[-2] if len(suffixes) > 1 else ""
        return inner if inner in (*TEXT_SUFFIXES, ".jsonl") else ""
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def text_name(path: Path) -> str:
    """Returns a file's name without its endings: `wiki` of wiki.jsonl.gz."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


def find_files(paths: Sequence[Path], report: Report | None = None) -> list[Path]:
    """Lists the data files under `paths`: files as given, folders recursively in sorted order.

    Links are followed, but none twice and none that leads back; hidden files are left out.

    Args:
        paths: files and folders.
        report: gets a line about what a folder holds and is not read.

    Raises:
        DataError: A path does not exist, a folder holds no data file, or a file that was named
            is of a kind that is not read.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside, others = _search(path)
            if others and report is not None:
                report(f"{path}: not read: {_count_kinds(others)}; read are {ALLOWED}")
            if not inside:
                raise DataError(
                    f"{path}: the folder holds no {', '.join(SUFFIXES)} file"
                    f"{f', but {_count_kinds(others)}' if others else ''}",
                    "give another --data",
                )
            found.extend(inside)
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder", "check the path")
        elif not file_kind(path):
            raise DataError(
                f"{path}: files ending in {''.join(path.suffixes[-2:]) or 'nothing'!r} are not "
                f"read",
                f"allowed are {ALLOWED}: rename or convert it",
            )
        else:
            found.append(path)
    if not found:
        raise DataError(
            "no data given", f"name at least one {', '.join(SUFFIXES)} file or a folder of them"
        )
    return found


def require_file(path: Path) -> None:
    """Refuses what is no file.

    Raises:
        DataError: it is a folder, missing, a pipe or a device.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder", "name a file")
    if not path.exists():
        raise DataError(f"{path}: no such file", "check the path")
    if not path.is_file():
        raise DataError(
            f"{path}: a pipe or a device, and a text is read more than once", "write it to a file"
        )


def require_readable(files: Iterable[Path]) -> None:
    """Refuses files that can't be opened; what they hold is not looked at.

    Raises:
        DataError: one is missing, no file, or may not be read.
    """
    for path in files:
        require_file(path)
        try:
            path.open("rb").close()
        except OSError as error:
            raise DataError(
                f"{path}: can't be read: {error.strerror}", "check its rights"
            ) from error


def _search(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the data files in a folder and what else is there, both sorted."""
    root = folder.resolve()
    seen: set[Path] = set()
    files: list[Path] = []
    others: list[Path] = []

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be listed ({error.strerror})", "check its rights")

    links = [folder]
    while links:
        for name, folders, names in os.walk(links.pop(0), onerror=fail):
            seen.add(Path(name).resolve())
            folders[:] = sorted(one for one in folders if not one.startswith("."))
            for one in list(folders):
                inner = Path(name, one)
                if not inner.is_symlink():
                    continue
                # What lies in the tree is found there; what the tree lies in would lead back.
                target = inner.resolve()
                folders.remove(one)
                if target in root.parents:
                    others.append(inner)
                elif target != root and root not in target.parents and target not in seen:
                    seen.add(target)
                    links.append(inner)
            files.extend(Path(name, one) for one in names if not one.startswith("."))
    unique: dict[Path, Path] = {}
    for path in sorted(files, key=lambda one: (one.is_symlink(), one.parts)):
        if path.is_file():
            unique.setdefault(path.resolve(), path)
        else:
            others.append(path)
    inside = sorted(path for path in unique.values() if file_kind(path))
    others += [path for path in unique.values() if not file_kind(path) and not _is_companion(path)]
    return inside, sorted(others)


def _is_companion(path: Path) -> bool:
    return path.stem.lower() in COMPANIONS or path.suffix.lower() in COMPANION_SUFFIXES


def _count_kinds(paths: Iterable[Path]) -> str:
    kinds: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        kind = "links that lead nowhere or back"
        if path.is_file():
            two = path.suffix.lower() in COMPRESSIONS
            kind = "".join(path.suffixes[-2:] if two else path.suffixes[-1:]).lower()
        kinds[kind or "without an ending"].append(path.name)
    parts = []
    for kind, names in kinds.items():
        more = ", ..." if len(names) > _NAMES_A_KIND else ""
        parts.append(f"{len(names)} {kind} ({', '.join(names[:_NAMES_A_KIND])}{more})")
    return ", ".join(parts)
