"""Models that loop nothing, to compare with: prelude and coda, with a bridge between or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from export.bundle import export_bundle
from export.errors import ExportError
from ouroboros import convert, load_checkpoint, restore_delta, save_delta
from ouroboros.conversion.bridge import fit_bridge
from ouroboros.errors import ConfigError
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.text.windows import eval_windows
from ouroboros.training.adapters import mark_trained
from ouroboros.training.run import train
from tests.support.processes import call_ouro
from tests.support.training import options

IDS = torch.tensor([[5, 9, 2, 7, 101, 3], [80, 2, 2, 30, 4, 6]])
KEPT: dict[str, Any] = {"prelude": 2, "coda": 2, "recurrent": "none"}


@pytest.fixture(scope="module", params=["exit", "none"])
def unlooped(
    request: pytest.FixtureRequest, tiny_original: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path: Path = tmp_path_factory.mktemp("unlooped") / request.param
    convert(str(tiny_original), path, bridge=request.param, **KEPT)
    return path


@torch.no_grad()
def states_of(original: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the original's first two layers leave, and what enters its last two of six."""
    hidden = original(ids, output_hidden_states=True).hidden_states
    return hidden[2], hidden[4]


@torch.no_grad()
def run_coda(original: Any, hidden: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(hidden.shape[1])[None]
    rotary = original.model.rotary_emb(hidden, positions)
    mask = torch.full((hidden.shape[1],) * 2, -1e9).triu(1)[None, None]
    for layer in original.model.layers[4:]:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    logits: torch.Tensor = original.lm_head(original.model.norm(hidden))
    return logits


def test_it_is_the_layers_that_are_kept_and_the_map(unlooped: Path, tiny_original: Path) -> None:
    model, tokenizer = load_checkpoint(unlooped)
    original = AutoModelForCausalLM.from_pretrained(tiny_original).eval()
    state, _ = states_of(original, IDS)
    if unlooped.name == "exit":
        text = (Path(convert.__code__.co_filename).parents[1] / "calibration.txt").read_text()
        windows = torch.from_numpy(eval_windows(text, tokenizer, 256, 96))
        parts = [states_of(original, window[None]) for window in windows]
        fit = fit_bridge(*(torch.cat(ones) for ones in zip(*parts, strict=True)))
        torch.testing.assert_close(
            model.get_parameter("bridge.weight"), fit.weight, rtol=1e-3, atol=1e-4
        )
        state = state + state @ model.bridge.weight.T + model.bridge.bias  # type: ignore[union-attr]
    else:
        assert model.bridge is None
    with torch.no_grad():
        logits = model(IDS).logits
    torch.testing.assert_close(logits, run_coda(original, state), rtol=1e-4, atol=1e-4)
    assert model.config.num_hidden_layers == 4
    assert not any(name.startswith("recurrent.layers") for name in model.state_dict())
    assert set(model.trainable_names()) == (
        {"bridge.weight", "bridge.bias"} if model.bridge is not None else set()
    )


def test_looped_layers_that_are_not_there_can_not_be_asked_to_train(
    unlooped: Path, tmp_path: Path
) -> None:
    run = options(tmp_path, depth="1", train_coda="full", train_recurrent="full")
    with pytest.raises(ConfigError, match="train_recurrent=full is of looped layers, and this mod"):
        mark_trained(load_checkpoint(unlooped)[0], run)


@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
def test_it_generates_with_its_cache_what_it_does_without(unlooped: Path) -> None:
    model, _ = load_checkpoint(unlooped)
    for cached in (True, False):
        found = model.generate(IDS[:1], max_new_tokens=8, do_sample=False, use_cache=cached)
        if cached:
            expected = found
    assert torch.equal(found, expected)
    with pytest.raises(ConfigError, match=r"depth=2 is outside this model's range 1\.\.1"):
        model(IDS, depth=2)


def test_it_trains_and_comes_back_from_a_delta(
    unlooped: Path, tiny_original: Path, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = options(corpus, depth="1", train_coda="lora", adapter_rank=2)
    train(unlooped, out, run)
    before, after = (load_checkpoint(path)[0].state_dict() for path in (unlooped, out))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert all(name.startswith(("bridge.", "coda.", "norm.")) for name in changed)
    assert ("bridge.weight" in changed) == (unlooped.name == "exit")
    report = save_delta(out, tmp_path / "delta", str(tiny_original))
    assert len(report.updated) == 14
    assert restore_delta(tmp_path / "delta", tmp_path / "back", str(tiny_original)).identical


def test_what_it_has_not_is_not_trained(unlooped: Path, corpus: Path, tmp_path: Path) -> None:
    run = options(corpus, depth="1", train_recurrent="lora", adapter_rank=2)
    with pytest.raises(ConfigError, match="there is no layer for adapters of recurrent"):
        train(unlooped, tmp_path / "out", run)
    if unlooped.name == "none":
        with pytest.raises(ConfigError, match="nothing of this model trains; give --train-coda"):
            train(unlooped, tmp_path / "out", options(corpus, depth="1"))
    assert not (tmp_path / "out").exists()


def test_it_is_not_exported(unlooped: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"loops nothing .*convert with --recurrent auto or the"):
        export_bundle(unlooped, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_commands_take_it(tiny_original: Path, tmp_path: Path) -> None:
    wanted = ("--recurrent", "none", "--prelude", "2", "--coda", "2")
    refused = call_ouro("convert", tiny_original, tmp_path / "x", *wanted)
    assert refused.returncode == 1
    assert (
        "there is no depth and no loop to enter; set max_depth to 1 and bridge to exit or none"
        in (refused.stderr)
    )
    done = call_ouro("convert", tiny_original, tmp_path / "x", *wanted, "--bridge", "exit")
    assert done.returncode == 0, done.stderr
    assert "recurrent  no layer\n" in done.stdout
    assert "dropped    layers 2..3: " in done.stdout
    assert "trainable  4,160 parameters (bridge)" in done.stdout
    (tmp_path / "text.txt").write_text("the cat sat on a mat and ran " * 40)
    scored = call_ouro("eval", tmp_path / "x", "--text", tmp_path / "text.txt", "--depth", "1")
    assert scored.returncode == 0, scored.stderr
    assert call_ouro("inspect", tmp_path / "x").returncode == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recurrent_layers": -1}, "recurrent_layers=-1 is negative; give 0"),
        ({"recurrent_layers": 0}, r"recurrent_layers=0 with max_depth=6 and .*set max_depth to 1"),
        (
            {"recurrent_layers": 0, "max_depth": 1, "depth": 1, "bridge": "entry"},
            "and bridge=entry: where nothing is looped",
        ),
        (
            {"recurrent_layers": 0, "max_depth": 1, "depth": 1, "prelude": 0, "coda": 0},
            "nothing is looped and no layer kept",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], words: str) -> None:
    from tests.support.training import tiny_model

    with pytest.raises(ConfigError, match=words):
        tiny_model(**changes)


def test_the_class_loads_it_too(unlooped: Path) -> None:
    model = OuroborosForCausalLM.from_pretrained(unlooped)
    assert torch.equal(model(IDS).logits, load_checkpoint(unlooped)[0](IDS).logits)
