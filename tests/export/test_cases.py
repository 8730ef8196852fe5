"""What is recorded of PyTorch: which copy bounds the errors in 16 bits, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export import ExportOptions, export_bundle
from export.cases import narrow_copy
from export.errors import ExportError
from ouroboros import load_checkpoint
from tests.support.tiny import MAX_DEPTH


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_copy_in_16_bits_turns_by_the_same_angles(
    tiny_checkpoint: Path, half: torch.dtype
) -> None:
    """As a model that is loaded so: in 16 bits the angles of late positions would be others."""
    model, _ = load_checkpoint(tiny_checkpoint)
    narrow = narrow_copy(model, half)
    buffers, own = dict(narrow.named_buffers()), dict(model.named_buffers())
    rotary = [
        name for name in buffers if "rotary_emb." in name and buffers[name].is_floating_point()
    ]
    assert rotary
    for name in rotary:
        assert torch.equal(buffers[name], own[name])
        assert buffers[name].dtype == torch.float32
    assert {one.dtype for one in narrow.parameters()} == {half}
    assert {buffers[name].dtype for name in buffers if ".lora_" in name} == {half}


def test_plans_are_built_before_minutes_are_spent_on_recording(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> Callable[[Path], Any]:
        def build(folder: Path, hashes: dict[str, str]) -> None:
            raise ExportError("no plan can be built of it", "nothing helps")

        return build

    def record(*given: Any, **options: Any) -> None:
        raise AssertionError("PyTorch's outputs are recorded")

    monkeypatch.setattr("export.bundle.plan_builder", refuse)
    monkeypatch.setattr("export.bundle.record_cases", record)
    options = ExportOptions(format="trt", max_depth=MAX_DEPTH)
    with pytest.raises(ExportError, match="no plan can be built of it"):
        export_bundle(tiny_checkpoint, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
