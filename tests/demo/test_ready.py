"""The model that lies ready in the repository: whole, small enough, and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo import settings
from demo.fetch import WHEELS
from ouroboros.delta.options import MEGABYTE
from ouroboros.delta.record import read_record
from ouroboros.delta.restore import check_own
from study.report import read_best_model
from tests.support.paths import ROOT

READY = ROOT / settings.READY


def test_it_is_whole_and_no_file_is_too_large() -> None:
    record = read_record(READY)
    check_own(READY, record)
    files = [path for path in READY.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) <= 16 * MEGABYTE
    beside = {path.name for path in files} - record.own.keys()
    assert beside == {"delta.json", "README.md", "results.json"}
    assert {"LICENSE", "ATTRIBUTION"} <= record.files.keys()


def test_it_stands_on_the_model_that_the_demo_fetches() -> None:
    pinned = {sha256 for wheel in WHEELS for _, sha256 in wheel.members.values()}
    assert set(read_record(READY).source.files.values()) <= pinned


def test_it_is_of_the_demos_form() -> None:
    config = json.loads((READY / "config.json").read_text(encoding="utf-8"))
    assert (config["prelude"], config["coda"]) == (settings.PRELUDE, settings.CODA)
    assert config["max_depth"] == settings.MAX_DEPTH
    assert config["base_config"]["num_hidden_layers"] == settings.LAYERS
    assert config["trained_depths"] == list(range(1, settings.MAX_DEPTH + 1))


def test_its_results_are_of_the_depths_that_are_shown() -> None:
    best = read_best_model(READY)
    assert best is not None
    assert list(map(int, best["losses"])) == list(settings.DEPTHS)
    page = (READY / "README.md").read_text(encoding="utf-8")
    for loss in best["losses"].values():
        assert f"{loss:.3f}" in page


@pytest.mark.parametrize("prompt", settings.READY_PROMPTS)
def test_its_page_shows_every_prompt(prompt: str) -> None:
    assert prompt in Path(READY / "README.md").read_text(encoding="utf-8")
