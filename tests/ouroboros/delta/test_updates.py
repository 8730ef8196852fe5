"""Deltas of weights with low-rank updates: held as factors, put together to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ouroboros import restore_delta, save_delta
from ouroboros.checkpoint import checkpoint_sha256, load_checkpoint, save_checkpoint
from ouroboros.delta.comparison import join_updates
from ouroboros.delta.record import read_record
from ouroboros.errors import CheckpointError
from ouroboros.storage.adapters import Update, add_updates, read_updates, write_updates
from ouroboros.training.run import train
from runtime.files.destinations import ADAPTERS
from tests.support.deltas import (
    edit_tensors,
    held_in,
    read,
    refuse,
    require_same_files,
    write,
)
from tests.support.processes import call_ouro
from tests.support.training import options

UP, DOWN = "coda.1.mlp.up_proj.weight", "recurrent.layers.0.mlp.down_proj.weight"
WEIGHTS = "model.safetensors"


def draw(weight: torch.Tensor, rank: int, seed: int) -> Update:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, weight.shape[1], generator=generator)
    return Update(a, torch.randn(weight.shape[0], rank, generator=generator) * 0.1)


@pytest.fixture(scope="module")
def adapted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with two updates of one weight and one of another."""
    path = tmp_path_factory.mktemp("adapted") / "checkpoint"
    shutil.copytree(tiny_checkpoint, path)
    model, tokenizer = load_checkpoint(path)
    updates = {
        UP: [draw(model.get_parameter(UP), rank, rank) for rank in (3, 2)],
        DOWN: [draw(model.get_parameter(DOWN), 20, 1)],
    }
    with torch.no_grad():
        for name, ones in updates.items():
            weight = model.get_parameter(name)
            weight.copy_(add_updates(weight, ones))
    files: dict[str, Path | bytes] = {ADAPTERS: write_updates(updates)}
    save_checkpoint(model, tokenizer, path, files, keep=("LICENSE", "ATTRIBUTION"))
    return path


@pytest.fixture
def delta(adapted: Path, tiny_original: Path, tmp_path: Path) -> Path:
    path = tmp_path / "work" / "delta"
    path.parent.mkdir()
    save_delta(adapted, path, str(tiny_original))
    return path


def test_the_factors_are_held_and_the_weights_come_back(
    adapted: Path, tiny_original: Path, tmp_path: Path
) -> None:
    report = save_delta(adapted, tmp_path / "delta", str(tiny_original))
    assert set(report.updated) == {UP, DOWN}
    held = held_in(tmp_path / "delta")
    factors = {f"{UP}.1.a", f"{UP}.1.b", f"{UP}.2.a", f"{UP}.2.b", f"{DOWN}.1.a", f"{DOWN}.1.b"}
    assert held.keys() == factors | set(report.tensors)
    assert not factors & set(report.tensors)
    assert report.numbers == sum(value.numel() for value in held.values())
    restored = restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    assert restored.identical
    require_same_files(adapted, tmp_path / "back")


def test_a_run_with_adapters_comes_back_to_the_bit(
    tiny_checkpoint: Path, tiny_original: Path, corpus: Path, tmp_path: Path
) -> None:
    out, delta, back = (tmp_path / name for name in ("out", "delta", "back"))
    run = options(corpus, depth="1-3", train_coda="lora", train_recurrent="lora", adapter_rank=2)
    train(tiny_checkpoint, out, run)
    report = save_delta(out, delta, str(tiny_original))
    assert set(report.updated) == set(read_updates(out))
    assert len(report.updated) == 3 * 7
    assert not any("_proj.weight" in name for name in report.tensors)
    assert "coda.0.input_layernorm.weight" in report.tensors
    assert restore_delta(delta, back, str(tiny_original)).identical
    # The pictures are no part of the weights, the run's state no part of the checkpoint.
    assert (back / ADAPTERS).read_bytes() == (out / ADAPTERS).read_bytes()
    for (name, one), other in zip(
        load_checkpoint(out)[0].state_dict().items(),
        load_checkpoint(back)[0].state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, other), name


