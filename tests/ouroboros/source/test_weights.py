"""Original models read tensor by tensor: the same result, less memory, and what is refused."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ouroboros import convert, load_checkpoint
from ouroboros.errors import CheckpointError
from ouroboros.source import locate as locate_module
from ouroboros.source.locate import locate
from ouroboros.source.weights import INDEX, TensorFiles, open_original
from tests.support.processes import call_ouro

SMALL: dict[str, Any] = {
    "prelude": 1, "coda": 2, "rank": 4, "max_depth": 6, "depth": 3, "bridge": "none"
}  # fmt: skip
OPTIONS = (
    "--recurrent", 2, "--norm-init", "ones", "--bridge", "none",
    "--prelude", 1, "--coda", 2, "--rank", 4,
)  # fmt: skip
LAYER_BYTES = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64)
EMBEDDING_BYTES = 4 * 259 * 64


@pytest.fixture
def sharded(tiny_original: Path, tmp_path: Path) -> Path:
    """The tiny original in bfloat16, a file a layer and an index."""
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_original, folder)
    weight_map: dict[str, str] = {}
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        part = name.split(".")[2] if ".layers." in name else "outer"
        weight_map[name] = f"model-{part}.safetensors"
        files.setdefault(weight_map[name], {})[name] = value.bfloat16()
    for file, tensors in files.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def whole(sharded: Path, tmp_path: Path) -> Path:
    """The same in one pickled file, which transformers loads whole."""
    folder = tmp_path / "whole"
    shutil.copytree(sharded, folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in sharded.glob("*.safetensors"):
        tensors |= load_file(file)
        (folder / file.name).unlink()
    (folder / INDEX).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


class Counter:
    """Stands in for `TensorFiles.read`: what was read, and how much of it lives at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.living: dict[int, int] = {}
        self.most = 0
        read = TensorFiles.read

        def counted(files: TensorFiles, name: str) -> torch.Tensor:
            value = read(files, name)
            self.names.append(name)
            number = len(self.names)
            self.living[number] = value.nbytes
            weakref.finalize(value, self.living.pop, number)
            self.most = max(self.most, sum(self.living.values()))
            return value

        monkeypatch.setattr(TensorFiles, "read", counted)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"recurrent": 2, "norm_init": "ones"},
        {"recurrent": 3, "bases": "per_step", "norm_init": "ones"},
    ],
    ids=["auto", "mean", "per_step"],
)
def test_read_in_parts_it_converts_to_the_bit_as_loaded_whole(
    sharded: Path, whole: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    reports = [
        convert(str(folder), tmp_path / "out" / folder.name, **SMALL, **options)
        for folder in (sharded, whole)
    ]
    folders = [tmp_path / "out" / name for name in ("sharded", "whole")]
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert reports[0].lines[1:] == reports[1].lines[1:]
    assert reports[0].candidates == reports[1].candidates
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    for config in configs:
        del config["source"]
    assert configs[0] == configs[1]


def test_conversion_reads_what_it_needs_and_holds_one_layer(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch)
    convert(str(sharded), tmp_path / "out", recurrent=2, norm_init="ones", **SMALL)
    assert counter.most == max(LAYER_BYTES, EMBEDDING_BYTES)
    assert counter.living == {}
    kept, dropped = (0, 2, 4, 5), (1, 3)
    for name in ("input_layernorm", "post_attention_layernorm"):
        for layer in range(6):
            times = counter.names.count(f"model.layers.{layer}.{name}.weight")
            assert times == (1 if layer in kept else 0)
    for layer in dropped:
        assert counter.names.count(f"model.layers.{layer}.mlp.up_proj.weight") == 1


@pytest.mark.slow
def test_selection_reads_one_candidate_at_a_time(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch)
    report = convert(str(sharded), tmp_path / "out", **SMALL)
    assert sorted(candidate.layer for candidate in report.candidates) == [1, 2, 3]
    assert counter.most <= 2 * LAYER_BYTES


def edit(file: Path, change: Any) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def forget(folder: Path) -> None:
    edit(folder / "model-4.safetensors", lambda t: t.pop("model.layers.4.mlp.up_proj.weight"))


def reshape(folder: Path) -> None:
    name = "model.layers.4.mlp.up_proj.weight"
    edit(folder / "model-4.safetensors", lambda t: t.update({name: t[name].T.contiguous()}))


def spoil(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit(folder / "model-1.safetensors", lambda t: t[name].view(-1)[-1:].fill_(float("inf")))


def point_outside(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../model-outer.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model-3.safetensors").unlink(), r"can't load the weights: .*model-3"),
        (lambda f: (f / "model-3.safetensors").write_bytes(b"12"), "can't load the weights: "),
        (lambda f: (f / INDEX).write_text("[]"), "not a safetensors index"),
        (point_outside, r"names '\.\./model-outer\.safetensors', no file beside it"),
        (forget, "1 weights are missing, model.layers.4.mlp.up_proj.weight first; download"),
        (reshape, r"up_proj.weight is \[64, 96\], by its config \[96, 64\]; config.json and"),
        (spoil, "model.layers.1.mlp.up_proj.weight holds NaN or infinity"),
    ],
    ids=["gone", "cut", "index", "outside", "forget", "reshape", "spoil"],
)
def test_damaged_shards_are_refused_in_one_line(
    sharded: Path, tmp_path: Path, damage: Any, words: str
) -> None:
    damage(sharded)
    with pytest.raises(CheckpointError, match=words) as caught:
        convert(str(sharded), tmp_path / "out", recurrent=2, norm_init="ones", **SMALL)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_floats_are_left_to_transformers(sharded: Path) -> None:
    name = "model.norm.weight"
    edit(sharded / "model-outer.safetensors", lambda t: t.update({name: t[name].to(torch.int8)}))
    original = open_original(locate(str(sharded)))
    assert not isinstance(getattr(original.read, "__self__", None), TensorFiles)


def test_hub_id_is_read_from_the_cache(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As huggingface_hub lays its cache out; the shards are found through the index."""
    home = tmp_path / "hub" / "models--Lab--Tiny"
    shutil.copytree(sharded, home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)

    def load(*_: object) -> None:
        raise AssertionError("loaded whole")

    monkeypatch.setattr(locate_module, "_load_model", load)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home.parent))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = call_ouro("convert", "Lab/Tiny", tmp_path / "out", *OPTIONS)
    assert result.returncode == 0, result.stderr
    model, _ = load_checkpoint(tmp_path / "out")
    expected = load_file(sharded / "model-0.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(model.prelude[0].mlp.up_proj.weight, expected.float())
