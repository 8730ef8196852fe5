from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.trees import HERE, compare_trees, main
from cli.errors import CommandError


@pytest.mark.slow
def test_a_tree_against_itself(tiny_bundle: Path, tmp_path: Path) -> None:
    written = tmp_path / "figures.json"
    words = [str(HERE), str(tiny_bundle), "--turns", "2", "--depth", "2", "--context", "8", "16"]
    main([*words, "--json", str(written)])
    figures = json.loads(written.read_text())
    assert {"prefill 8", "decode 8", "prefill 16", "decode 16"} < set(figures)
    for row in (figures["decode 8"], figures["prefill 16"]):
        low, high = sorted(row["ratios"])
        assert 0 < low - 0.001 <= row["ratio"] <= high + 0.001
        assert min(row["before_ms"], row["now_ms"]) > 0


def test_what_is_no_checkout(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=f"{tmp_path} holds no runtime"):
        compare_trees(tmp_path, tiny_bundle, tiny_bundle, 2, 1, [8])


def test_what_is_no_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match="the engine of before ended"):
        compare_trees(HERE, tmp_path, tmp_path, 2, 1, [8])
    assert str(tmp_path) in capfd.readouterr().err
