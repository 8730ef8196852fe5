from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import BundleError, EngineError
from runtime.files.hashing import hash_file
from runtime.parity.cases import Case, Result, load_cases, make_cases, save_cases
from runtime.parity.check import ParityReport, missing_cases
from runtime.parity.comparison import Measurement, measure_output
from runtime.parity.metrics import channel_error, compare_arrays, compare_logits, log_softmax
from runtime.parity.verdict import AMBIGUOUS, FAIL, PASS, judge


def logits_case(
    reference: np.ndarray,
    found: np.ndarray,
    valid: np.ndarray | None = None,
    reference_error: float = 0.0,
) -> Measurement:
    masks = {} if valid is None else {"logits": valid}
    own = {"logits": reference_error}
    what = ("prefill-d01", "prefill", 1)
    expected = Result(*what, {"logits": reference}, valid=masks, reference_error=own)
    return measure_output(Result(*what, {"logits": found}), expected, "logits")


@pytest.fixture
def reference() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 3, 50)).astype(np.float32)


def test_compare_known_values() -> None:
    found = compare_arrays(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    assert found.max_abs == 0.5
    assert found.mean_abs == 0.25
    assert found.relative_l2 == pytest.approx(0.1)  # 0.5 / 5
    assert found.cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))
    masked = compare_arrays(np.array([3.0, np.nan]), np.array([3.0, 1.0]), np.array([True, False]))
    assert masked.relative_l2 == 0
    assert compare_arrays(np.zeros(2), np.ones(2)).relative_l2 == float("inf")
    assert compare_arrays(np.zeros(2), np.zeros(2)).relative_l2 == 0


def test_compare_logits_known_values() -> None:
    p, q = np.array([[0.7, 0.2, 0.1]]), np.array([[0.2, 0.7, 0.1]])
    found = compare_logits(np.log(p) + 3, np.log(q) - 1)  # softmax forgets the shift
    assert found.kl[0] == pytest.approx(float((p * np.log(p / q)).sum()))
    assert not found.agrees[0]
    assert found.margin[0] == pytest.approx(np.log(0.7) - np.log(0.2))
    np.testing.assert_allclose(np.exp(log_softmax(np.log(p))), p)


def test_judge_passes_small_errors_and_fails_large_ones(reference: np.ndarray) -> None:
    for error, verdict in ((0.0, PASS), (1e-6, PASS), (1e-4, FAIL)):
        noise = np.random.default_rng(1).normal(size=reference.shape) * error
        rows, _ = judge([logits_case(reference, (reference + noise).astype(np.float32))], 1e-5)
        assert rows[0].verdict == verdict


def test_judge_one_bad_position_is_not_averaged_away() -> None:
    reference = np.ones((1, 1000, 50), np.float32)
    reference[..., 0] = 2
    found = reference.copy()
    found[0, 500] += 1e-4 * np.linspace(-1, 1, 50)
    measured = logits_case(reference, found)
    assert measured.difference.relative_l2 < 1e-5 < measured.worst_relative_l2
    assert judge([measured], 1e-5)[0][0].verdict == FAIL
    assert max(measured.position_errors, key=lambda p: p[1])[0] == 500


def noisy(reference: np.ndarray, error: float) -> np.ndarray:
    """`reference` with an error of that relative L2 at every position."""
    noise = np.random.default_rng(1).normal(size=reference.shape)
    scale, length = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (reference, noise))
    found: np.ndarray = reference + error * scale * noise / length
    return found


def test_judge_allows_three_times_the_float32_error_of_pytorch(reference: np.ndarray) -> None:
    """The bound of an output comes from the worst of its cases, whose BLAS sums in other orders."""
    exact = reference.astype(np.float64)
    lucky = logits_case(exact, noisy(exact, 2.9e-5), reference_error=1e-6)
    other = logits_case(exact, exact, reference_error=1e-5)
    for one, verdict in ((lucky, PASS), (logits_case(exact, noisy(exact, 3.1e-5)), FAIL)):
        rows, _ = judge([one, other], 1e-5)
        assert [row.verdict for row in rows] == [verdict, PASS]
        assert rows[0].bound == pytest.approx(3e-5)
    # No error of PyTorch's takes the bound below 1e-5, and one of another output is none of this.
    assert judge([logits_case(exact, noisy(exact, 9e-6))], 1e-5)[0][0].verdict == PASS
    key = Measurement("a", "prefill", 1, "pool_sum", lucky.difference, 0.0, reference_error=1.0)
    assert [r.verdict for r in judge([lucky, key], 1e-5)[0]] == [FAIL, PASS]


