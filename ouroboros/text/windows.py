"""Training and held-out text: tokenises documents and packs them into windows.

A document starts with what the tokenizer puts before a text, if anything, and ends with an
end-of-text token; all are joined and cut into windows of one length. A document that does not fit
goes on in the next window. Positions restart at 0 at every document and at every
window, and the model takes a position of 0 as the sign to restart attention and pooling.

Texts may be larger than memory: they are read piece by piece, and tokens beyond `HELD_BYTES` lie on
disk, in a file without a name that goes with the process.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ouroboros.errors import DataError
from ouroboros.model.limits import check_ids
from ouroboros.text.boundaries import encode, end_of_text_id, prefix_ids
from ouroboros.text.corpus import read_documents, read_text, read_whole
from ouroboros.text.files import Report, find_files, text_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "PackedWindows",
    "collate",
    "end_of_text_id",
    "eval_windows",
    "find_files",
    "load_eval_windows",
    "load_windows",
    "pack_documents",
    "prefix_ids",
    "read_documents",
    "read_text",
    "read_whole",
]

IGNORED = -100
HELD_BYTES = 1 << 28
"""Of tokens, and of marks where documents start, that are kept in memory."""
_DOCUMENTS_A_CALL = 512
_WINDOWS_A_PIECE = 1 << 12  # hashed at a time; a multiple of 8, since marks are hashed as bits


@dataclass(frozen=True)
class PackedWindows:
    """Windows of packed documents: a map-style dataset for a torch DataLoader.

    Attributes:
        input_ids: int32 [windows, seq]
        starts: bool [windows, seq], True at the first token of every document
        prefix: tokens that every document starts with and that are given, not predicted
    """

    input_ids: np.ndarray
    starts: np.ndarray
    prefix: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `input_ids`, `position_ids` and `labels`, each int64 [seq].

        Labels are not shifted: the model does that, once. The label of a document's first token
        is -100, because the logits before it belong to another document, and so are those of its
        prefix. Every position is valid, so there is no attention mask.
        """
        ids = self.input_ids[index].astype(np.int64)
        places = np.arange(len(ids), dtype=np.int64)
        positions = places - np.maximum.accumulate(np.where(self.starts[index], places, 0))
        given = positions == 0
        for offset in range(1, self.prefix):
            given[offset:] |= self.starts[index, :-offset]
        labels = np.where(given, IGNORED, ids)
        return {"input_ids": ids, "position_ids": positions, "labels": labels}

    @property
    def seq_len(self) -> int:
        """Tokens a window."""
        return int(self.input_ids.shape[1])

    def fingerprint(self) -> str:
        """Returns a sha256 over every token and document start."""
        digest = hashlib.sha256(str(self.input_ids.shape).encode())
        pieces = [slice(at, at + _WINDOWS_A_PIECE) for at in range(0, len(self), _WINDOWS_A_PIECE)]
        for piece in pieces:
            digest.update(np.ascontiguousarray(self.input_ids[piece]).tobytes())
        for piece in pieces:
            digest.update(np.packbits(self.starts[piece]).tobytes())
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

    Every document starts with the tokenizer's `prefix_ids`.

    What is left after the last whole window is dropped. `name` is what errors call the documents.

    Raises:
        DataError: There are no documents, or too few tokens for one window.
    """
    if seq_len < 2:
        raise DataError(f"seq_len={seq_len} leaves nothing to predict", "allowed is 2 or more")
    end, begin = end_of_text_id(tokenizer), prefix_ids(tokenizer)
    with _Column(np.dtype(np.int32)) as tokens, _Column(np.dtype(bool)) as starts:
        for ids in _tokenise(documents, tokenizer):
            piece = np.asarray([*begin, *ids, end], dtype=np.int64)
            check_ids(name, piece, 1 << 31)  # so that int32 holds them
            tokens.add(piece)
            starts.add(np.arange(len(piece)) == 0)
        total = tokens.count
        if not total:
            raise DataError(f"{name}: no documents in it", "give files with text in them")
        count = total // seq_len
        if count == 0:
            raise DataError(
                f"{name}: {total} tokens in all, shorter than one sequence of {seq_len}",
                f"give more text or a --seq-len of at most {total}",
            )
        shape, kept = (count, seq_len), count * seq_len
        rows, marks = tokens.take(kept).reshape(shape), starts.take(kept).reshape(shape)
        return PackedWindows(rows, marks, len(begin))


class _Column:
    """Numbers of one type, written one after the other: in memory, and on disk where they are many.

    Attributes:
        count: how many there are.
    """

    def __init__(self, kind: np.dtype[Any]) -> None:
        self.kind, self.count = kind, 0
        self._file = tempfile.SpooledTemporaryFile(max_size=HELD_BYTES)  # noqa: SIM115 (closed below)

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, numbers: np.ndarray) -> None:
        """Writes numbers behind those that are there.

        Raises:
            DataError: the disk is full.
        """
        self.count += len(numbers)
        try:
            self._file.write(numbers.astype(self.kind).tobytes())
        except OSError as error:
            raise _no_room(error) from error

    def take(self, count: int) -> np.ndarray:
        """Returns the first of them, `[count]`, to be read only; they outlive the column.

        Raises:
            DataError: as `add`.
        """
        if self.count * self.kind.itemsize <= HELD_BYTES:
            self._file.seek(0)
            return np.frombuffer(self._file.read(count * self.kind.itemsize), self.kind)
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from error
        return np.asarray(np.memmap(self._file, self.kind, "r", shape=count))


def _no_room(error: OSError) -> DataError:
    return DataError(
        f"{tempfile.gettempdir()} can't hold the tokens of the text ({error.strerror or error})",
        "make room there, or set TMPDIR to a folder on a larger disk",
    )


def load_windows(
    paths: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    report: Report | None = None,
    watch: Callable[[str], None] | None = None,
) -> PackedWindows:
    """Reads every data file under `paths` in order and packs it.

    `report` gets a line about what is not read: other files of a folder, texts that are null.
    `watch` gets every document.

    Raises:
        DataError: As `find_files`, `read_documents` and `pack_documents`.
    """
    files = find_files(paths, report)
    name = str(files[0]) if len(files) == 1 else f"the {len(files)} data files"
    read = (document for file in files for document in read_documents(file, report))
    documents = read if watch is None else _show(read, watch)
    return pack_documents(documents, tokenizer, seq_len, name)


def _show(documents: Iterator[str], watch: Callable[[str], None]) -> Iterator[str]:
    for document in documents:
        watch(document)
        yield document


def eval_windows(
    text: str, tokenizer: PreTrainedTokenizerBase, seq_len: int, max_windows: int
) -> np.ndarray:
    """Cuts the first windows of a held-out text, each taken as a document of its own.

    So each starts with the tokenizer's `prefix_ids`.

    Args:
        text: The text.
        tokenizer: The model's tokenizer.
        seq_len: Tokens a window, the prefix counted.
        max_windows: At most so many windows; a shorter text gives fewer.

    Returns:
        int64 [windows, seq_len]

    Raises:
        DataError: The text is shorter than one window.
    """
    check_eval_sizes(seq_len, max_windows)
    begin = prefix_ids(tokenizer)
    own = seq_len - len(begin)
    if own < 1:
        raise DataError(
            f"seq_len={seq_len} leaves no room for text after the {len(begin)} tokens that this "
            f"tokenizer puts before it",
            f"allowed is {len(begin) + 1} or more",
        )
    wanted = own * max_windows
    ids: list[int] = []
    # A token rarely takes more than a few characters; long texts need not be tokenised whole.
    characters = 8 * wanted
    while True:
        (ids,) = _tokenise([text[:characters]], tokenizer)
        if len(ids) > wanted or characters >= len(text):
            break
        characters *= 4
    count = min(len(ids) // own, max_windows)
    if count == 0:
        most = len(ids) + len(begin)
        raise DataError(
            f"{most} tokens, shorter than one sequence of {seq_len}",
            f"give more text or a --seq-len of at most {most}",
        )
    cut = np.asarray(ids[: count * own], dtype=np.int64).reshape(count, own)
    return np.hstack([np.tile(np.asarray(begin, dtype=np.int64), (count, 1)), cut])


def check_eval_sizes(seq_len: int, max_windows: int) -> None:
    """Refuses sizes of windows, and numbers of them, that score nothing.

    Raises:
        DataError: a window of fewer than two tokens, or none.
    """
    if seq_len < 2 or max_windows < 1:
        raise DataError(
            f"seq_len={seq_len} with {max_windows} windows scores nothing",
            "allowed are 2 tokens or more and 1 window or more",
        )


def read_eval_texts(paths: Sequence[Path], report: Report | None = None) -> dict[Path, str]:
    """Reads held-out files, which needs no model: so what is wrong with one is told before.

    A .jsonl or .parquet file's documents are joined by blank lines; any other name is read as
    plain text.

    Raises:
        DataError: A file cannot be read, or two have the same name but for their endings.
    """
    texts: dict[Path, str] = {}
    for path in paths:
        name = text_name(path)
        if name in map(text_name, texts):
            raise DataError(f"{path}: a second held-out file called {name!r}", "rename one")
        if path.is_dir():
            raise DataError(f"{path}: is a folder", "name the held-out files one by one")
        texts[path] = read_whole(path, report)
    return texts


def cut_eval_texts(
    texts: Mapping[Path, str], tokenizer: PreTrainedTokenizerBase, seq_len: int, max_windows: int
) -> dict[str, np.ndarray]:
    """Cuts held-out texts as `eval_windows` does; one entry a file, by its `text_name`.

    Args:
        texts: from `read_eval_texts`.
        tokenizer: the model's.
        seq_len: tokens a window.
        max_windows: most windows a text.

    Raises:
        DataError: A text is too short.
    """
    windows: dict[str, np.ndarray] = {}
    for path, text in texts.items():
        try:
            windows[text_name(path)] = eval_windows(text, tokenizer, seq_len, max_windows)
        except DataError as error:
            raise DataError(f"{path}: {error.problem}", error.cure) from error
    return windows


def load_eval_windows(
    paths: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    max_windows: int,
    report: Report | None = None,
) -> dict[str, np.ndarray]:
    """Reads held-out files and cuts them: `read_eval_texts`, then `cut_eval_texts`.

    Raises:
        DataError: As those.
    """
    return cut_eval_texts(read_eval_texts(paths, report), tokenizer, seq_len, max_windows)


def _tokenise(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    group: list[str] = []
    for document in documents:
        group.append(document)
        if len(group) == _DOCUMENTS_A_CALL:
            yield from encode(tokenizer, group)
            group = []
    if group:
        yield from encode(tokenizer, group)