def test_rounded_it_is_the_source_and_rounded_factors(
    adapted: Path, tiny_original: Path, tmp_path: Path
) -> None:
    delta, back = tmp_path / "delta", tmp_path / "back"
    save_delta(adapted, delta, str(tiny_original), dtype="bfloat16")
    assert {value.dtype for value in held_in(delta).values()} == {torch.bfloat16}
    restored = restore_delta(delta, back, str(tiny_original))
    assert not restored.identical
    assert restored.sha256 == checkpoint_sha256(back)
    source = load_file(tiny_original / WEIGHTS)
    found = load_file(back / WEIGHTS)
    for name, original in ((UP, "model.layers.5.mlp.up_proj.weight"), (DOWN, None)):
        layer = load_checkpoint(back)[0].config.recurrent
        weight = source[original or f"model.layers.{layer}.mlp.down_proj.weight"]
        rounded = [Update(u.a.bfloat16(), u.b.bfloat16()) for u in read_updates(adapted)[name]]
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], add_updates(weight, rounded))
    # What came back has factors of its own, of which a delta loses nothing.
    report = save_delta(back, tmp_path / "again", str(tiny_original))
    assert set(report.updated) == {UP, DOWN}
    assert restore_delta(tmp_path / "again", tmp_path / "twice", str(tiny_original)).identical
    require_same_files(back, tmp_path / "twice")


def test_joined_updates_are_the_nearest_of_their_rank() -> None:
    updates = [draw(torch.empty(40, 24), rank, seed=rank) for rank in (3, 5)]
    whole = sum(one.b.double() @ one.a.double() for one in updates)
    values = torch.linalg.svdvals(whole)
    for rank in (1, 5, 8):
        joined = join_updates(updates, rank)
        assert joined.fits((40, 24))
        assert joined.a.dtype == joined.b.dtype == torch.float32
        assert len(joined.a) == rank
        left = torch.linalg.matrix_norm(whole - joined.b.double() @ joined.a.double())
        assert left == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-4)


def test_joined_updates_are_added_in_place_of_all(
    adapted: Path, tiny_original: Path, tmp_path: Path
) -> None:
    """A weight has one of the rank asked for; what has no more is held as it is."""
    delta, back = tmp_path / "delta", tmp_path / "back"
    save_delta(adapted, delta, str(tiny_original), dtype="bfloat16", adapter_rank=20)
    assert {f"{UP}.2.a", f"{DOWN}.1.a"} < held_in(delta).keys()
    save_delta(adapted, delta, str(tiny_original), dtype="bfloat16", adapter_rank=4)
    held = held_in(delta)
    assert f"{UP}.2.a" not in held
    restore_delta(delta, back, str(tiny_original))
    before, after = (load_file(one / WEIGHTS) for one in (adapted, back))
    for name, own in read_updates(adapted).items():
        assert len(held[f"{name}.1.a"]) == 4
        a, b = torch.cat([u.a for u in own]), torch.cat([u.b for u in own], 1)
        least = torch.linalg.svdvals(b @ a)[4:].square().sum().sqrt()
        left = torch.linalg.matrix_norm(before[name] - after[name])
        assert left == pytest.approx(float(least), rel=0.2)


def test_a_weight_that_was_changed_since_is_held_whole(
    adapted: Path, tiny_original: Path, tmp_path: Path
) -> None:
    changed, delta, back = (tmp_path / name for name in ("changed", "delta", "back"))
    shutil.copytree(adapted, changed)
    model, tokenizer = load_checkpoint(changed)
    with torch.no_grad():
        weight = model.get_parameter(UP)
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    kept = ("LICENSE", "ATTRIBUTION", ADAPTERS)
    save_checkpoint(model, tokenizer, changed, keep=kept)
    report = save_delta(changed, delta, str(tiny_original))
    assert report.updated == (DOWN,)
    assert UP in report.tensors
    assert restore_delta(delta, back, str(tiny_original)).identical
    assert read_updates(back).keys() == {DOWN}
    assert torch.equal(load_checkpoint(back)[0].get_parameter(UP), weight)


def test_factors_that_are_larger_than_a_file_are_cut(
    adapted: Path, tiny_original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ouroboros.delta.options.MEGABYTE", 5000)
    save_delta(adapted, tmp_path / "delta", str(tiny_original), max_file_mb=1)
    tensors = read_record(tmp_path / "delta").weights[WEIGHTS].tensors
    assert len(tensors[DOWN].updates[0].a) > 1
    assert restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original)).identical
    require_same_files(adapted, tmp_path / "back")


def test_a_delta_of_the_first_version_is_read(
    tiny_checkpoint: Path, tiny_original: Path, tmp_path: Path
) -> None:
    save_delta(tiny_checkpoint, tmp_path / "delta", str(tiny_original))
    record = read(tmp_path / "delta")
    record["version"] = 1
    for tensor in record["weights"][WEIGHTS]["tensors"].values():
        assert tensor.pop("updates") == []
    write(tmp_path / "delta", record)
    restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original))
    require_same_files(tiny_checkpoint, tmp_path / "back")


