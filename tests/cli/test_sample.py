"""`ouro sample`: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.processes import call_ouro

FEW = ("--tokens", 40, "--length", 20, "--batch", 4, "--temperature", 50, "--seed", 3)


def test_drawn_text_is_what_training_reads(tiny_original: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn text.jsonl"
    result = call_ouro("sample", tiny_original, out, *FEW)
    assert result.returncode == 0, result.stderr
    texts = [json.loads(line)["text"] for line in out.read_text("utf-8").splitlines()]
    assert texts
    assert all(texts)
    assert f"wrote {out}: " in result.stdout
    assert f"next: ouro train CHECKPOINT OUT --data '{out}'" in result.stdout


def test_refusals_are_one_line(tiny_original: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    for place, options, line in (
        (there, (), f"{there} is there already; name another file, or delete it"),
        (tmp_path / "new", ("--opening", 300), "opening=300 leaves nothing to draw"),
    ):
        result = call_ouro("sample", tiny_original, place, *options)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert line in result.stderr
    assert there.read_text() == "mine"
    assert not (tmp_path / "new").exists()
