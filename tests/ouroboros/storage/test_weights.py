"""Weights on disk: as narrow as loses nothing, float32 when loaded, no second copy in memory."""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bench.train_form import peak_bytes, reset_peak
from ouroboros import OuroborosConfig, OuroborosForCausalLM
from ouroboros.checkpoint import checkpoint_sha256, load_checkpoint, save_checkpoint
from ouroboros.conversion.convert import convert
from ouroboros.source.locate import locate
from ouroboros.source.weights import open_original
from ouroboros.storage import weights
from ouroboros.storage.weights import narrowest, write_weights
from tests.support.forked import fork_with_pipe
from tests.support.gguf import write_gguf
from tests.support.tiny import DIMENSIONS


def narrowed(checkpoint: Path, kind: torch.dtype) -> tuple[OuroborosForCausalLM, set[str]]:
    """A model whose frozen weights are of a narrow type, and the names of those."""
    model, _ = load_checkpoint(checkpoint)
    trained = set(model.trainable_names())
    frozen = {name for name, _ in model.named_parameters() if name not in trained}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in frozen:
                value.copy_(torch.randn(value.shape).to(kind).float())
    return model, frozen


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_frozen_weights_are_stored_as_narrow_as_is_exact(
    tiny_checkpoint: Path, tmp_path: Path, kind: torch.dtype
) -> None:
    model, frozen = narrowed(tiny_checkpoint, kind)
    save_checkpoint(model, None, tmp_path / "narrow")
    tensors = load_file(tmp_path / "narrow" / "model.safetensors")
    assert {name for name, value in tensors.items() if value.dtype == kind} == frozen
    assert {value.dtype for value in tensors.values()} == {kind, torch.float32}
    loaded = (
        load_checkpoint(tmp_path / "narrow")[0],
        OuroborosForCausalLM.from_pretrained(tmp_path / "narrow").eval(),
        AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").eval(),
    )
    ids = torch.arange(12)[None]
    for twin in loaded:
        assert torch.equal(model(ids).logits, twin(ids).logits)
        for name, value in model.state_dict().items():
            assert twin.state_dict()[name].dtype == torch.float32, name
            assert torch.equal(value, twin.state_dict()[name]), name
    asked = OuroborosForCausalLM.from_pretrained(tmp_path / "narrow", dtype=torch.bfloat16)
    assert {value.dtype for value in asked.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.0, -0.0, 2.0**-133], torch.bfloat16),
        ([1 + 2.0**-10, 2.0**-24], torch.float16),
        ([1 + 2.0**-10, 2.0**-25], torch.float32),
        ([1 + 2.0**-10, 65520.0], torch.float32),
        ([3e38, 3.3e38], torch.float32),
        ([float("nan"), 1 + 2.0**-20], torch.float32),
    ],
)
def test_one_value_that_would_change_keeps_the_type(
    monkeypatch: pytest.MonkeyPatch, values: list[float], kind: torch.dtype
) -> None:
    monkeypatch.setattr("ouroboros.storage.tensors.PIECE", 4)
    assert narrowest(torch.tensor([*[0.5] * 9, *values])) == kind
    assert narrowest(torch.tensor(values).double()) == torch.float64


def test_minus_zero_of_float16_is_kept() -> None:
    value = torch.tensor([-0.0, 1 + 2.0**-10])
    assert torch.equal(torch.signbit(value.to(narrowest(value))), torch.tensor([True, False]))


def test_what_conversion_adds_stays_float32(tiny_original: Path, tmp_path: Path) -> None:
    """Its start is all zeros and ones, which any type would hold."""
    convert(
        str(tiny_original),
        tmp_path / "out",
        prelude=2,
        coda=2,
        recurrent=3,
        norm_init="ones",
        bridge="none",
    )
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    model, _ = load_checkpoint(tmp_path / "out")
    assert not model.recurrent.gate.proj.weight.any()
    assert {tensors[name].dtype for name in model.trainable_names()} == {torch.float32}


