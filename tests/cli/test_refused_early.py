"""What arguments, a config or a manifest alone tell to be wrong costs no reading of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app

HEAVY = (
    "ouroboros.model.modeling.OuroborosForCausalLM.from_pretrained",
    "runtime.bundle.reader.verify_file",
    "ouroboros.conversion.convert.locate",
    "ouroboros.conversion.convert.open_original",
    "ouroboros.text.sampling.load_source",
    "ouroboros.source.locate.load_source",
)


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tiny_original: Path,
) -> Callable[[str, str], None]:
    """Runs a command line that must end in one line, nothing heavy read and nothing written."""

    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("a model is read")

    for name in HEAVY:
        monkeypatch.setattr(name, fail)
    text = tmp_path / "text.txt"
    text.write_text("The sea is wide. " * 99)
    places = {
        "CHECKPOINT": tiny_checkpoint, "BUNDLE": tiny_bundle, "ORIGINAL": tiny_original,
        "TEXT": text, "NONE": tmp_path / "none.txt", "OUT": tmp_path / "out",
    }  # fmt: skip

    def run(line: str, words: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        result = CliRunner().invoke(app, [str(places.get(one, one)) for one in line.split()])
        assert result.exit_code == 1, result.output
        assert words in result.stderr
        assert result.stderr.startswith("error: ")
        assert sorted(tmp_path.rglob("*")) == before

    return run


MISSING = "none.txt: no such file"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("eval CHECKPOINT --text NONE", MISSING),
        ("eval BUNDLE --text NONE", MISSING),
        ("eval CHECKPOINT --text TEXT --depth 99", "depth=99"),
        ("eval BUNDLE --text TEXT --depth 99", "depth=99"),
        ("eval CHECKPOINT --text TEXT --windows 0", "0 windows scores nothing"),
        ("eval CHECKPOINT --text TEXT --seq-len 99999", "seq_len=99999"),
        ("eval CHECKPOINT --text TEXT --converted NONE", "none.txt"),
        ("eval CHECKPOINT --text TEXT --original NONE", "none.txt"),
        ("export CHECKPOINT OUT --precision int8 --calibration NONE", MISSING),
        ("export CHECKPOINT OUT --max-depth 99", "max_depth=99"),
        ("train CHECKPOINT OUT --data NONE", MISSING),
        ("train CHECKPOINT OUT --data TEXT --eval NONE", MISSING),
        ("train CHECKPOINT OUT --data TEXT --depth 99", "depth=99"),
        ("train CHECKPOINT OUT --data TEXT --teacher NONE", "none.txt"),
        ("halter CHECKPOINT OUT --data NONE", MISSING),
        ("halter CHECKPOINT OUT --data TEXT --depth 99", "depth=99"),
        ("convert ORIGINAL OUT --calibration NONE", MISSING),
        ("sample ORIGINAL OUT --openings NONE", MISSING),
        ("bench BUNDLE --repeats 0", "repeats=0"),
        ("bench BUNDLE --tokens 0", "max_new_tokens=0"),
        ("bench BUNDLE --depth 99", "depth=99"),
        ("bench BUNDLE --context 99999", "99999 tokens"),
        ("bench BUNDLE --context 8 --backend trt", "trt"),
        ("check BUNDLE --backend trt", "trt"),
        ("run BUNDLE Hello --backend trt", "trt"),
    ],
)
def test_it_is_told_before_a_model_is_read(
    refuse: Callable[[str, str], None], line: str, words: str
) -> None:
    refuse(line, words)