def test_damaged_factors_of_a_checkpoint_are_named(
    adapted: Path, tiny_original: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapted, tmp_path / "damaged")
    file = tmp_path / "damaged" / ADAPTERS
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"adapters\.safetensors: .*; copy it again, or rem"):
        save_delta(tmp_path / "damaged", tmp_path / "delta", str(tiny_original))
    assert not (tmp_path / "delta").exists()


def test_the_command_counts_them(adapted: Path, tiny_original: Path, tmp_path: Path) -> None:
    done = call_ouro("delta", adapted, tmp_path / "delta", "--source", tiny_original)
    assert done.returncode == 0, done.stderr
    assert " tensors and the adapters of 2, " in done.stdout
    shown = call_ouro("inspect", adapted)
    assert shown.returncode == 0, shown.stderr


def entry(change: Callable[[dict[str, Any]], object], name: str = DOWN) -> Callable[[Path], None]:
    """Changes what a delta says of one tensor."""

    def edit(delta: Path) -> None:
        record = read(delta)
        change(record["weights"][WEIGHTS]["tensors"][name])
        write(delta, record)

    return edit


def list_adapters(delta: Path) -> None:
    record = read(delta)
    record["files"][ADAPTERS] = ["LICENSE"]
    write(delta, record)


A, B = f"{DOWN}.1.a", f"{DOWN}.1.b"
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "rank of none": (entry(lambda t: t["updates"][0].update(rank=0)), "an update of rank 0, its"),
    "rank below none": (entry(lambda t: t["updates"][0].update(rank=-4)), "is -4, no size"),
    "enormous rank": (
        entry(lambda t: t["updates"][0].update(rank=1 << 40)), "an update of rank 1099511627776, i",
    ),
    "other rank": (entry(lambda t: t["updates"][0].update(rank=2)), r"numbers, its shape is \[2, "),
    "rank as a text": (entry(lambda t: t["updates"][0].update(rank="4")), "is '4', no size"),
    "unknown key": (entry(lambda t: t["updates"][0].update(scale=2)), "has the unknown key 'scale"),
    "missing factor": (entry(lambda t: t["updates"][0].pop("a")), "lacks 'a'"),
    "empty factor": (entry(lambda t: t["updates"][0].update(a=[])), "0 numbers, its shape is"),
    "factor elsewhere": (
        entry(lambda t: t["updates"][0].update(a=["../x"])), "'../x' is in none of its files",
    ),
    "factor twice": (entry(lambda t: t["updates"][0].update(a=[B])), "is used twice|numbers, its"),
    "update twice": (entry(lambda t: t["updates"].append(t["updates"][0])), "is used twice"),
    "no update": (entry(lambda t: t.update(updates=[])), "which is part of no tensor"),
    "updates of no list": (entry(lambda t: t.update(updates={"a": 1})), "is no list"),
    "update of no object": (entry(lambda t: t.update(updates=[3])), "is no object"),
    "no source": (entry(lambda t: t.update(source="", pieces=[A])), "updates of no tensor of the"),
    "other source": (
        entry(lambda t: t.update(source="model.layers.4.mlp.down_proj.weight")), "comes out with",
    ),
    "source of another shape": (
        entry(lambda t: t.update(source="model.layers.4.mlp.up_proj.weight")), "the source's",
    ),
    "update of a vector": (
        entry(
            lambda t: t.update(updates=[{"rank": 1, "a": [A], "b": [B]}]),
            "prelude.0.input_layernorm.weight",
        ),
        "an update of rank 1, its shape is",
    ),
    "order": (entry(lambda t: t["updates"].reverse(), UP), "comes out with sha256"),
    "changed number": (
        edit_tensors(lambda t: t[A].view(-1)[-1:].add_(1)), "comes out with sha256",
    ),
    "not a number": (
        edit_tensors(lambda t: t[B].view(-1)[-1:].fill_(float("inf"))), "holds NaN or infinity",
    ),
    "product beyond float32": (
        edit_tensors(lambda t: (t[A].fill_(1e38), t[B].fill_(1e38))),
        f"{DOWN} holds NaN or infinity",
    ),
    "too short": (
        edit_tensors(lambda t: t.update({A: t[A][1:].clone()})), r"numbers, its shape is \[20, ",
    ),
    "adapters as a file": (list_adapters, f"{ADAPTERS} is not one of a delta's files"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_refused(name: str, delta: Path, tiny_original: Path) -> None:
    change, words = CHANGES[name]
    change(delta)
    assert json.loads((delta / "delta.json").read_text())["version"] == 2
    refuse(delta, tiny_original, words)
