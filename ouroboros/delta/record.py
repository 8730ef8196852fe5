"""`delta.json`: what a delta holds, what it takes from its source, and what comes out of both.

Whatever stands in it is checked before it is believed; whoever wrote it may be anybody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ouroboros.delta.options import BFLOAT16, LOSSLESS
from ouroboros.errors import CheckpointError
from ouroboros.storage.tensors import DTYPES
from runtime.files.destinations import DELTA_FORMAT, DELTA_NAME

VERSION = 2
_READ = (1, VERSION)  # the first knows no updates
INDEX = "delta.safetensors.index.json"
SHARD = "delta-{number:05}-of-{count:05}.safetensors"
TEMPLATES = "additional_chat_templates"  # the one folder that a checkpoint holds
_READ_AT_MOST = 16 << 20
_INTACT = "get an intact copy of the delta"
_HASH = re.compile(r"[0-9a-f]{64}")
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DIMENSIONS, _LARGEST = 8, 1 << 48

T = TypeVar("T")


@dataclass(frozen=True)
class SourceRecord:
    """The original model that a delta stands on.

    Attributes:
        name: what it is known by.
        sha256: of its weight files: of their hashes, in the order of their names.
        files: sha256 of each weight file by its name.
        url: its page, empty where none is known.
        commit: of the hub, empty likewise.
    """

    name: str
    sha256: str
    files: dict[str, str]
    url: str = ""
    commit: str = ""


@dataclass(frozen=True)
class UpdateRecord:
    """A low-rank update of a weight: the product b a of two factors in the delta's own files.

    Attributes:
        rank: of a `[rank, in]` and b `[out, rank]`.
        a: names of the delta's tensors that are the numbers of a, flat and in order.
        b: those of b.
    """

    rank: int
    a: tuple[str, ...]
    b: tuple[str, ...]


@dataclass(frozen=True)
class TensorRecord:
    """Where a tensor of the checkpoint comes from: the source, or the delta's own files.

    Attributes:
        kind: the type it has in the checkpoint, as safetensors calls it.
        shape: its dimensions.
        source: the tensor of the source that it equals in that type, or that it is with `updates`
            added; empty where it is the delta's.
        pieces: names of the delta's tensors that are its numbers, flat and in order, else none.
        updates: what is added to the source's tensor, in order.
    """

    kind: str
    shape: tuple[int, ...]
    source: str = ""
    pieces: tuple[str, ...] = ()
    updates: tuple[UpdateRecord, ...] = ()


@dataclass(frozen=True)
class WeightsRecord:
    """One weight file of the checkpoint.

    Attributes:
        sha256: of the file as it is restored.
        metadata: the file's own.
        tensors: by name.
    """

    sha256: str
    metadata: dict[str, str]
    tensors: dict[str, TensorRecord]


@dataclass(frozen=True)
class FileRecord:
    """One of the delta's own files: its sha256 and size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class DeltaRecord:
    """The content of `delta.json`.

    Attributes:
        dtype: LOSSLESS, or BFLOAT16 where the delta's own tensors were rounded.
        checkpoint_sha256: of the checkpoint that the delta was made from.
        source: the original model.
        weights: weight files of the checkpoint by name.
        copied: the vocabulary's files that lie beside the source's weights byte for byte: their
            sha256 by name.
        files: all other files of the checkpoint, each in one or more of the delta's, in order.
        own: the delta's own files by name, but for `delta.json`.
    """

    dtype: str
    checkpoint_sha256: str
    source: SourceRecord
    weights: dict[str, WeightsRecord]
    copied: dict[str, str]
    files: dict[str, tuple[str, ...]]
    own: dict[str, FileRecord]


def write_record(folder: Path, record: DeltaRecord) -> None:
    """Writes `delta.json` into a folder."""
    data = {"format": DELTA_FORMAT, "version": VERSION, **asdict(record)}
    text = json.dumps(data, indent=1, sort_keys=True) + "\n"
    (folder / DELTA_NAME).write_text(text, encoding="utf-8")


def read_record(folder: Path) -> DeltaRecord:
    """Reads and checks the `delta.json` of a folder.

    Raises:
        CheckpointError: it is missing, of another version, or says what no delta says.
    """
    file = folder / DELTA_NAME
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: no delta here ({DELTA_NAME} is missing)",
            "make one with `ouro delta CHECKPOINT OUT --source SOURCE`",
        )
    try:
        if file.stat().st_size > _READ_AT_MOST:
            raise _BadRecordError(f"it is {file.stat().st_size:,} bytes long")
        data = json.loads(file.read_text(encoding="utf-8"))
        fields = _object(data, "it")
        if fields.pop("format", None) != DELTA_FORMAT:
            raise _BadRecordError(f"its format is not {DELTA_FORMAT}")
        version = fields.pop("version", None)
        if type(version) is not int or version not in _READ:
            raise CheckpointError(
                f"{file}: version {version!r:.20} is not known, this is {VERSION}",
                "make the delta again, or use the ouro that made it",
            )
        return _read_fields(fields)
    except _BadRecordError as error:
        raise CheckpointError(f"{file}: {error}", _INTACT) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{file}: can't be read as JSON: {reason}", _INTACT) from error


class _BadRecordError(Exception):
    """What is wrong with a record; the caller adds the file and what to do."""