def test_judge_of_half_precision_holds_each_kind_of_case_against_its_own(
    reference: np.ndarray,
) -> None:
    """Seen on an H100: one decode case erred by 4.3e-2 in bfloat16 where PyTorch had been lucky
    with 1.3e-2, and had erred by 3.5e-2 at another depth."""
    exact = reference.astype(np.float64)
    lucky, usual = (
        logits_case(exact, noisy(exact, 3e-3), reference_error=own) for own in (1e-3, 2e-3)
    )
    rows, _ = judge([lucky, usual], 1e-5, half=True)
    assert [row.verdict for row in rows] == [PASS, PASS]
    assert [row.bound for row in rows] == [pytest.approx(4e-3)] * 2
    # One alone, or beside a kind of case that errs more, as one that comes near to overflow.
    for others in ([], [replace(usual, kind="far", reference_error=0.5)]):
        assert judge([lucky, *others], 1e-5, half=True)[0][0].verdict == FAIL


def test_judge_an_overflow_of_pytorch_bounds_no_other_case(reference: np.ndarray) -> None:
    exact = reference.astype(np.float64)
    far = [logits_case(exact, noisy(exact, 1e-2), reference_error=own) for own in (np.inf, 1e-6)]
    assert [row.verdict for row in judge(far, 1e-5)[0]] == [AMBIGUOUS, FAIL]


def test_channel_error_sees_what_a_massive_channel_hides() -> None:
    """One channel of 10,000 carries the norm; the others may be wrong by a percent unseen."""
    reference = np.random.default_rng(0).normal(size=(2, 3, 4, 64))
    reference[..., 5] += 1e4
    found = reference.copy()
    found[..., 6:] *= 1.01
    assert compare_arrays(reference, found).relative_l2 < 1e-5
    assert channel_error(reference, found) == pytest.approx(0.01 * np.sqrt(58 / 64))
    assert channel_error(reference, reference) == 0
    # A channel that is almost zero is no cause to fail: it is measured by a hundredth of the rest.
    tiny = np.ones((2, 3, 4, 64))
    tiny[..., 0] = 1e-9
    assert channel_error(tiny, tiny + 1e-7) < 1e-5
    assert channel_error(np.zeros((1, 1, 1, 4)), np.ones((1, 1, 1, 4))) == float("inf")


def test_channel_error_counts_heads_apart_and_leaves_masked_entries_out() -> None:
    reference = np.random.default_rng(0).normal(size=(2, 3, 2, 5, 4))
    found = reference.copy()
    found[:, :, 1, :, 2] *= 1.5
    assert channel_error(reference, found) == pytest.approx(0.5 * np.sqrt(1 / 8))
    found[1] = np.nan
    valid = np.array([True, False])[:, None, None, None, None]
    assert channel_error(reference, found, valid) == pytest.approx(0.5 * np.sqrt(1 / 8))


def test_judge_nan_is_a_failure_on_either_side(reference: np.ndarray) -> None:
    for side in range(2):
        pair = [reference.copy(), reference.copy()]
        pair[side][0, 0, 0] = np.nan
        row = judge([logits_case(*pair)], 1e-5)[0][0]
        assert row.verdict == FAIL
        assert "NaN" in row.reason
        json.dumps(row.to_json(), allow_nan=False)


def test_judge_a_tie_is_ambiguous_and_a_real_difference_fails() -> None:
    reference = np.zeros((1, 1, 9), np.float32)
    reference[0, 0, :2] = [30.0, 30.0 - 1e-4]
    found = reference.copy()
    found[0, 0, :2] += [-8e-5, 8e-5]
    rows, margin = judge([logits_case(reference, found)], 1e-5)
    assert rows[0].verdict == AMBIGUOUS
    assert rows[0].ties == 1
    assert rows[0].first_divergence == 0
    assert margin == pytest.approx(1.6e-4, rel=0.05)
    # The same difference beside smaller errors only is no tie.
    measured = Measurement(
        "g",
        "greedy",
        1,
        "tokens",
        compare_arrays(reference, reference),
        0.0,
        divergences=((3, 1e-3),),
    )
    row = judge([measured, logits_case(reference, reference)], 1e-5)[0][0]
    assert row.verdict == FAIL
    assert "token at 3" in row.reason


def test_judge_errors_beyond_the_bound_make_no_ties(reference: np.ndarray) -> None:
    broken = logits_case(reference, reference + 10)
    diverged = Measurement(
        "g",
        "greedy",
        1,
        "tokens",
        compare_arrays(reference, reference),
        0.0,
        divergences=((0, 1.0),),
    )
    rows, margin = judge([broken, diverged], 1e-5)
    assert [row.verdict for row in rows] == [FAIL, FAIL]
    assert margin == 0


def test_judge_an_overflow_of_pytorch_makes_no_ties(reference: np.ndarray) -> None:
    """Where it overflows the subject may give anything that is finite, and errs as much."""
    overflown = logits_case(reference, reference + 20, reference_error=np.inf)
    same = compare_arrays(reference, reference)
    diverged = Measurement("g", "greedy", 1, "tokens", same, 0.0, divergences=((0, 3.0),))
    rows, margin = judge([overflown, diverged], 1e-5, half=True)
    assert [row.verdict for row in rows] == [AMBIGUOUS, FAIL]
    assert margin == 0


