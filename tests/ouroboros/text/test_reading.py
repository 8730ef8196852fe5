"""Reading text: files of every kind, folders, and one line for what can't be read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from ouroboros.errors import DataError
from ouroboros.text.windows import (
    find_files,
    load_eval_windows,
    load_windows,
    read_documents,
    read_text,
    read_whole,
)
from tests.support.letters import LETTERS


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_folders_are_read_recursively_and_sorted(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a" / "z.jsonl", '{"text": "a"}\n')
    write(tmp_path / "a" / "notes.md", "not data")
    write(tmp_path / "c.parquet", "x")
    names = [p.relative_to(tmp_path).as_posix() for p in find_files([tmp_path])]
    assert names == ["a/z.jsonl", "b.txt", "c.parquet"]


def test_three_kinds_of_file_give_the_same_windows(
    tmp_path: Path, letters: PreTrainedTokenizerFast
) -> None:
    documents = ["abcdef", "ghi", "jklmnop"]
    for number, document in enumerate(documents):
        write(tmp_path / "t" / f"{number}.txt", document)
    lines = "".join(json.dumps({"text": d, "id": 1}) + "\n\n" for d in [*documents, "  "])
    write(tmp_path / "l.jsonl", lines)
    table = pyarrow.table({"id": [1, 2, 3, 4], "text": [*documents, None]})
    pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
    prints = {
        load_windows([tmp_path / name], letters, 4).fingerprint()
        for name in ("t", "l.jsonl", "p.parquet")
    }
    assert len(prints) == 1


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfhello")
    assert list(read_documents(path)) == ["hello"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: the file is empty"),
        ("a.txt", b" \n\t", "a.txt: the file is empty"),
        ("a.txt", b"ab\0cd", r"a.txt: not a text file \(a NUL byte at byte 2\)"),
        ("a.txt", b"caf\xe9 noir", "a.txt: not UTF-8 at byte 3"),
        ("a.jsonl", b"", "a.jsonl: no documents"),
        ("a.jsonl", b'{"text": " "}\n', "a.jsonl: no documents"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": \n', "a.jsonl: line 2 is not JSON"),
        ("a.jsonl", b'{"text": "ok"}\n{"body": "x"}\n', "a.jsonl: line 2 has no text in a field"),
        ("a.jsonl", b'["text"]\n', "a.jsonl: line 1 has no text in a field"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl: line 1 has no text in a field"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n', "a.jsonl: not UTF-8 at byte 25"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl: line 1 holds half a surrogate pair"),
        (
            "a.jsonl",
            b'{"text": "ok"}\n{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
            "a.jsonl: line 2 is not JSON .*recursion",
        ),
        ("a.parquet", b"PAR1 nonsense", "a.parquet: damaged or no parquet file"),
        ("a.csv", b"a,b", "files ending in '.csv' are not read; allowed are .txt"),
        ("a", b"a,b", "files ending in 'nothing' are not read"),
    ],
)
def test_bad_file_is_refused_in_one_line(
    tmp_path: Path, letters: PreTrainedTokenizerFast, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        load_windows([path], letters, 4)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_parquet_without_the_column_is_refused(
    tmp_path: Path, letters: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), path)
    with pytest.raises(DataError, match="no column 'text' of strings, only body, n"):
        load_windows([path], letters, 4)


def test_parquet_that_is_not_utf8_is_refused(
    tmp_path: Path, letters: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "a.parquet"
    raw = pyarrow.array([b"abcdef", b"caf\xe9 noir"])
    texts = pyarrow.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    with pytest.raises(DataError, match=r"a.parquet: holds text that is not UTF-8 .* 'text'"):
        load_windows([path], letters, 4)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["abc"], "#name#": [1]}), path)
    path.write_bytes(path.read_bytes().replace(b"#name#", b"#n\xffme#"))
    with pytest.raises(DataError, match=r"a.parquet: holds text that is not UTF-8"):
        load_windows([path], letters, 4)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    for read in (read_whole, lambda path: list(read_documents(path))):
        with pytest.raises(DataError, match=r"a\.txt: a pipe or a device, .*; write it to a file"):
            read(tmp_path / "a.txt")


def test_missing_and_empty_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        find_files([tmp_path / "nowhere.txt"])
    with pytest.raises(DataError, match=r"holds no \.txt"):
        find_files([tmp_path])
    with pytest.raises(DataError, match="no data given"):
        find_files([])
    with pytest.raises(DataError, match="no such file"):
        read_text(tmp_path / "nowhere.txt")


def test_text_shorter_than_a_sequence_is_refused(
    tmp_path: Path, letters: PreTrainedTokenizerFast
) -> None:
    path = write(tmp_path / "a.txt", "abc")
    wanted = re.escape(f"{path}: 4 tokens in all, shorter than one sequence of 8")
    with pytest.raises(DataError, match=wanted):
        load_windows([path], letters, 8)
    with pytest.raises(DataError, match=r"a.txt: 3 tokens, shorter than one sequence of 8"):
        load_eval_windows([path], letters, 8, max_windows=2)


def test_eval_files_are_named_after_their_stem(
    tmp_path: Path, letters: PreTrainedTokenizerFast
) -> None:
    wiki = write(tmp_path / "wiki.utf8", LETTERS)
    code = write(tmp_path / "code.jsonl", '{"text": "abcdefgh"}\n')
    windows = load_eval_windows([wiki, code], letters, 4, max_windows=2)
    assert {name: w.shape for name, w in windows.items()} == {"wiki": (2, 4), "code": (2, 4)}
    with pytest.raises(DataError, match="a second held-out file called 'wiki'"):
        load_eval_windows([wiki, write(tmp_path / "wiki.txt", LETTERS)], letters, 4, 1)


def compress(path: Path, content: bytes) -> Path:
    match path.suffix.lower():
        case ".gz":
            raw = gzip.compress(content)
        case ".bz2":
            raw = bz2.compress(content)
        case ".xz":
            raw = lzma.compress(content)
        case _:
            raw = pyarrow.compress(content, codec="zstd", asbytes=True)
    return write(path, raw)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ".GZ"])
def test_compressed_text_is_read(
    tmp_path: Path, letters: PreTrainedTokenizerFast, ending: str
) -> None:
    lines = b'{"text": "abc"}\r\n\r\n{"text": "de"}\r\n'
    assert list(read_documents(compress(tmp_path / f"a.jsonl{ending}", lines))) == ["abc", "de"]
    assert list(read_documents(compress(tmp_path / f"A.TXT{ending}", b"abc"))) == ["abc"]
    names = [path.name for path in find_files([tmp_path])]
    assert names == [f"A.TXT{ending}", f"a.jsonl{ending}"]
    held = compress(tmp_path / f"wiki.jsonl{ending}", lines)
    assert list(load_eval_windows([held], letters, 3, 1)) == ["wiki"]


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("cut", [True, False])
def test_damaged_compressed_text_is_one_line(tmp_path: Path, ending: str, cut: bool) -> None:
    path = compress(tmp_path / f"a.txt{ending}", np.random.default_rng(0).bytes(999).hex().encode())
    path.write_bytes(path.read_bytes()[:-60] if cut else b"no such thing")
    with pytest.raises(DataError, match=f"a.txt{ending}: damaged") as caught:
        list(read_documents(path))
    assert "\n" not in str(caught.value)


def test_folder_says_what_it_does_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("A.TXT", "b.csv", "c.CSV", "d.json", "e.arrow", ".DS_Store", ".x/y.txt", "plain"):
        write(folder / name, "x")
    write(folder / "README.md", "x")
    write(folder / "f.parquet.gz", "x")
    said: list[str] = []
    assert [path.name for path in find_files([folder], said.append)] == ["A.TXT"]
    (line,) = said
    assert "2 .csv (b.csv, c.CSV)" in line
    assert all(name in line for name in ("d.json", "e.arrow", "plain", "f.parquet.gz"))
    assert not any(name in line for name in ("DS_Store", "y.txt", "README", "A.TXT ("))


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    write(folder / "in" / "a.txt", "a")
    write(elsewhere / "deep" / "b.txt", "b")
    (folder / "again").symlink_to(folder / "in")
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tmp_path)
    (folder / "more").symlink_to(elsewhere)
    (folder / "more2").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "c.txt").symlink_to(elsewhere / "deep" / "b.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    said: list[str] = []
    found = [path.relative_to(folder).as_posix() for path in find_files([folder], said.append)]
    assert found == ["in/a.txt", "more/deep/b.txt"]
    assert "2 links that lead nowhere or back (gone.txt, up)" in said[0]


def test_null_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": null}\n')
    table = pyarrow.table({"text": ["a", None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for path in (lines, tmp_path / "a.parquet"):
        said: list[str] = []
        assert list(read_documents(path, said.append)) == ["a"]
        assert said == [f"{path}: 1 of its texts is null and left out"]


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
)
def test_every_column_of_strings_is_read(tmp_path: Path, kind: pyarrow.DataType) -> None:
    path = tmp_path / "a.parquet"
    texts = pyarrow.array(["a", "b", "a"]).cast(kind)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    assert list(read_documents(path)) == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([b"a"], "holds binary, not strings"),
        ([["a"]], "holds list<.*>, not strings"),
        ([{"text": "a"}], "holds struct<.*>, not strings"),
        ([None], "no documents in it: all 1 texts are null"),
    ],
)
def test_column_of_something_else_is_refused(
    tmp_path: Path, values: list[object], message: str
) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)
    with pytest.raises(DataError, match=message):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"content": "a"}', "no text in a field 'text', only 'content'"),
        ('[{"text": "a"}]', "it is an array"),
        ('{"text": "a", "text": "b"}', "more than once"),
        ("a".encode("utf-16"), "is UTF-16"),
    ],
)
def test_line_without_one_text_is_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(DataError, match=message):
        list(read_documents(path))
    quoted = write(tmp_path / "b.jsonl", '{"text": "say \\"text\\"", "m": {"text": 1}}')
    assert list(read_documents(quoted)) == ['say "text"']