def _read_fields(fields: dict[str, Any]) -> DeltaRecord:
    _require_keys(fields, DeltaRecord, "it")
    if fields["dtype"] not in (LOSSLESS, BFLOAT16):
        raise _BadRecordError(f"dtype is {fields['dtype']!r:.40}, not {LOSSLESS} or {BFLOAT16}")
    source = _object(fields["source"], "source")
    _require_keys(source, SourceRecord, "source")
    return DeltaRecord(
        fields["dtype"],
        _hash(fields["checkpoint_sha256"], "checkpoint_sha256"),
        SourceRecord(
            _text(source["name"], "source.name"),
            _hash(source["sha256"], "source.sha256"),
            _table(source["files"], "source.files", _text, _hash),
            _text(source["url"], "source.url"),
            _text(source["commit"], "source.commit"),
        ),
        _table(fields["weights"], "weights", _weights_name, _weights),
        _table(fields["copied"], "copied", file_name, _hash),
        _table(fields["files"], "files", file_name, _parts),
        _table(fields["own"], "own", file_name, _file),
    )


def _require_keys(fields: dict[str, Any], kind: Any, where: str) -> None:
    known = set(kind.__dataclass_fields__)
    for name in sorted(known.symmetric_difference(fields)):
        state = "lacks" if name in known else "has the unknown key"
        raise _BadRecordError(f"{where} {state} {name!r:.80}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _BadRecordError(f"{where} is no object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _BadRecordError(f"{where} is no list")
    return value


def _table(
    value: Any, where: str, key: Callable[[Any, str], str], item: Callable[[Any, str], T]
) -> dict[str, T]:
    rows = _object(value, where).items()
    return {key(name, f"a name in {where}"): item(one, f"{where}.{name:.80}") for name, one in rows}


def _text(value: Any, where: str) -> str:
    # A lone half of a surrogate pair is JSON, and no text that could be written.
    if (
        not isinstance(value, str)
        or len(value) > 1000
        or any("\ud800" <= c <= "\udfff" for c in value)
    ):
        raise _BadRecordError(f"{where} is {value!r:.80}, no short text")
    return value


def _hash(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise _BadRecordError(f"{where} is {value!r:.80}, no sha256")
    return value


def _count(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise _BadRecordError(f"{where} is {value!r:.80}, no size")
    return value


def is_plain(name: str) -> bool:
    """Says whether a file of this name may be in a delta, beside others or among templates."""
    parts = name.split("/")
    plain = all(_PLAIN.fullmatch(part) for part in parts)
    return plain and (len(parts) == 1 or (len(parts) == 2 and parts[0] == TEMPLATES))


def file_name(value: Any, where: str) -> str:
    """Returns a file's name, which lies in the folder itself or in that of chat templates."""
    if not isinstance(value, str) or not is_plain(value):
        raise _BadRecordError(f"{where} is {value!r:.80}, no plain file name")
    return str(value)


def _weights_name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not WEIGHTS.fullmatch(value):
        raise _BadRecordError(f"{where} is {value!r:.80}, not the name of a weight file")
    return value


def _parts(value: Any, where: str) -> tuple[str, ...]:
    parts = tuple(file_name(one, where) for one in _list(value, where))
    if not parts:
        raise _BadRecordError(f"{where} is empty")
    return parts


def _file(value: Any, where: str) -> FileRecord:
    fields = _object(value, where)
    _require_keys(fields, FileRecord, where)
    return FileRecord(_hash(fields["sha256"], where), _count(fields["bytes"], where))


def _weights(value: Any, where: str) -> WeightsRecord:
    fields = _object(value, where)
    _require_keys(fields, WeightsRecord, where)
    return WeightsRecord(
        _hash(fields["sha256"], where),
        _table(fields["metadata"], f"{where}.metadata", _text, _text),
        _table(fields["tensors"], f"{where}.tensors", _text, _tensor),
    )


def _tensor(value: Any, where: str) -> TensorRecord:
    fields = {"updates": [], **_object(value, where)}
    _require_keys(fields, TensorRecord, where)
    shape = tuple(_count(one, where) for one in _list(fields["shape"], where))
    source = _text(fields["source"], where)
    pieces = tuple(_text(one, where) for one in _list(fields["pieces"], where))
    if fields["kind"] not in DTYPES or len(shape) > _DIMENSIONS:
        raise _BadRecordError(f"{where} is {fields['kind']!r:.20} {list(shape)!r:.80}, no weight")
    if bool(source) == bool(pieces):
        raise _BadRecordError(f"{where} comes from both the source and the delta, or from neither")
    updates = tuple(_update(one, shape, where) for one in _list(fields["updates"], where))
    if updates and not source:
        raise _BadRecordError(f"{where} has updates of no tensor of the source")
    return TensorRecord(fields["kind"], shape, source, pieces, updates)


def _update(value: Any, shape: tuple[int, ...], where: str) -> UpdateRecord:
    fields = _object(value, where)
    _require_keys(fields, UpdateRecord, where)
    rank = _count(fields["rank"], where)
    if len(shape) != 2 or not 1 <= rank <= min(shape):
        raise _BadRecordError(f"{where} has an update of rank {rank}, its shape is {list(shape)}")
    a, b = (
        tuple(_text(one, where) for one in _list(fields[side], f"{where}.{side}")) for side in "ab"
    )
    return UpdateRecord(rank, a, b)
