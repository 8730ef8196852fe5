"""The demo's stages are done again when any code of ours that they run changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from demo import mixture, run, stages
from demo.fetch import Material
from demo.mixture import Mixture
from tests.support.imports import files_of, find_file
from tests.support.paths import ROOT

# Where each stage's work begins, behind the commands of `cli`.
BEGINS = {
    "convert": ["ouroboros.conversion.convert"],
    "train": ["ouroboros.training.run"],
    "eval": ["ouroboros.evaluate"],
    "export": ["export.bundle"],
    "generate": ["runtime.engine", "demo.tokens"],
    "check": ["runtime.parity.check"],
    "bench": ["bench.decode"],
    "ready": ["ouroboros.delta.restore", "ouroboros.evaluate", "export.bundle", "demo.samples"],
}


class Recorder(stages.Stages):
    """Does nothing; keeps what each stage's key is made of."""

    def run(self, name: str, title: str, work: Callable[[bool], None], **of: Any) -> None:
        self.done[name] = {"inputs": list(of["inputs"])}


def strings(value: Any) -> set[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*map(strings, value))
    return {value} if isinstance(value, str) else set()


def uncovered(modules: Iterable[str], places: Iterable[str]) -> set[str]:
    """The files behind modules, less cli's, that lie in none of the places."""
    return {
        str(file.relative_to(ROOT))
        for file in files_of(modules, apart="cli")
        if file.stem != "__init__"
        and not any(file.is_relative_to(ROOT / place) for place in places)
    }


@pytest.mark.slow
def test_key_of_a_stage_covers_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "source_hash", lambda *places: list(places))
    texts = Mixture(tmp_path, tmp_path, "sha")
    material = Material(tmp_path, tmp_path, tmp_path, {}, "sha")
    recorder = Recorder(tmp_path, {})
    run._build_model(recorder, material, texts)
    run._judge_model(recorder, material)
    run._show_ready(recorder, material)
    assert set(recorder.done) == set(BEGINS)
    for name, modules in BEGINS.items():
        assert all(find_file(module) for module in modules), name
        assert uncovered(modules, strings(recorder.done[name])) == set(), name
    assert "ouroboros/calibration.txt" in strings(recorder.done["convert"])


def test_key_of_the_mixture_covers_what_it_imports() -> None:
    assert uncovered(["demo.mixture"], mixture.CODE) == set()


def test_hash_of_sources_follows_packages_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.py").write_text("a = 1\n")
    (tmp_path / "one" / "text.txt").write_text("text")
    package, file = stages.source_hash("one"), stages.source_hash("one/text.txt")
    (tmp_path / "one" / "text.txt").write_text("another")
    assert stages.source_hash("one") == package
    assert stages.source_hash("one/text.txt") != file
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "gone"):
        with pytest.raises(stages.DemoError, match="has no source files; run this from a whole"):
            stages.source_hash("one", nothing)
