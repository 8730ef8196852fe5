"""A study of a tiny model: two arms, two seeds, a few train steps; and its texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.work import Study
from tests.support.study import write_plan, write_texts


@pytest.fixture
def study(tmp_path: Path, tiny_original: Path) -> Study:
    plan = write_plan(tmp_path / "recipes")
    texts = write_texts(tmp_path / "texts", tiny_original)
    return Study(
        plan, texts, tmp_path / "build", tmp_path / "results", plan.tokens, lambda line: None
    )
