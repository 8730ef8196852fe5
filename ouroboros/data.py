"""Training and held-out text: reads files, tokenises them, packs them into windows.

Documents are joined with an end-of-text token and cut into windows of one length. A document that
does not fit goes on in the next window. Positions restart at 0 at every document and at every
window, and the model takes a position of 0 as the sign to restart attention and pooling.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ouroboros.errors import DataError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TEXT_SUFFIXES = (".txt", ".utf8")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
FIELD = "text"
IGNORED = -100
_DOCUMENTS_A_CALL = 512


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Lists the data files under `paths`: files as given, folders recursively in sorted order.

    Raises:
        DataError: A path does not exist, a folder holds no data file, or a file that was named
            is of a kind that is not read.
    """
    allowed = ", ".join(SUFFIXES)
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
            if not inside:
                raise DataError(f"{path}: the folder holds no {allowed} file; give another --data")
            found.extend(inside)
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder; check the path")
        elif path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: files ending in {path.suffix or 'nothing'!r} are not read; "
                f"allowed are {allowed}: rename or convert it"
            )
        else:
            found.append(path)
    if not found:
        raise DataError(f"no data given; name at least one {allowed} file or a folder of them")
    return found


def read_text(path: Path) -> str:
    """Reads one file of plain text, whatever it is called.

    Raises:
        DataError: The file is missing, empty, binary or not UTF-8.
    """
    _require_file(path)
    text = _decode(path.read_bytes(), path, offset=0)
    if not text.strip():
        raise DataError(f"{path}: the file is empty; give a file with text in it")
    return text


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file")
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")


def read_documents(path: Path) -> Iterator[str]:
    """Yields the documents of one data file, blank ones left out.

    A .txt or .utf8 file is one document; a .jsonl file holds one a line and a .parquet file one a
    row, in the field "text".

    Raises:
        DataError: The file cannot be read as what its name says, or holds no document.
    """
    match path.suffix:
        case ".jsonl":
            documents = _read_jsonl(path)
        case ".parquet":
            documents = _read_parquet(path)
        case _:
            documents = iter((read_text(path),))
    count = 0
    for document in documents:
        if document.strip():
            count += 1
            yield document
    if not count:
        raise DataError(f"{path}: no documents in it; give a file with text in it")


def end_of_text_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token put between documents: `<|endoftext|>` where there is one, else eos.

    An instruction-tuned model's eos ends a chat turn, its base model's `<|endoftext|>` a document.

    Raises:
        DataError: The tokenizer has neither.
    """
    token = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    if token is None:
        raise DataError(
            "the tokenizer has no end-of-text token to put between documents; "
            "set its eos_token and save the checkpoint's tokenizer again"
        )
    return int(token)


@dataclass(frozen=True)
class PackedWindows:
    """Windows of packed documents: a map-style dataset for a torch DataLoader.

    Attributes:
        input_ids: int32 [windows, seq]
        starts: bool [windows, seq], True at the first token of every document
    """

    input_ids: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `input_ids`, `position_ids` and `labels`, each int64 [seq].

        Labels are not shifted: the model does that, once. The label of a document's first token
        is -100, because the logits before it belong to another document. Every position is
        valid, so there is no attention mask.
        """
        ids = self.input_ids[index].astype(np.int64)
        places = np.arange(len(ids), dtype=np.int64)
        positions = places - np.maximum.accumulate(np.where(self.starts[index], places, 0))
        labels = np.where(positions == 0, IGNORED, ids)
        return {"input_ids": ids, "position_ids": positions, "labels": labels}

    @property
    def seq_len(self) -> int:
        """Tokens a window."""
        return int(self.input_ids.shape[1])

    def fingerprint(self) -> str:
        """Returns a sha256 over every token and document start."""
        digest = hashlib.sha256(str(self.input_ids.shape).encode())
        digest.update(np.ascontiguousarray(self.input_ids).tobytes())
        digest.update(np.packbits(self.starts).tobytes())
        return digest.hexdigest()


