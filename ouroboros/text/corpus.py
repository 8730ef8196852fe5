"""Files of text: reads their documents, compressed ones too."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ouroboros.errors import DataError
from ouroboros.text.files import COMPRESSIONS, Report, file_kind, require_file

FIELD = "text"
_ROWS_A_BATCH = 256  # of a parquet file, held at a time: a row group may be as large as the file
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """Reads one file of plain text, whatever it is called.

    Raises:
        DataError: The file is missing, empty, binary or not UTF-8.
    """
    with _open(path) as file:
        text = _decode(file.read(), path, offset=0)
    if not text.strip():
        raise DataError(f"{path}: the file is empty", "give a file with text in it")
    return text


def read_whole(path: Path, report: Report | None = None) -> str:
    """Reads one file as one text: the documents of a .jsonl or .parquet file by blank lines.

    Any other name is read as plain text.

    Raises:
        DataError: As `read_documents`.
    """
    if file_kind(path) in (".jsonl", ".parquet"):
        return "\n\n".join(read_documents(path, report))
    return read_text(path)


def read_documents(path: Path, report: Report | None = None) -> Iterator[str]:
    """Yields the documents of one data file, blank ones left out.

    A .txt or .utf8 file is one document; a .jsonl file holds one a line and a .parquet file one a
    row, in the field "text". Where that is null, the line or row is left out.

    Args:
        path: the file.
        report: gets a line about how many were null.

    Raises:
        DataError: The file cannot be read as what its name says, or holds no document.
    """
    documents: Iterator[str | None]
    match file_kind(path):
        case ".jsonl":
            documents = _read_jsonl(path)
        case ".parquet":
            documents = _read_parquet(path)
        case _:
            documents = iter((read_text(path),))
    count = nulls = 0
    for document in documents:
        if document is None:
            nulls += 1
        elif document.strip():
            count += 1
            yield document
    if not count:
        null = f": all {nulls} texts are null" if nulls else ""
        raise DataError(f"{path}: no documents in it{null}", "give a file with text in it")
    if nulls and report is not None:
        report(f"{path}: {nulls} of its texts {'is' if nulls == 1 else 'are'} null and left out")


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to read its bytes, decompressed where its name ends so."""
    require_file(path)
    suffix = path.suffix.lower()
    if suffix not in COMPRESSIONS:
        with path.open("rb") as plain:
            yield plain
        return
    try:
        with _decompress(path, suffix) as stream:
            yield stream
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: damaged or no {suffix} file ({first_line(error)})",
            "copy or compress it again",
        ) from error


def _decompress(path: Path, suffix: str) -> BinaryIO:
    match suffix:
        case ".gz":
            return cast("BinaryIO", gzip.open(path))
        case ".bz2":
            return cast("BinaryIO", bz2.open(path))
        case ".xz":
            return cast("BinaryIO", lzma.open(path))
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: pyarrow, which reads .zst, is not installed", "decompress the file"
        ) from error
    stream = pyarrow.input_stream(str(path), compression="zstd")
    return cast("BinaryIO", io.BufferedReader(stream))


def _decode(raw: bytes, path: Path, offset: int) -> str:
    if offset == 0 and raw.startswith(_UTF16):
        raise DataError(f"{path}: is UTF-16", "convert it with iconv -f UTF-16 -t UTF-8")
    nul = raw.find(b"\0")
    if nul >= 0:
        raise DataError(
            f"{path}: not a text file (a NUL byte at byte {offset + nul})", "give UTF-8 text"
        )
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {offset + error.start}",
            "convert it, for example with iconv -f LATIN1 -t UTF-8",
        ) from error


def _read_jsonl(path: Path) -> Iterator[str | None]:
    offset = 0
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, offset)
            offset += len(raw)
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except (ValueError, RecursionError) as error:  # the latter: nested too deeply
                raise DataError(
                    f"{path}: line {number} is not JSON ({error})", "write one object a line"
                ) from error
            yield _text_of(record, line, f"{path}: line {number}")


def _text_of(record: Any, line: str, where: str) -> str | None:
    """Returns the text of one line's record; None where it is null."""
    cure = f'write objects like {{"{FIELD}": "..."}}'
    if not isinstance(record, dict):
        raise DataError(
            f"{where} has no text in a field {FIELD!r}, it is {_json_kind(record)}", cure
        )
    if FIELD not in record:
        fields = ", ".join(map(repr, list(record)[:8])) or "none"
        raise DataError(f"{where} has no text in a field {FIELD!r}, only {fields:.200}", cure)
    text = record[FIELD]
    if line.count(f'"{FIELD}"') > 1:
        pairs: list[tuple[str, Any]] = json.loads(line, object_pairs_hook=list)
        if sum(name == FIELD for name, _ in pairs) > 1:
            raise DataError(f"{where} has the field {FIELD!r} more than once", "leave one")
    if text is None:
        return None
    if not isinstance(text, str):
        raise DataError(f"{where} has no text in a field {FIELD!r}, but {_json_kind(text)}", cure)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a surrogate pair, which is no text", "mend or drop the line"
        ) from error
    return text


def _json_kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case list():
            return "an array"
        case dict():
            return "an object"
        case str():
            return "a string"
        case bool():
            return "true or false"
        case _:
            return "a number"


def _read_parquet(path: Path) -> Iterator[str | None]:
    import pyarrow
    from pyarrow import parquet

    require_file(path)
    try:
        with parquet.ParquetFile(path) as table:
            _require_strings(path, table.schema_arrow)
            for batch in table.iter_batches(_ROWS_A_BATCH, columns=[FIELD]):
                yield from batch.column(0).to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: holds text that is not UTF-8 ({error.reason}), in the column {FIELD!r} or a "
            "column's name",
            "mend it or drop the row",
        ) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: damaged or no parquet file ({first_line(error)})", "write it again"
        ) from error


def _require_strings(path: Path, schema: Any) -> None:
    from pyarrow import types

    if (count := schema.names.count(FIELD)) != 1:
        what = f"{count} columns {FIELD!r}" if count else f"no column {FIELD!r} of strings"
        raise DataError(
            f"{path}: {what}, only {', '.join(schema.names):.200}",
            f"rename the column with the text to {FIELD!r}",
        )
    kind = schema.field(FIELD).type
    plain = kind.value_type if types.is_dictionary(kind) else kind
    kinds = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(is_kind(plain) for is_kind in kinds):
        raise DataError(
            f"{path}: the column {FIELD!r} holds {first_line(str(kind)):.80}, not strings",
            "write it as strings, one text a row",
        )


def first_line(error: object) -> str:
    """Returns the first line of an error's message, its type's name where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
