"""Bundles on disk: opening one verifies every file it lists before any is used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.bundle.cures import COPY_AGAIN, UNREADABLE
from runtime.bundle.manifest import (
    FORMAT_VERSION,
    HASH_NAME,
    MANIFEST_NAME,
    FileSpec,
    Manifest,
    check_file_name,
    check_hash,
    parse_manifest,
    parse_manifest_text,
    render_hash,
    render_manifest,
)
from runtime.bundle.specs import CASES_NAME as CASES_NAME
from runtime.errors import BundleError
from runtime.files.hashing import hash_file as hash_file
from runtime.files.replacing import replacing

MANIFEST_BYTES_LIMIT = 16 * 1024 * 1024
HASH_BYTES_LIMIT = 4096  # it is one line


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A verified bundle: its directory and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists, so that its hash was verified.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"the bundle {self.path} holds no {name}", "export it again")
        return self.path / name

    def read(self, name: str) -> bytes:
        """The content of a small file that the manifest lists, verified once more.

        Raises:
            BundleError: the manifest does not list it, or it has changed since it was verified.
        """
        file = self.file(name)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {file}: {error.strerror}", UNREADABLE) from error
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name].sha256:
            raise BundleError(f"{file} has changed since it was verified", "open the bundle again")
        return content


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads the manifest of a bundle; its files are not looked at.

    Raises:
        BundleError: no directory, no manifest, or one that this version does not understand.
    """
    directory = Path(path)
    file = directory / MANIFEST_NAME
    try:
        if not directory.exists():
            raise BundleError(
                f"no bundle at {directory}", "make one with `ouro export CHECKPOINT OUT`"
            )
        if not directory.is_dir():
            raise BundleError(
                f"{directory} is a file", f"a bundle is a directory with {MANIFEST_NAME}"
            )
        if not file.is_file():
            raise BundleError(
                f"{directory} is not a bundle: it has no {MANIFEST_NAME}",
                "make one with `ouro export CHECKPOINT OUT`",
            )
        if file.stat().st_size > MANIFEST_BYTES_LIMIT:
            raise BundleError(
                f"{file} is larger than {MANIFEST_BYTES_LIMIT} bytes",
                COPY_AGAIN,
            )
        text, hashes = file.read_bytes(), directory / HASH_NAME
        small = hashes.is_file() and hashes.stat().st_size <= HASH_BYTES_LIMIT
        check_hash(text, hashes.read_bytes() if small else None)
        return parse_manifest_text(text)
    except OSError as error:
        raise BundleError(f"cannot read {file}: {error.strerror}", UNREADABLE) from error


def open_bundle(
    path: str | os.PathLike[str], check: Callable[[Manifest], object] | None = None
) -> Bundle:
    """Opens a bundle and verifies the existence, size and sha256 of every file it lists.

    Files that the manifest does not list are left alone and never used.

    Args:
        path: the bundle's directory.
        check: called with the manifest before the files are read; what it raises ends it there.

    Raises:
        BundleError: not a bundle, an unknown version, a missing or a changed file.
    """
    manifest = read_manifest(path)
    if check is not None:
        check(manifest)
    directory = Path(path)
    for name, spec in manifest.files.items():
        verify_file(directory, name, spec)
    return Bundle(directory, manifest)


def find_damage(directory: Path, manifest: Manifest) -> dict[str, BundleError]:
    """Compares every file with the manifest, to the last.

    Args:
        directory: of the bundle.
        manifest: its own.

    Returns:
        What is wrong, by the name of the file, in the manifest's order; empty where all are whole.
    """
    damage = {}
    for name, spec in manifest.files.items():
        try:
            verify_file(directory, name, spec)
        except BundleError as error:
            damage[name] = error
    return damage


def verify_file(directory: Path, name: str, spec: FileSpec) -> None:
    """Compares one file with the manifest.

    Raises:
        BundleError: it is missing, leads out of the bundle, or differs by as much as a bit.
    """
    check_file_name(name)
    file = directory / name
    try:
        if not file.resolve().is_relative_to(directory.resolve()):
            raise BundleError(f"{file} is a link out of the bundle", "copy the file in its place")
        if not file.is_file():
            raise BundleError(f"the bundle {directory} lacks {name}", "copy or export it again")
        size = file.stat().st_size
        if size != spec.bytes:
            raise BundleError(
                f"{file} has {size} bytes, its manifest says {spec.bytes}",
                "copy or export it again",
            )
        digest = hash_file(file)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise BundleError(
            f"cannot read {file}: {str(error).splitlines()[0]}", UNREADABLE
        ) from error
    if digest != spec.sha256:
        raise BundleError(
            f"{file} is damaged or was changed: sha256 {digest[:12]}..., its manifest says "
            f"{spec.sha256[:12]}...",
            "copy or export it again",
        )


def write_manifest(
    directory: Path, hashes: Mapping[str, str] | None = None, /, **fields: object
) -> Manifest:
    """Writes a directory's manifest.json, with the hash of every file in it.

    Args:
        directory: the bundle, complete but for its manifest.
        hashes: the sha256 of files by name, where whoever wrote them computed it meanwhile; the
            others are read. `open_bundle` trusts none of them: it reads every file.
        **fields: every key of the manifest but `format_version` and `files`, each as JSON values or
            as the dataclass of runtime.bundle.manifest.

    Returns:
        The manifest, read back as `open_bundle` reads it.

    Raises:
        BundleError: a field is missing, unknown or wrong; or the directory holds a manifest.json of
            something else, which would be lost.
        OSError: the file can't be written; what was there is unchanged.
    """
    target = directory / MANIFEST_NAME
    if os.path.lexists(target) and not _is_ours(target):
        raise BundleError(
            f"{target} is not a bundle's, so it is left alone", "give another directory"
        )
    known, files = hashes or {}, {}
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory).as_posix()
        if file.is_file() and name not in (MANIFEST_NAME, HASH_NAME):
            digest = known.get(name) or hash_file(file)
            files[name] = {"sha256": digest, "bytes": file.stat().st_size}
    plain = json.loads(json.dumps(fields, default=_to_json, allow_nan=False))
    data = {"format_version": FORMAT_VERSION, **plain, "files": files}
    manifest = parse_manifest(data)
    text = render_manifest(data).encode()
    for name, content in ((MANIFEST_NAME, text), (HASH_NAME, render_hash(text))):
        with replacing(directory / name) as staged:
            staged.write_bytes(content)
    return manifest


def _is_ours(file: Path) -> bool:
    try:
        return "format_version" in json.loads(file.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _to_json(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written to {MANIFEST_NAME}")
