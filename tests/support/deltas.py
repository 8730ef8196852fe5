"""Reads, changes and compares delta checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ouroboros import restore_delta
from ouroboros.checkpoint import hash_file
from ouroboros.delta.record import INDEX
from ouroboros.errors import OuroborosError

SHARD = "delta-00001-of-00001.safetensors"


def read(delta: Path) -> Any:
    return json.loads((delta / "delta.json").read_text())


def write(delta: Path, record: Any) -> None:
    (delta / "delta.json").write_text(json.dumps(record))


def sign(delta: Path, *names: str) -> None:
    """Gives files of a delta new hashes, as whoever changes them on purpose would."""
    record = read(delta)
    for name in names:
        file = delta / name
        record["own"][name] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
    write(delta, record)


def refuse(delta: Path, source: Path, words: str) -> None:
    """Expects one line, and that nothing was written anywhere beside the delta."""
    before = sorted(delta.parent.rglob("*")), sorted(delta.parent.parent.iterdir())
    with pytest.raises(OuroborosError, match=words) as caught:
        restore_delta(delta, delta.parent / "back", str(source))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert before == (sorted(delta.parent.rglob("*")), sorted(delta.parent.parent.iterdir()))


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Changes tensors in the delta's file, its index and its hashes with them."""

    def edit(delta: Path) -> None:
        tensors = load_file(delta / SHARD)
        change(tensors)
        save_file(tensors, delta / SHARD, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, SHARD)}
        (delta / INDEX).write_text(json.dumps(index))
        sign(delta, SHARD, INDEX)

    return edit


def require_same_files(one: Path, other: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert names == sorted(path.relative_to(other) for path in other.rglob("*"))
    for name in names:
        if (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def held_in(delta: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in delta.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors
