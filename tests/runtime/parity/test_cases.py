"""The file of recorded cases: what no reader takes is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle.contract import HALT_THRESHOLD
from runtime.errors import BundleError
from runtime.parity.cases import Case, load_cases, recorded_results
from runtime.parity.check import check_bundle
from tests.support.recordings import ODD, WRONG, rewrite


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_list_is_refused(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    change, words = WRONG[name]
    file = shutil.copyfile(tiny_bundle / "cases.safetensors", tmp_path / "cases.safetensors")
    rewrite(file, json.dumps)
    load_cases(file)
    rewrite(file, change)
    with pytest.raises(BundleError, match=words) as caught:
        load_cases(file)
    assert "\n" not in str(caught.value)


def test_an_element_type_of_no_tensor_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    file = shutil.copyfile(tiny_bundle / "cases.safetensors", tmp_path / "cases.safetensors")
    rewrite(file, json.dumps, dtype=np.int32)
    with pytest.raises(BundleError, match=r"the recorded tensor .* is int32; export the bundle"):
        load_cases(file)


def test_a_threshold_without_a_number_is_none() -> None:
    inputs = {HALT_THRESHOLD: np.zeros(0, np.float32)}
    (result,) = recorded_results([Case("a", "halting", 1, (), None, inputs, {}, {})])
    assert result.threshold is None


@pytest.mark.parametrize("name", ODD)
def test_a_case_is_run_as_it_was_recorded_or_not_at_all(
    name: str, tiny_bundle: Path, halting_bundle: Path
) -> None:
    kind, change, words = ODD[name]
    bundle = {"llama": tiny_bundle, "llama-halting": halting_bundle}[kind]
    cases = change(load_cases(bundle / "cases.safetensors"))
    report = check_bundle(bundle, "cpu", cases, threads=1)
    assert report.verdict == "FAIL"
    assert words in "".join(row.reason for row in report.rows)
