"""Updates of weights: one computation everywhere, and files that say what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ouroboros.errors import CheckpointError
from ouroboros.storage import adapters
from ouroboros.storage.adapters import Update, add_updates, read_updates, write_updates
from runtime.files.destinations import ADAPTERS


def draw(out: int, into: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, Update]:
    generator = torch.Generator().manual_seed(seed)
    weight, a, b = (
        torch.randn(shape, generator=generator)
        for shape in ((out, into), (rank, into), (out, rank))
    )
    return weight, Update(a, b)


def by_hand(weight: torch.Tensor, updates: list[Update]) -> np.ndarray:
    """Every number by itself, in numpy's float32 scalars: no library sums anything."""
    found = weight.numpy().copy()
    for update in updates:
        a, b = update.a.numpy(), update.b.numpy()
        for i in range(found.shape[0]):
            for j in range(found.shape[1]):
                product = np.float32(0)
                for k in range(len(a)):
                    product = np.float32(product + np.float32(b[i, k] * a[k, j]))
                found[i, j] = np.float32(found[i, j] + product)
    return found


@pytest.mark.parametrize("block", [1, 40, 1 << 16])
def test_the_sum_is_that_of_the_documented_order(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(adapters, "_BLOCK", block)
    weight, first = draw(11, 17, 9)
    second = draw(11, 17, 4, seed=1)[1]
    before = weight.clone()
    found = add_updates(weight, [first, second])
    assert torch.equal(weight, before)
    assert np.array_equal(found.numpy(), by_hand(weight, [first, second]))
    # The test can fail: in another order the last bits are others.
    assert not torch.equal(found, weight + first.b @ first.a + second.b @ second.a)
    assert not torch.equal(found, add_updates(weight, [second, first]))


def test_threads_change_no_bit() -> None:
    weight, update = draw(600, 500, 64)
    there = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(add_updates(weight, [update]))
    finally:
        torch.set_num_threads(there)
    assert all(torch.equal(results[0], one) for one in results[1:])
    close = (weight.double() + update.b.double() @ update.a.double()).float()
    torch.testing.assert_close(results[0], close, rtol=1e-5, atol=1e-4)


def test_updates_come_back_as_they_were(tmp_path: Path) -> None:
    updates = {
        "coda.0.mlp.up_proj.weight": [draw(5, 7, 2, seed)[1] for seed in range(12)],
        "recurrent.layers.0.mlp.up_proj.weight": [Update(*(x.bfloat16() for x in draw_pair()))],
    }
    (tmp_path / ADAPTERS).write_bytes(write_updates(updates))
    found = read_updates(tmp_path)
    assert found.keys() == updates.keys()
    for name, ones in updates.items():
        for one, other in zip(ones, found[name], strict=True):
            assert one.a.dtype == other.a.dtype
            assert torch.equal(one.a, other.a)
            assert torch.equal(one.b, other.b)
    assert read_updates(tmp_path / "nowhere") == {}


def draw_pair() -> tuple[torch.Tensor, torch.Tensor]:
    update = draw(5, 7, 2)[1]
    return update.a, update.b


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w.1.a": None}, "update 1 of w lacks a factor"),
        ({"w.3.a": torch.zeros(2, 7), "w.3.b": torch.zeros(5, 2)}, "update 2 of w lacks a factor"),
        ({"w.weight": torch.zeros(3)}, "'w.weight' is no factor of an update"),
        ({"w.0.a": torch.zeros(3)}, "'w.0.a' is no factor of an update"),
        ({"w.1.a": torch.zeros(2, 7, dtype=torch.int32)}, "'w.1.a' is no factor"),
        ({"w.1.a": torch.full((2, 7), float("nan"))}, "'w.1.a' is no factor"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], words: str
) -> None:
    file = tmp_path / ADAPTERS
    file.write_bytes(write_updates({"w": [draw(5, 7, 2)[1]]}))
    tensors = {**load_file(file), **change}
    save_file({name: value for name, value in tensors.items() if value is not None}, file)
    with pytest.raises(CheckpointError, match=f"{words}.*remove it: the weights are whole"):
        read_updates(tmp_path)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="copy it again, or remove it"):
        read_updates(tmp_path)


@pytest.mark.parametrize("shape", [(5,), (5, 6), (4, 7), (5, 7, 1), ()])
def test_an_update_fits_one_shape_only(shape: tuple[int, ...]) -> None:
    update = draw(5, 7, 2)[1]
    assert update.fits((5, 7))
    assert not update.fits(shape)
    assert not Update(update.a[:1], update.b).fits((5, 7))
    assert not Update(update.a[0], update.b).fits((5, 7))
