from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from demo.documents import read_documents, write_documents
from demo.portion import equal_shares, main, take_portion


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [
        ({"a": 100, "b": 100}, 60, {"a": 30, "b": 30}),
        ({"a": 100, "b": 10, "c": 100}, 90, {"a": 40, "b": 10, "c": 40}),
        ({"a": 3, "b": 4}, 100, {"a": 3, "b": 4}),
        ({"a": 5}, 0, {"a": 0}),
        ({}, 10, {}),
    ],
)
def test_equal_shares(sizes: dict[str, int], total: int, shares: dict[str, int]) -> None:
    assert equal_shares(sizes, total) == shares


def write_corpora(folder: Path, sources: Iterable[tuple[str, int]]) -> Path:
    """A source of so many documents of 100 characters each, of which none is like another."""
    for name, number in sources:
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_documents(path, [f"{name} {one:4}".ljust(100, ".") for one in range(number)])
    return folder


def test_a_portion_has_as_much_of_every_source(tmp_path: Path) -> None:
    corpora = write_corpora(
        tmp_path, [("prose/large", 1000), ("prose/small", 20), ("code/one", 500), ("qa/it", 9)]
    )
    train, apart, taken = take_portion(corpora, {"prose": 10_000, "code": 5_000})
    small = sum("small" in one for one in [*train, *apart])
    assert small == 20  # it gives all that it has; the large one gives the rest
    assert 7_900 <= taken["prose/large"] <= 8_300
    assert taken["code/one"] == 5_000
    assert sum(taken.values()) == sum(map(len, train))
    assert not any("qa" in one for one in train)
    assert not set(train) & set(apart)
    assert len(apart) == pytest.approx(15, abs=12)


def test_a_portion_is_the_same_twice_and_grows(tmp_path: Path) -> None:
    corpora = write_corpora(tmp_path / "corpora", [("prose/one", 200), ("prose/two", 200)])
    sizes = ["--technical", "0", "--code", "0", "--qa", "0", "--prose"]
    outs = [tmp_path / name for name in ("a", "b", "more")]
    for out, characters in zip(outs, ("4000", "4000", "8000"), strict=True):
        assert main([str(corpora), str(out), *sizes, characters]) == 0
    first, again, more = (read_documents(out / "train.jsonl") for out in outs)
    assert first == again
    assert len(first) == 40
    assert set(first) < set(more)
    kept = [read_documents(out / "like.jsonl") for out in outs]
    assert kept[0] == kept[2]


def test_a_kind_without_texts_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpora = write_corpora(tmp_path / "corpora", [("prose/one", 20)])
    assert main([str(corpora), str(tmp_path / "out")]) == 1
    assert f"{corpora / 'technical'} holds no .jsonl file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
