"""Texts that are larger than memory: read in pieces, their tokens on disk, the windows the same."""

from __future__ import annotations

import mmap
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from ouroboros.errors import DataError
from ouroboros.text import windows
from ouroboros.text.corpus import read_documents
from ouroboros.text.windows import PackedWindows, pack_documents
from tests.support.training import tiny_tokenizer

TEXT = "the cat sat on a mat and ran " * 20


def pack(documents: int) -> PackedWindows:
    texts = (f"{TEXT}{'b' * (number % 7)}" for number in range(documents))
    return pack_documents(texts, tiny_tokenizer(), 24)


def is_mapped(array: object) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def test_tokens_on_disk_are_the_same_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = pack(40)
    monkeypatch.setattr(windows, "HELD_BYTES", 1000)
    on_disk = pack(40)
    assert is_mapped(on_disk.input_ids)
    assert not is_mapped(in_memory.input_ids)
    assert np.array_equal(on_disk.input_ids, in_memory.input_ids)
    assert np.array_equal(on_disk.starts, in_memory.starts)
    assert on_disk.fingerprint() == in_memory.fingerprint()
    monkeypatch.setattr(windows, "_WINDOWS_A_PIECE", 8)
    assert on_disk.fingerprint() == in_memory.fingerprint()


@pytest.mark.slow
def test_packing_holds_a_part_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "HELD_BYTES", 1 << 16)
    monkeypatch.setattr(windows, "_DOCUMENTS_A_CALL", 4)
    tracemalloc.start()
    try:
        packed = pack(1200)
        packed.fingerprint()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    whole = packed.input_ids.nbytes
    assert whole > 2 << 20
    assert peak < whole / 4


def test_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", fail)
    with pytest.raises(DataError, match=r"can't hold the tokens of the text \(No space.*TMPDIR"):
        pack(1)


def test_a_parquet_file_is_read_in_pieces(tmp_path: Path) -> None:
    """One row group as large as the file, as many writers leave it."""
    path, letters = tmp_path / "one.parquet", "abcdefgh " * 500
    rows = [f"{letters[number % 9 :]}{number:09}".replace("0", "a") for number in range(8000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path, row_group_size=8000)
    size = sum(map(len, rows))
    pool = pyarrow.proxy_memory_pool(before := pyarrow.default_memory_pool())
    pyarrow.set_memory_pool(pool)
    try:
        assert sum(map(len, read_documents(path))) == size > 30 << 20
        assert 0 < pool.max_memory() < size / 2
    finally:
        pyarrow.set_memory_pool(before)
