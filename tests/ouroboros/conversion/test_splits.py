"""`--split auto`: which prelude and coda are tried, which one is taken, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ouroboros import convert, load_checkpoint
from ouroboros.conversion.convert import ConversionReport
from ouroboros.conversion.selection import Candidate
from ouroboros.conversion.splits import kept_layers, list_splits, shortlist
from ouroboros.errors import ConfigError
from tests.support.tiny import DIMENSIONS, SMALL, build_tokenizer

SPLITS = [(1, 3), (2, 2), (3, 1)]
OPTIONS: dict[str, Any] = {**SMALL, "bridge": "entry"}
del OPTIONS["prelude"], OPTIONS["coda"]


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much text as a map of 65 rows wants."""
    monkeypatch.setattr("ouroboros.conversion.convert.CALIBRATION_TOKENS", 64)
    monkeypatch.setattr("ouroboros.conversion.convert.FIT_WINDOWS", 40)


def test_splits_tried_are_the_given_one_and_long_codas() -> None:
    """Those of 8 | 8 are the ones that the lab's table has, and those between."""
    assert list_splits(8, 8) == [(8, 8), (4, 12), (5, 11), (6, 10), (7, 9), (10, 6)]
    assert list_splits(6, 6) == [(6, 6), (3, 9), (4, 8), (5, 7), (8, 4)]
    assert list_splits(9, 7) == [(9, 7), (4, 12), (5, 11), (6, 10), (7, 9), (8, 8), (10, 6)]
    assert list_splits(2, 2) == [(2, 2), (1, 3), (3, 1)]
    assert list_splits(2, 0) == [(2, 0), (1, 1)]
    assert list_splits(1, 1) == [(1, 1)]
    assert list_splits(1, 0) == [(1, 0)]
    assert list_splits(0, 0) == [(0, 0)]


def test_best_layers_are_tried_by_number_and_by_place() -> None:
    best = [21, 20, 9, 15]  # of 8..21 of 30 layers; the fourth is one too many
    assert shortlist(best, (8, 8), (6, 10), range(6, 20)) == [7, 9, 18, 19]
    assert shortlist(best, (8, 8), (10, 6), range(10, 24)) == [11, 20, 21, 22, 23]
    assert shortlist([21], (8, 8), (6, 10), []) == []


def independent(
    original: Path, out: Path, split: tuple[int, int], **options: Any
) -> list[Candidate]:
    """What a conversion at a named split measures."""
    prelude, coda = split
    report = convert(str(original), out, prelude=prelude, coda=coda, **{**OPTIONS, **options})
    return list(report.candidates)


def convert_any(
    original: Path, out: Path, given: tuple[int, int], **options: Any
) -> tuple[ConversionReport, list[str]]:
    lines: list[str] = []
    report = convert(
        str(original),
        out,
        prelude=given[0],
        coda=given[1],
        split="auto",
        report=lines.append,
        **{**OPTIONS, **options},
    )
    return report, lines


@pytest.mark.slow
@pytest.mark.parametrize("bridge", ["entry", "exit", "none"])
def test_best_split_is_found_from_every_other(
    tiny_original: Path, tmp_path: Path, bridge: str
) -> None:
    """All pairs are tried here: two layers a split, and three of the best at each other one."""
    apart = [
        one
        for number, split in enumerate(SPLITS)
        for one in independent(tiny_original, tmp_path / str(number), split, bridge=bridge)
    ]
    best = min(apart, key=lambda one: one.loss_at_depth)
    for given in SPLITS:
        out = tmp_path / f"from-{given[0]}"
        report, lines = convert_any(tiny_original, out, given, bridge=bridge)
        assert sorted(report.candidates, key=str) == sorted(apart, key=str)
        assert report.candidates[0] == best
        config = load_checkpoint(out)[0].config
        assert (config.prelude, config.coda, config.recurrent) == (
            best.prelude,
            best.coda,
            best.layer,
        )
        chosen = f"keeping {best.prelude}|{best.coda} and looping layer {best.layer}"
        assert f"{chosen}, the best at depth 3" in lines


def test_what_is_written_is_what_the_named_split_gives(tiny_original: Path, tmp_path: Path) -> None:
    report, _ = convert_any(tiny_original, tmp_path / "auto", (3, 1), bases="per_step")
    best = report.candidates[0]
    assert (best.prelude, best.coda) != (3, 1), "the given split wins, so that nothing is shown"
    named = convert(
        str(tiny_original),
        tmp_path / "named",
        **{**OPTIONS, "bases": "per_step"},
        prelude=best.prelude,
        coda=best.coda,
        recurrent=best.layer,
    )
    assert report.lines == named.lines
    one, other = (load_checkpoint(tmp_path / name)[0] for name in ("auto", "named"))
    assert one.config.to_diff_dict() == other.config.to_diff_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.fixture(scope="module")
def deeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of ten layers."""
    path: Path = tmp_path_factory.mktemp("deeper")
    tokenizer = build_tokenizer()
    torch.manual_seed(2)
    shape = {**DIMENSIONS, "vocab_size": len(tokenizer), "num_hidden_layers": 10}
    LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.2)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
def test_block_of_four_and_its_table(deeper: Path, tmp_path: Path) -> None:
    """Three blocks of the six replaced layers at 2|2, the same by number or place at others.

    All that is printed is the candidates, in the order in which they were measured.
    """
    report, lines = convert_any(deeper, tmp_path / "auto", (2, 2), recurrent="auto:4")
    start = lines.index("calibration loss of every candidate for the looped layers, nats per token")
    table = lines[start + 1 : start + 13]
    assert table[0].split() == ["layers", "at", "depth", "1", "at", "depth", "3"]
    assert [row.split()[0] for row in table[1:4]] == ["2-5", "3-6", "4-7"]
    assert table[4].startswith("calibration loss of other splits with what was best at 2|2, by num")
    assert table[4].endswith(": 6 of 6 candidates")
    assert table[5].split() == ["split", "layers", "at", "depth", "1", "at", "depth", "3"]
    pairs = [row.split()[:2] for row in table[6:]]
    ones, threes = ["1-4", "2-5", "3-6"], ["3-6", "4-7", "5-8"]
    assert pairs == [["1|3", one] for one in ones] + [["3|1", one] for one in threes]
    losses = {(one.prelude, one.layer): one for one in report.candidates}
    for split, block, first, last, *place in (row.split() for row in table[6:]):
        one = losses[int(split[0]), int(block[0])]
        assert (first, last) == (f"{one.loss_at_one:.3f}", f"{one.loss_at_depth:.3f}")
        assert place[1:] == ["of", "6"]
    assert len(report.candidates) == 9
    best = report.candidates[0]
    assert best.loss_at_depth == min(one.loss_at_depth for one in report.candidates)
    model, _ = load_checkpoint(tmp_path / "auto")
    config = model.config
    assert (config.prelude, config.coda, config.recurrent) == (best.prelude, best.coda, best.layer)
    assert (len(model.prelude), len(model.coda)) in SPLITS
    assert config.recurrent_layers == len(model.recurrent.layers) == 4
    held = [*model.prelude, *model.recurrent.layers, *model.coda]
    numbers = kept_layers(10, (config.prelude, config.coda))
    numbers[config.prelude : config.prelude] = range(best.layer, best.layer + 4)
    theirs = LlamaForCausalLM.from_pretrained(deeper).model.layers
    for mine, number in zip(held, numbers, strict=True):
        up: Any = mine.mlp
        assert torch.equal(up.up_proj.weight, theirs[number].mlp.up_proj.weight)


def test_fewer_layers_are_tried_at_other_splits(
    deeper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ouroboros.conversion.splits.TRIED", 1)
    report, lines = convert_any(deeper, tmp_path / "auto", (2, 2))
    (first,) = [
        one.layer
        for one in sorted(report.candidates, key=lambda one: one.loss_at_depth)
        if (one.prelude, one.coda) == (2, 2)
    ][:1]
    tried = {(one.prelude, one.layer) for one in report.candidates if one.prelude != 2}
    possible = {1: range(1, 7), 3: range(3, 9)}
    assert tried == {
        (prelude, layer)
        for prelude, moved in ((1, -1), (3, 1))
        for layer in (first, first + moved)
        if layer in possible[prelude]
    }
    assert any(f": {len(tried)} of 12 candidates" in line for line in lines)


def test_named_layer_is_kept_and_its_splits_tried(tiny_original: Path, tmp_path: Path) -> None:
    """Layer 3 is a replaced one at 2|2 and 3|1; at 1|3 it stands in the coda."""
    report, _ = convert_any(tiny_original, tmp_path / "out", (2, 2), recurrent=3)
    assert {(one.prelude, one.layer) for one in report.candidates} == {(2, 3), (3, 3)}
    assert load_checkpoint(tmp_path / "out")[0].config.recurrent == 3


def test_original_runs_over_the_text_once(
    deeper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the end of the shortest prelude to the input of the last layer that is looped.

    How far it is it says now and then.
    """
    from ouroboros.conversion import bridge

    passes: list[list[int]] = []
    run = bridge.original_states

    def counted(*arguments: Any) -> Any:
        passes.append([])
        for number, states in run(*arguments):
            passes[-1].append(number)
            yield number, states

    monkeypatch.setattr(bridge, "original_states", counted)
    monkeypatch.setattr(bridge, "TELL_S", 0)
    _, lines = convert_any(deeper, tmp_path / "out", (2, 2))
    assert passes == [list(range(1, 9))]
    assert [line for line in lines if line.startswith("running layer")] == [
        f"running layer {number} of the original, up to 7" for number in range(1, 8)
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "best"}, r"split='best' is unknown; choose one of fixed, auto"),
        ({"split": "6|10"}, r"split='6\|10' is unknown"),
        ({"recurrent": "none", "bridge": "exit"}, r"recurrent=none loops none; name --prelude"),
        ({"recurrent": 1}, r"replaced layers 2\.\.3"),
        ({"prelude": 3, "coda": 3}, "leave nothing to replace"),
        ({"recurrent": "auto:3"}, r"block of 3 layers, .* leave 2"),
    ],
)
def test_what_can_not_be_split_is_refused(
    tiny_original: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        convert(str(tiny_original), tmp_path / "out", **{**SMALL, "split": "auto", **options})
    assert list(tmp_path.iterdir()) == []
