"""Shared runs of words: found in either way of counting, and only when long enough."""

from __future__ import annotations

import numpy as np
import pytest

from ouroboros.text.overlap import SHARED_WORDS, Overlap, Runs, found_in, shares_any

WORDS = [f"w{i}" for i in range(20)]
RUN = " ".join(WORDS[:SHARED_WORDS])


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        (f"Before, {RUN.upper()} after", True),
        (RUN, True),
        (" ".join(WORDS[: SHARED_WORDS - 1]), False),
        (RUN.replace("w5", "x5"), False),
    ],
)
def test_shares_any_needs_a_whole_run(text: str, shared: bool) -> None:
    runs = Runs()
    kept_out = np.unique(runs.both(f"so {RUN} it went"))
    assert shares_any(runs.both(text), kept_out) is shared


def test_shares_any_sees_through_punctuation() -> None:
    runs = Runs()
    kept_out = np.unique(runs.both(RUN))
    text = RUN.replace(" ", ", ")
    assert not shares_any(runs.between_spaces(text), kept_out)
    assert shares_any(runs.of_letters(text), kept_out)


def test_runs_are_the_same_in_every_process() -> None:
    # Written down from a first run: hashes must not depend on Python's hash seed.
    assert Runs().between_spaces(RUN).tolist() == Runs().between_spaces(RUN.upper()).tolist()
    assert [hex(h) for h in Runs().between_spaces(RUN)] == ["0x6ff062c2c88b1a73"]


def test_found_in_an_empty_set_is_false() -> None:
    assert found_in(Runs().both(RUN), np.empty(0, dtype=np.uint64)).tolist() == [False, False]


def test_overlap_is_the_share_of_a_texts_own_runs() -> None:
    held = [f"h{i}" for i in range(112)]  # 100 runs, the same in both ways of counting
    overlap = Overlap({"held": " ".join(held), "short": "too few words", "other": RUN})
    assert overlap.shares() == {"held": 0.0, "short": 0.0, "other": 0.0}
    overlap.look("before " + " ".join(held[:22]))  # the first 10 runs
    overlap.look(" ".join(held[5:25]).upper() + " after")  # from 5 to 12
    overlap.look("nothing of it " * 30)
    assert overlap.shares() == {"held": 0.13, "short": 0.0, "other": 0.0}
    overlap.look(RUN)
    assert overlap.shares()["other"] == 1.0
    assert Overlap({}).shares() == {}
