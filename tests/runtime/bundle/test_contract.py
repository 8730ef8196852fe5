"""The contract: a tensor that is added to it is followed everywhere, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export import export_bundle
from export.tensorrt.options import TrtOptions, make_profiles
from export.triton.config import render_config
from runtime import BundleError, Engine, EngineError
from runtime.bundle import contract, open_bundle

MADE_UP = contract.Tensor("made_up", "float32", (contract.BATCH, contract.ModelNumber("head_dim")))


def test_made_up_input_is_followed_or_refused_by_name(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contract, "PLAIN_INPUTS", (*contract.PLAIN_INPUTS, MADE_UP))
        with pytest.raises(BundleError, match="lacks the input made_up"):
            open_bundle(tiny_bundle)
        export_bundle(tiny_checkpoint, tmp_path / "bundle", max_depth=2)
        bundle = open_bundle(tmp_path / "bundle")
        (listed,) = (one for one in bundle.manifest.graphs.onnx.inputs if one.name == "made_up")
        assert listed.shape == ("batch", bundle.manifest.model.head_dim)
        config = model_config_pb2.ModelConfig()
        text_format.Parse(render_config(bundle, "tiny", "cpu", 1), config)
        assert "made_up" in [one.name for one in config.input]
        profiles = make_profiles(
            bundle.manifest.graphs.onnx.inputs, TrtOptions(), 64, 2, 2, whole_prompt=False
        )
        assert all("made_up" in [one.name for one in p.shapes] for p in profiles)
        with (
            Engine.open(tmp_path / "bundle", threads=1) as engine,
            pytest.raises(EngineError, match="the graph has made_up, which is not known here"),
        ):
            engine.generate("x", depth=1, max_new_tokens=1)
    with pytest.raises(BundleError, match="input 'made_up' is unknown here"):
        open_bundle(tmp_path / "bundle")


def test_nobody_else_spells_a_tensor() -> None:
    """But for the model's own arguments, which Hugging Face names, and names within one part."""
    root = Path(contract.__file__).resolve().parents[2]
    own = ("past_key_values.", "new_key_values.", 'pool_sum"', 'row_depth"', 'logit_index"')
    spelled = [
        f"{file.relative_to(root)}: {word}"
        for folder in ("runtime", "export", "bench", "demo", "cli")
        for file in sorted((root / folder).rglob("*.py"))
        if file != Path(contract.__file__).resolve()
        for word in own
        if word in file.read_text()
    ]
    assert spelled == []