def test_half_the_layers_of_a_bfloat16_original_take_less_room(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 36}
    original = LlamaForCausalLM(LlamaConfig(**{**DIMENSIONS, **shape})).to(torch.bfloat16)
    original.save_pretrained(tmp_path / "original")
    convert(
        str(tmp_path / "original"),
        tmp_path / "out",
        recurrent=18,
        rank=4,
        norm_init="ones",
        bridge="none",
    )
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("original", "out")]
    assert sizes[1] < sizes[0], sizes
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    expected = original.model.layers[0].mlp.up_proj.weight
    assert torch.equal(tensors["prelude.0.mlp.up_proj.weight"], expected)


def test_dequantised_weights_lose_nothing(tiny_original: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(tiny_original, file)
    convert(
        str(file),
        tmp_path / "out",
        prelude=2,
        coda=2,
        recurrent=3,
        rank=4,
        norm_init="ones",
        bridge="none",
    )
    original = open_original(locate(file))
    model, _ = load_checkpoint(tmp_path / "out")
    for name, value in model.coda[0].state_dict().items():
        assert torch.equal(value, original.read(f"model.layers.4.{name}")), name


@pytest.mark.parametrize("coda", ["frozen", "full"])
def test_saved_loaded_and_saved_again_it_is_the_same(
    tiny_checkpoint: Path, tmp_path: Path, coda: str
) -> None:
    """Also where the coda was to train and did not: its type depends on its values alone."""
    model, _ = narrowed(tiny_checkpoint, torch.bfloat16)
    model.mark_trainable(coda)
    first = save_checkpoint(model, None, tmp_path / "first")
    second = save_checkpoint(load_checkpoint(tmp_path / "first")[0], None, tmp_path / "second")
    assert first == second == checkpoint_sha256(tmp_path / "first")
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


def test_large_weights_go_into_several_files(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_checkpoint(tiny_checkpoint)

    def write(model: OuroborosForCausalLM, folder: Path) -> dict[str, str]:
        return write_weights(model, folder, 100_000)

    monkeypatch.setattr("ouroboros.checkpoint.write_weights", write)
    digest = save_checkpoint(model, tokenizer, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    parts = [[tensor.nbytes for tensor in load_file(file).values()] for file in files]
    held = [sum(sizes) for sizes in parts]
    assert all(sum(sizes) <= 100_000 or len(sizes) == 1 for sizes in parts)
    index = json.loads((tmp_path / "out" / weights.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(held)
    assert digest == checkpoint_sha256(tmp_path / "out")
    for twin in (
        load_checkpoint(tmp_path / "out")[0],
        OuroborosForCausalLM.from_pretrained(tmp_path / "out"),
    ):
        for name, value in model.state_dict().items():
            assert torch.equal(value, twin.state_dict()[name]), name


def write_large(pipe: Connection, out: Path) -> None:
    """Writes a model of 400 MB; sends the bytes in memory before, and the most meanwhile."""
    large = {"vocab_size": 800_000, "hidden_size": 128, "tie_word_embeddings": True}
    base = {"model_type": "llama", **DIMENSIONS, **large}
    config = OuroborosConfig(base_config=base, prelude=1, coda=1, rank=4)
    model = OuroborosForCausalLM(config)
    with torch.no_grad():
        for rows in model.embed_tokens.weight.split(10_000):
            rows.copy_(rows.bfloat16())
    before = reset_peak()
    save_checkpoint(model, None, out)
    pipe.send((before, peak_bytes()))


@pytest.mark.slow
def test_writing_holds_no_second_copy(tmp_path: Path) -> None:
    """A model of 400 MB, whose narrow copy would be 200 MB, is written with less than 80 MB."""
    process, pipe = fork_with_pipe(write_large, tmp_path / "out")
    before, top = pipe.recv()
    process.join()
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 210e6
    assert before > 400e6
    assert top - before < 80e6, (before, top)
