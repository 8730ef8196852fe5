"""Reading, validating and packing text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ouroboros.data import (
    IGNORED,
    collate,
    end_of_text_id,
    eval_windows,
    find_files,
    load_eval_windows,
    load_windows,
    pack_documents,
    read_documents,
    read_text,
)
from ouroboros.errors import DataError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
EOT = 0


@pytest.fixture(scope="module")
def letters() -> PreTrainedTokenizerFast:
    """One token a letter: a = 2, b = 3, ...; blanks separate; id 0 is end-of-text, id 1 eos."""
    vocab = {"<|endoftext|>": EOT, "<|im_end|>": 1}
    vocab |= {letter: number for number, letter in enumerate(LETTERS, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|im_end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_packing_joins_documents_with_end_of_text(letters: PreTrainedTokenizerFast) -> None:
    windows = pack_documents(["abc", "de", "fghijklm"], letters, seq_len=5)
    # abc<eot>d | e<eot>fgh | ijklm, and the last <eot> is left over
    assert windows.input_ids.tolist() == [[2, 3, 4, 0, 5], [6, 0, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert windows.input_ids.dtype == np.int32
    assert len(windows) == 3
    assert windows.seq_len == 5


def test_packing_restarts_positions_at_documents_and_windows(
    letters: PreTrainedTokenizerFast,
) -> None:
    windows = pack_documents(["abc", "de", "fghijklm"], letters, seq_len=5)
    positions = [windows[i]["position_ids"].tolist() for i in range(3)]
    assert positions == [[0, 1, 2, 3, 0], [0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]


def test_packing_labels_never_cross_a_boundary(letters: PreTrainedTokenizerFast) -> None:
    rng = np.random.default_rng(0)
    documents = ["".join(rng.choice(list(LETTERS), size=n)) for n in rng.integers(1, 30, size=60)]
    windows = pack_documents(documents, letters, seq_len=16)
    owner = np.repeat(np.arange(60), [len(d) + 1 for d in documents])
    owner = owner[: windows.input_ids.size].reshape(-1, 16)
    for index in range(len(windows)):
        window = windows[index]
        # The model's one shift: logits[t] are scored on labels[t + 1].
        for t in range(15):
            target = window["labels"][t + 1]
            if owner[index, t] == owner[index, t + 1]:
                assert target == window["input_ids"][t + 1]
            else:
                assert window["input_ids"][t] == EOT
                assert target == IGNORED


def test_packing_is_deterministic(letters: PreTrainedTokenizerFast) -> None:
    one = pack_documents(["abc", "de", "fghijklm"], letters, 5)
    assert one.fingerprint() == pack_documents(["abc", "de", "fghijklm"], letters, 5).fingerprint()
    assert one.fingerprint() != pack_documents(["abc", "de", "fghijkl"], letters, 5).fingerprint()
    # The same tokens cut elsewhere into documents are other training data.
    assert one.fingerprint() != pack_documents(["abc", "de", "fghijklm"], letters, 4).fingerprint()


def test_collate_stacks_to_int64(letters: PreTrainedTokenizerFast) -> None:
    windows = pack_documents(["abc", "de", "fghijklm"], letters, 5)
    batch = collate([windows[0], windows[2]])
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert {str(t.dtype) for t in batch.values()} == {"torch.int64"}
    assert batch["input_ids"].tolist() == [[2, 3, 4, 0, 5], [10, 11, 12, 13, 14]]


def test_end_of_text_prefers_endoftext_to_eos(letters: PreTrainedTokenizerFast) -> None:
    assert end_of_text_id(letters) == EOT
    plain = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    assert end_of_text_id(PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")) == 1
    with pytest.raises(DataError, match="no end-of-text token"):
        end_of_text_id(PreTrainedTokenizerFast(tokenizer_object=plain))


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
        ("a.parquet", b"PAR1 nonsense", "a.parquet: not a readable parquet file"),
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
    with pytest.raises(DataError, match=r"a.parquet: column 'text' holds text that is not UTF-8"):
        load_windows([path], letters, 4)


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


def test_eval_windows_are_the_first_of_the_text(letters: PreTrainedTokenizerFast) -> None:
    windows = eval_windows(LETTERS, letters, seq_len=4, max_windows=2)
    assert windows.tolist() == [[2, 3, 4, 5], [6, 7, 8, 9]]
    assert windows.dtype == np.int64
    assert eval_windows(LETTERS, letters, seq_len=10, max_windows=8).shape == (2, 10)


def test_eval_files_are_named_after_their_stem(
    tmp_path: Path, letters: PreTrainedTokenizerFast
) -> None:
    wiki = write(tmp_path / "wiki.utf8", LETTERS)
    code = write(tmp_path / "code.jsonl", '{"text": "abcdefgh"}\n')
    windows = load_eval_windows([wiki, code], letters, 4, max_windows=2)
    assert {name: w.shape for name, w in windows.items()} == {"wiki": (2, 4), "code": (2, 4)}
    with pytest.raises(DataError, match="a second held-out file called 'wiki'"):
        load_eval_windows([wiki, write(tmp_path / "wiki.txt", LETTERS)], letters, 4, 1)
