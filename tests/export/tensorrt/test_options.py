"""Options of a build: their limits, the compute capabilities and the profiles they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.options import TrtOptions
from export.tensorrt.options import check_options, choose_capabilities, make_profiles
from runtime.backends.trt_flavours import RTX, TENSORRT
from runtime.bundle.contract import TensorSpec
from runtime.bundle.reader import read_manifest
from tests.support.tensorrt import GPU, HOPPER
from tests.support.tiny import MAX_DEPTH


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flavour": "cuda"}, "the TensorRT flavour 'cuda' is not known; allowed: auto, trt, rtx"),
        ({"compute_capabilities": ("sm89",)}, "compute_capabilities=sm89 is not one such as 8.9"),
        ({"max_batch": 0}, "max_batch=0 is not allowed; give 1..1024"),
        ({"max_seq": 513}, "max_seq=513 is not allowed: the recorded cases"),
        ({"max_seq": 27}, "max_seq=27 is not allowed: the recorded cases that `ouro check`"),
        ({"workspace_mb": 0}, "workspace_mb=0 is not allowed; give 1 or more"),
        ({"opt_batch": 0}, "opt_batch=0 is not allowed; give 1 or more"),
        ({"opt_batch": 5}, "opt_batch=5 is above what a plan takes; give 4, or more with --max-b"),
        ({"opt_past": 513}, "opt_past=513 is above what a plan takes; give 512, or more with --m"),
        ({"opt_past": -1}, "opt_past=-1 is not allowed; give 0 or more"),
        ({"timing_cache": Path("tests")}, "timing_cache=tests is a directory, or its"),
        ({"timing_cache": Path("no/cache")}, "timing_cache=no/cache is a directory, or its"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words.replace(".", r"\.")):
        check_options(TrtOptions(**options), 512)


def test_what_is_served_best_is_within_the_limits() -> None:
    """What was not asked for is lowered to them without a word."""
    assert check_options(TrtOptions(opt_batch=4, opt_past=512, opt_new=512), 512) == 512
    assert check_options(TrtOptions(max_seq=64), 512) == 64  # 256 are served best by default
    with pytest.raises(ExportError, match=r"give 512: a prompt is read by 512 tokens$"):
        check_options(TrtOptions(opt_new=513), 2048)
    with pytest.raises(ExportError, match=r"give 128, or more with --max-seq$"):
        check_options(TrtOptions(opt_new=129, max_seq=100), 2048)
    assert check_options(TrtOptions(opt_new=2048), 2048, whole_prompt=True) == 2048


def test_a_prompt_that_comes_whole_needs_the_room_of_the_one_that_is_replayed() -> None:
    assert check_options(TrtOptions(max_seq=64), 512) == 64
    with pytest.raises(ExportError, match=r"max_seq=64 is not allowed: .* give 69\.\.512"):
        check_options(TrtOptions(max_seq=64), 512, whole_prompt=True)
    assert check_options(TrtOptions(max_seq=69), 512, whole_prompt=True) == 69


def test_max_seq_defaults_to_what_the_model_has() -> None:
    assert check_options(TrtOptions(), 20) == 20
    assert check_options(TrtOptions(), 512) == 512
    assert check_options(TrtOptions(), 32768) == 2048


def test_capabilities_follow_flavour_and_gpu() -> None:
    asked = TrtOptions(compute_capabilities=("8.6", "12.0", "8.6"))
    assert choose_capabilities(asked, RTX, GPU) == ("8.6", "12.0")
    assert choose_capabilities(TrtOptions(), RTX, GPU) == ("8.9",)
    assert choose_capabilities(TrtOptions(), RTX, None) == ("8.6", "8.9", "12.0")
    assert choose_capabilities(TrtOptions(), TENSORRT, HOPPER) == ("9.0",)
    with pytest.raises(ExportError, match=r"builds on the GPU that will run .* --trt rtx"):
        choose_capabilities(TrtOptions(), TENSORRT, None)
    with pytest.raises(ExportError, match=r"8\.6,12\.0: TensorRT builds only .* H100 with 9\.0"):
        choose_capabilities(asked, TENSORRT, HOPPER)


def test_profiles_serve_decoding_and_prefill(tiny_bundle: Path) -> None:
    inputs = read_manifest(tiny_bundle).graphs.onnx.inputs
    options = TrtOptions(max_batch=8, opt_past=64, opt_new=32)
    decode, prefill = make_profiles(inputs, options, 200, MAX_DEPTH, 3)
    ranges = {one.name: (one.min, one.opt, one.max) for one in decode.shapes}
    # 200 tokens take a cache of 256 slots; the mask spans the cache and the new tokens.
    assert ranges["input_ids"] == ((1, 1), (1, 1), (8, 1))
    assert ranges["attention_mask"] == ((1, 1), (1, 65), (8, 257))
    assert ranges["past_key_values.0.key"] == ((1, 2, 0, 16), (1, 2, 64, 16), (8, 2, 256, 16))
    assert ranges["past_pool_sum"] == ((1, 1, 64), (1, 3, 64), (8, MAX_DEPTH, 64))
    assert ranges["row_depth"] == ((1,), (1,), (8,))
    assert "depth" not in ranges
    ranges = {one.name: (one.min, one.opt, one.max) for one in prefill.shapes}
    assert ranges["input_ids"] == ((1, 1), (1, 32), (8, 256))
    assert ranges["logit_index"] == ((1, 1), (1, 1), (8, 128))
    assert ranges["attention_mask"][2] == (8, 512)


def test_prefill_is_in_chunks_unless_the_prompt_must_come_whole(tiny_bundle: Path) -> None:
    inputs = read_manifest(tiny_bundle).graphs.onnx.inputs
    for whole, most, logits in ((False, 512, 128), (True, 2048, 2048)):
        prefill = make_profiles(inputs, TrtOptions(), 2048, MAX_DEPTH, 3, whole)[1]
        ranges = {one.name: one.max for one in prefill.shapes}
        assert ranges["input_ids"] == (4, most)
        assert ranges["logit_index"] == (4, logits)


def test_dimension_that_no_profile_knows_is_named() -> None:
    inputs = [TensorSpec("image", "float32", ("batch", "height"))]
    with pytest.raises(ExportError, match="image has the dimension 'height'"):
        make_profiles(inputs, TrtOptions(), 64, 4, 2)
