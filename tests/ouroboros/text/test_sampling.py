"""Text drawn from an original model: seeded, whole documents, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from ouroboros.errors import DataError
from ouroboros.text.sample_options import SampleOptions
from ouroboros.text.sampling import sample_text

# As hot as this, a random model says anything; as cold as itself, it says one token for ever.
FEW: dict[str, Any] = {
    "tokens": 60, "length": 24, "batch": 3, "opening": 6, "temperature": 50.0
}  # fmt: skip


def draw(source: Path, out: Path, **changes: Any) -> list[str]:
    drawn = sample_text(str(source), out, SampleOptions(**{**FEW, **changes}))
    texts = [json.loads(line)["text"] for line in out.read_text("utf-8").splitlines()]
    assert drawn >= {**FEW, **changes}["tokens"]
    assert all(texts)
    return texts


def test_text_is_the_seeds(tiny_original: Path, tmp_path: Path) -> None:
    one, _, other = (
        draw(tiny_original, tmp_path / name, seed=seed)
        for name, seed in (("one.jsonl", 0), ("again.jsonl", 0), ("other.jsonl", 1))
    )
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert one != other
    assert len(set(one)) == len(one)  # rows of a batch, and batches, differ


def test_no_text_is_longer_than_asked_for(tiny_original: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_original)
    for text in draw(tiny_original, tmp_path / "out.jsonl"):
        # Bytes that are no text of their own may come back as more than one token.
        if "\N{REPLACEMENT CHARACTER}" not in text:
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= FEW["length"]


def test_what_comes_with_a_model_does_not_change_its_distribution(
    tiny_original: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_original, other)
    own = {"max_new_tokens": 2, "repetition_penalty": 3.0, "do_sample": False, "min_p": 0.9}
    (other / "generation_config.json").write_text(json.dumps(own))
    texts = [draw(one, tmp_path / f"{one.name}.jsonl") for one in (tiny_original, other)]
    assert texts[0] == texts[1]


def test_openings_begin_the_texts(tiny_original: Path, tmp_path: Path) -> None:
    file = tmp_path / "openings.jsonl"
    starts = ["Call me Ishmael, he said", "It was the best of times", "Short"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in starts))
    texts = draw(tiny_original, tmp_path / "out.jsonl", openings=(file,))
    begun = {text[: FEW["opening"]] for text in texts}
    # A byte a token; the short one is passed over, the others take turns.
    assert begun == {"Call m", "It was"}


def test_openings_that_are_all_too_short_are_refused(tiny_original: Path, tmp_path: Path) -> None:
    file = tmp_path / "openings.txt"
    file.write_text("Short")
    with pytest.raises(DataError, match="no document of 6 tokens; give longer texts or a shorter"):
        draw(tiny_original, tmp_path / "out.jsonl", openings=(file,))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_that_is_there_is_left_alone(tiny_original: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(DataError, match="is there already; name another file, or delete it"):
        draw(tiny_original, out)
    assert out.read_text() == "mine"


def test_what_can_not_be_drawn_is_refused_before_the_weights_are_read(
    tiny_original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(place: object) -> None:
        raise AssertionError("the weights are read")

    monkeypatch.setattr("ouroboros.text.sampling.load_source", fail)
    with pytest.raises(DataError, match="its directory is not there"):
        draw(tiny_original, tmp_path / "nowhere" / "out.jsonl")
    with pytest.raises(DataError, match=r"length=9999 is more than the model's \d+ positions"):
        draw(tiny_original, tmp_path / "out.jsonl", length=9999)
    bare = tmp_path / "bare"
    shutil.copytree(tiny_original, bare)
    for file in bare.glob("*token*"):
        file.unlink()
    with pytest.raises(DataError, match="comes without a tokenizer; put its own beside"):
        draw(bare, tmp_path / "out.jsonl")


def test_what_was_drawn_stays_where_the_drawing_is_stopped(
    tiny_original: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    whole = draw(tiny_original, tmp_path / "whole.jsonl")

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_text(str(tiny_original), out, SampleOptions(**FEW), stop)
    assert not out.exists()
    lines = (tmp_path / "out.jsonl.part").read_text("utf-8").splitlines()
    assert lines
    assert [json.loads(line)["text"] for line in lines] == whole[: len(lines)]
    assert draw(tiny_original, out) == whole
    assert not (tmp_path / "out.jsonl.part").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": 0}, "tokens=0 is not allowed; give 1 or more"),
        ({"length": 1}, "length=1 is not allowed; give 2 or more"),
        ({"batch": 0}, "batch=0 is not allowed"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"opening": 24}, "opening=24 leaves nothing to draw of length=24"),
        ({"temperature": 0.0}, "temperature=0.0 is not allowed; give more than 0"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        SampleOptions(**{**FEW, **changes})