def test_measure_refuses_to_compare_nothing(reference: np.ndarray) -> None:
    nothing = np.zeros((2, 3, 1), bool)
    assert "no entry" in logits_case(reference, reference, nothing).note
    assert "shape" in logits_case(reference, reference[:, :2]).note
    assert "mask" in logits_case(reference, reference, np.ones((7, 7), bool)).note
    found = Result("a", "prefill", 1, {"logits": reference})
    unmeasured = measure_output(found, Result("a", "prefill", 1), "logits")
    assert judge([unmeasured], 1e-5)[0][0].verdict == FAIL


def test_measure_masks_what_is_undefined(reference: np.ndarray) -> None:
    found = reference.copy()
    found[1, 0] = np.nan
    valid = np.ones((2, 3, 1), bool)
    valid[1, 0] = False
    assert judge([logits_case(reference, found, valid)], 1e-5)[0][0].verdict == PASS


def entries(*kinds_and_depths: tuple[str, int]) -> list[Case]:
    return [
        Case(f"{kind}-{depth}", kind, depth, (), None, {}, {}, {})
        for kind, depth in kinds_and_depths
    ]


def test_missing_cases_are_named() -> None:
    full = entries(
        *((kind, depth) for kind in ("prefill", "decode", "padded") for depth in (1, 2)),
        ("mixed", 2),
        ("greedy", 1),
        ("far", 2),
        ("long", 2),
    )
    assert missing_cases(full, [1, 2]) == []
    assert missing_cases(full, [1, 2, 3]) == [
        f"no {kind} case at depth 3" for kind in ("prefill", "decode", "padded")
    ]
    assert len(missing_cases([], [1])) == 7


def test_make_cases_refuses_what_it_does_not_understand() -> None:
    tensors: dict[str, Any] = {"a.in.depth": np.array(1), "a.out.logits": np.zeros(1)}
    good: dict[str, Any] = {"name": "a", "kind": "prefill", "depth": 1, "positions": [0]}
    assert make_cases(tensors, [good])[0].inputs.keys() == {"depth"}
    wrong: list[dict[str, Any]] = [
        {"kind": "other"},
        {"depth": 1.0},
        {"depth": None},
        {"positions": ["x"]},
        {"positions": [-1]},
        {"depth": 0},
        {"after": "b"},
        {"name": None},
        {"name": "b"},
        {"reference_error": {"logits": -1.0}},
        {"reference_error": {"logits": np.nan}},
    ]
    for bad in wrong:
        with pytest.raises(BundleError):
            make_cases(tensors, [{**good, **bad}])
    with pytest.raises(BundleError, match="twice"):
        make_cases(tensors, [good, good])
    with pytest.raises(BundleError, match="not in the list"):
        make_cases(tensors, [])
    with pytest.raises(BundleError, match="belongs to no case"):
        make_cases({"stray": np.zeros(1)}, [])
    with pytest.raises(BundleError, match="not a list"):
        make_cases(tensors, {"a": 1})


def test_cases_saved_again_are_the_same_file(tiny_bundle: Path, tmp_path: Path) -> None:
    recorded = tiny_bundle / "cases.safetensors"
    digest = save_cases(load_cases(recorded), tmp_path / "again")
    assert digest == hash_file(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == recorded.read_bytes()


def test_error_that_is_infinite_survives_the_file(tmp_path: Path) -> None:
    errors = {"logits": float("inf"), "pool_sum": 1e-7}
    arrays = {"logits": np.zeros((1, 1, 3), np.float32)}
    case = Case("a", "far", 2, (5,), None, {"depth": np.array([2])}, arrays, {}, errors)
    save_cases([case, replace(case, name="b", after="a")], tmp_path / "cases")
    first, second = load_cases(tmp_path / "cases")
    assert first.reference_error == errors
    assert (first.positions, first.after, second.after) == ((5,), None, "a")


def test_load_cases_refuses_a_broken_file(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / "cases.safetensors"
    for data in (b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "):
        file.write_bytes(data)
        with pytest.raises(BundleError):
            load_cases(file)
    save_file({"a.in.depth": np.array([1])}, file, metadata={"cases": "{"})
    with pytest.raises(BundleError, match="no list of cases"):
        load_cases(file)
    save_file({"a.in.depth": np.array([1])}, file)
    with pytest.raises(BundleError, match="no list of cases"):
        load_cases(file)


@pytest.fixture
def report(reference: np.ndarray) -> ParityReport:
    rows, margin = judge([logits_case(reference, reference)], 1e-5)
    return ParityReport(PASS, 1e-5, rows, margin, (1,), (), "bundle", "cpu")


def test_report_json_and_picture(report: ParityReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from runtime.parity.picture import draw_parity

    report.write_json(tmp_path / "parity.json")
    data = json.loads((tmp_path / "parity.json").read_text())
    assert data["verdict"] == PASS
    assert data["worst_relative_l2"] == 0
    assert data["rows"][0]["relative_l2"] == 0
    draw_parity(report, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").stat().st_size > 5000
    with pytest.raises(EngineError, match="cannot draw"):
        draw_parity(report, tmp_path / "parity.nonsense")
