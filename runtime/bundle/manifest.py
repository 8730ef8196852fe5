"""The bundle's manifest, read strictly from JSON.

Every key must be there and no other may (`depth.halting` is there where the model has a halter):
a manifest this version does not fully understand is refused by the name of the first thing that is
wrong, never half-read. A key that is added, removed or changes its meaning takes a new
FORMAT_VERSION, so that an older bundle is refused as one.
The hash of its bytes stands in a file beside it (see `check_hash`), so that a changed manifest is
seen as well as a changed file. `docs/bundle.md` is the specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
import unicodedata
from typing import Any

from runtime.bundle.cures import COPY_AGAIN, EXPORT_AGAIN
from runtime.bundle.rules import ACCURACY_LEVELS as ACCURACY_LEVELS
from runtime.bundle.rules import check_file_name as check_file_name
from runtime.bundle.rules import check_manifest, shorten
from runtime.bundle.specs import BRIDGES as BRIDGES
from runtime.bundle.specs import FORMAT_VERSION as FORMAT_VERSION
from runtime.bundle.specs import HALTERS as HALTERS
from runtime.bundle.specs import HASH_NAME as HASH_NAME
from runtime.bundle.specs import MANIFEST_NAME as MANIFEST_NAME
from runtime.bundle.specs import POOLINGS as POOLINGS
from runtime.bundle.specs import CheckpointSpec as CheckpointSpec
from runtime.bundle.specs import DepthSpec as DepthSpec
from runtime.bundle.specs import FileSpec as FileSpec
from runtime.bundle.specs import GraphSpec as GraphSpec
from runtime.bundle.specs import GraphsSpec as GraphsSpec
from runtime.bundle.specs import HaltingSpec as HaltingSpec
from runtime.bundle.specs import Manifest as Manifest
from runtime.bundle.specs import ModelSpec as ModelSpec
from runtime.bundle.specs import ParitySpec as ParitySpec
from runtime.bundle.specs import QuantizationSpec as QuantizationSpec
from runtime.bundle.specs import SamplingSpec as SamplingSpec
from runtime.bundle.specs import TokenizerSpec as TokenizerSpec
from runtime.bundle.strict_json import read_json
from runtime.errors import BundleError

SPECIAL_TOKENS = ("tokenizer.bos_token", "tokenizer.eos_token")  # may be a line break
CHAT = "tokenizer.chat."  # its pieces hold line breaks


def parse_manifest_text(text: str | bytes) -> Manifest:
    """Reads a manifest from the text of manifest.json.

    Raises:
        BundleError: not JSON, or not a manifest this version understands.
    """
    return parse_manifest(_read_json(text))


def check_hash(text: bytes, said: bytes | None) -> None:
    """Compares the bytes of manifest.json with the hash beside it.

    Args:
        text: of manifest.json.
        said: the content of manifest.sha256: the sha256 in lower-case hexadecimal, two spaces and
            the name, as `sha256sum` prints it; None where there is no such file.

    Raises:
        BundleError: an older bundle, which has none; or they differ.
    """
    if said is None:
        check_version(_read_json(text))
        raise BundleError(f"the bundle has no {HASH_NAME} of one line", "copy or export it again")
    if said != render_hash(text):
        raise BundleError(
            f"{MANIFEST_NAME} is damaged or was changed: its sha256 is not the one in {HASH_NAME}",
            COPY_AGAIN,
        )


def render_hash(text: bytes) -> bytes:
    """The content of manifest.sha256."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST_NAME}\n".encode()


def render_manifest(data: dict[str, Any]) -> str:
    """The text of manifest.json as it is written; any other JSON of the same values reads alike."""
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _read_json(text: str | bytes) -> object:
    try:
        return read_json(text)
    except ValueError as error:
        raise BundleError(
            f"{MANIFEST_NAME} is not JSON: {str(error).splitlines()[0]}",
            COPY_AGAIN,
        ) from error


def check_version(data: object) -> dict[str, Any]:
    """Refuses what is no manifest of this version, and returns what is.

    Raises:
        BundleError: not an object, or of another format version.
    """
    if not isinstance(data, dict):
        raise BundleError(
            f"{MANIFEST_NAME} holds a {type(data).__name__}, not an object",
            "is this an Ouroboros bundle?",
        )
    version = data.get("format_version")
    if version is None:
        raise BundleError(f"{MANIFEST_NAME} has no format_version", "is this an Ouroboros bundle?")
    if type(version) is not int or version != FORMAT_VERSION:
        newer = type(version) is int and version > FORMAT_VERSION
        advice = "update ouroboros" if newer else "export the checkpoint again"
        raise BundleError(
            f"bundle format_version {shorten(version)} is not the {FORMAT_VERSION} that this "
            f"version reads",
            advice,
        )
    return data


def parse_manifest(data: object) -> Manifest:
    """Reads a manifest from JSON values.

    Raises:
        BundleError: a version, key or value that this version does not understand.
    """
    manifest = typing.cast(Manifest, _read(Manifest, check_version(data), ""))
    check_manifest(manifest)
    return manifest


def _is_plain(text: str) -> bool:
    """No control characters, which steer a terminal, and no half of a surrogate pair."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _read(kind: Any, value: Any, where: str) -> Any:
    """Reads `value` as the type `kind`; `where` is its dotted name for the error message."""
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        for option in arguments:
            try:
                return _read(option, value, where)
            except BundleError:
                continue
        raise _wrong(where, value, " or ".join(_type_name(option) for option in arguments))
    if kind is type(None):
        if value is None:
            return None
        raise _wrong(where, value, "null")
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        for key in value:
            if not _is_plain(key):
                raise _wrong(f"a key of {where}", key, "text without control characters")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        if abs(value) > 2**53:
            raise _wrong(where, value, "a number of that size")
        return float(value)
    if type(value) is not kind:
        raise _wrong(where, value, _type_name(kind))
    free = where in SPECIAL_TOKENS or where.startswith(CHAT)
    if kind is str and not free and not _is_plain(value):
        raise _wrong(where, value, "text without control characters")
    return value


def _read_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in hints:
            raise BundleError(
                f"{MANIFEST_NAME} has the unknown key {prefix}{repr(key)[1:-1]}", EXPORT_AGAIN
            )
    for field in dataclasses.fields(kind):
        if field.name not in value and field.default is dataclasses.MISSING:
            raise BundleError(f"{MANIFEST_NAME} lacks the key {prefix}{field.name}", EXPORT_AGAIN)
    return kind(**{key: _read(hints[key], value[key], prefix + key) for key in value})


def _type_name(kind: Any) -> str:
    names = {type(None): "null", str: "a string", int: "an integer", float: "a number"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _wrong(where: str, value: object, wanted: str) -> BundleError:
    return BundleError(f"{MANIFEST_NAME}: {where} is {shorten(value)}, not {wanted}", EXPORT_AGAIN)