def collate(windows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stacks windows to int64 tensors [batch, seq]."""
    import torch

    return {name: torch.from_numpy(np.stack([w[name] for w in windows])) for name in windows[0]}


def pack_documents(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    name: str = "the text",
) -> PackedWindows:
    """Tokenises documents, joins them with end-of-text and cuts windows of `seq_len` tokens.

    What is left after the last whole window is dropped. `name` is what errors call the documents.

    Raises:
        DataError: There are no documents, or too few tokens for one window.
    """
    if seq_len < 2:
        raise DataError(f"seq_len={seq_len} leaves nothing to predict; allowed is 2 or more")
    end = end_of_text_id(tokenizer)
    pieces: list[np.ndarray] = []
    for ids in _tokenise(documents, tokenizer):
        pieces.append(np.asarray([*ids, end], dtype=np.int32))
    if not pieces:
        raise DataError(f"{name}: no documents in it; give files with text in them")
    lengths = np.asarray([len(piece) for piece in pieces])
    total = int(lengths.sum())
    count = total // seq_len
    if count == 0:
        raise DataError(
            f"{name}: {total} tokens in all, shorter than one sequence of {seq_len}; "
            f"give more text or a --seq-len of at most {total}"
        )
    starts = np.zeros(total, dtype=bool)
    starts[np.cumsum(lengths) - lengths] = True
    kept = count * seq_len
    return PackedWindows(
        np.concatenate(pieces)[:kept].reshape(count, seq_len),
        starts[:kept].reshape(count, seq_len),
    )


def load_windows(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, seq_len: int
) -> PackedWindows:
    """Reads every data file under `paths` in order and packs it.

    Raises:
        DataError: As `find_files`, `read_documents` and `pack_documents`.
    """
    files = find_files(paths)
    name = str(files[0]) if len(files) == 1 else f"the {len(files)} data files"
    documents = (document for file in files for document in read_documents(file))
    return pack_documents(documents, tokenizer, seq_len, name)


def eval_windows(
    text: str, tokenizer: PreTrainedTokenizerBase, seq_len: int, max_windows: int
) -> np.ndarray:
    """Cuts the first windows of a held-out text, each taken as a document of its own.

    Args:
        text: The text.
        tokenizer: The model's tokenizer.
        seq_len: Tokens a window.
        max_windows: At most so many windows; a shorter text gives fewer.

    Returns:
        int64 [windows, seq_len]

    Raises:
        DataError: The text is shorter than one window.
    """
    if seq_len < 2 or max_windows < 1:
        raise DataError(
            f"seq_len={seq_len} with {max_windows} windows scores nothing; "
            "allowed are 2 tokens or more and 1 window or more"
        )
    wanted = seq_len * max_windows
    ids: list[int] = []
    # A token rarely takes more than a few characters; long texts need not be tokenised whole.
    characters = 8 * wanted
    while True:
        (ids,) = _tokenise([text[:characters]], tokenizer)
        if len(ids) > wanted or characters >= len(text):
            break
        characters *= 4
    count = min(len(ids) // seq_len, max_windows)
    if count == 0:
        raise DataError(
            f"{len(ids)} tokens, shorter than one sequence of {seq_len}; "
            f"give more text or a --seq-len of at most {len(ids)}"
        )
    return np.asarray(ids[: count * seq_len], dtype=np.int64).reshape(count, seq_len)


def load_eval_windows(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, seq_len: int, max_windows: int
) -> dict[str, np.ndarray]:
    """Reads held-out files; one entry a file, named after its stem, as `eval_windows` cuts it.

    A .jsonl or .parquet file's documents are joined by blank lines; any other name is read as
    plain text.

    Raises:
        DataError: A file cannot be read or is too short, or two files have the same stem.
    """
    windows: dict[str, np.ndarray] = {}
    for path in paths:
        if path.stem in windows:
            raise DataError(f"{path}: a second held-out file called {path.stem!r}; rename one")
        if path.is_dir():
            raise DataError(f"{path}: is a folder; name the held-out files one by one")
        text = (
            "\n\n".join(read_documents(path))
            if path.suffix in (".jsonl", ".parquet")
            else read_text(path)
        )
        try:
            windows[path.stem] = eval_windows(text, tokenizer, seq_len, max_windows)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return windows


def _tokenise(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    group: list[str] = []
    for document in documents:
        group.append(document)
        if len(group) == _DOCUMENTS_A_CALL:
            yield from tokenizer(group, add_special_tokens=False, verbose=False)["input_ids"]
            group = []
    if group:
        yield from tokenizer(group, add_special_tokens=False, verbose=False)["input_ids"]


def _decode(raw: bytes, path: Path, offset: int) -> str:
    nul = raw.find(b"\0")
    if nul >= 0:
        raise DataError(
            f"{path}: not a text file (a NUL byte at byte {offset + nul}); give UTF-8 text"
        )
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {offset + error.start}; "
            "convert it, for example with iconv -f LATIN1 -t UTF-8"
        ) from error


def _read_jsonl(path: Path) -> Iterator[str]:
    _require_file(path)
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, offset)
            offset += len(raw)
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except (ValueError, RecursionError) as error:  # the latter: nested too deeply
                raise DataError(
                    f"{path}: line {number} is not JSON ({error}); write one object a line"
                ) from error
            if not isinstance(record, dict) or not isinstance(record.get(FIELD), str):
                raise DataError(
                    f"{path}: line {number} has no text in a field {FIELD!r}; "
                    f'write objects like {{"{FIELD}": "..."}}'
                )
            try:
                record[FIELD].encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{path}: line {number} holds half a surrogate pair, which is no text; "
                    "mend or drop the line"
                ) from error
            yield record[FIELD]


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    _require_file(path)
    try:
        table = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a readable parquet file ({_first_line(error)}); write it again"
        ) from error
    with table:
        schema = table.schema_arrow
        kinds = (pyarrow.types.is_string, pyarrow.types.is_large_string)
        if FIELD not in schema.names or not any(
            is_kind(schema.field(FIELD).type) for is_kind in kinds
        ):
            raise DataError(
                f"{path}: no column {FIELD!r} of strings, only {', '.join(schema.names)}; "
                f"rename the column with the text to {FIELD!r}"
            )
        try:
            for batch in table.iter_batches(columns=[FIELD]):
                for text in batch.column(0).to_pylist():
                    if text is not None:
                        yield text
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}: column {FIELD!r} holds text that is not UTF-8 ({error.reason}); "
                "mend or drop the row"
            ) from error
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: damaged parquet file ({_first_line(error)}); write it again"
            ) from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
