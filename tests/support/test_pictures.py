"""Of each kind of history one picture is drawn, and of another kind another."""

from __future__ import annotations

from typing import Any

from tests.support.pictures import once_a_kind


def test_other_numbers_have_the_same_picture_and_anything_else_its_own() -> None:
    drawn: list[Any] = []
    draw = once_a_kind(lambda *given: drawn.append(given) or str(len(drawn)).encode())
    one = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 3.0, "eval_loss_depth_2": 1.0}]
    assert draw(one, "KL") == b"1"
    assert draw([{**entry, "loss": 9.0} for entry in one], "KL") == b"1"
    others = (
        (one, ""),
        (one[:1], "KL"),
        ([one[0], {**one[1], "loss": float("nan")}], "KL"),
        ([one[0], {"step": 2, "loss": 3.0, "eval_loss_depth_3": 1.0}], "KL"),
    )
    assert [draw(*other) for other in others] == [b"2", b"3", b"4", b"5"]
    assert len(drawn) == 5
