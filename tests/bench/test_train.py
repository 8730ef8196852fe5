"""The forms that bench.train compares take the same train steps."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.train import demo_options
from bench.train_form import FORMS, OURS, PLAIN, Form, peak_bytes, reset_peak
from ouroboros.checkpoint import save_checkpoint
from tests.support.training import options, tiny_model, tiny_tokenizer, write_teacher


@pytest.mark.parametrize(
    ("taught", "precision"), [(False, "fp32"), (True, "fp32"), (False, "bf16"), (True, "bf16")]
)
def test_forms_take_the_same_train_steps(tmp_path: Path, taught: bool, precision: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat ran and sat on a mat " * 30)
    save_checkpoint(tiny_model(), tiny_tokenizer(), tmp_path / "converted")
    run = options(
        text,
        train_coda="full",
        state_cache=str(tmp_path / "kept"),
        state_dtype="float32",
        precision=precision,
    )
    if taught:
        teacher = write_teacher(tmp_path / "converted", tmp_path / "teacher")
        run = replace(run, teacher=str(teacher), distill=0.3, temperature=2.0)
    losses: dict[str, list[float]] = {}
    with ExitStack() as opened:
        for name in FORMS:
            form = Form(name, tmp_path / "converted", run, opened)
            losses[name] = [form.step(number)["loss"] for number in range(3)]
            # Plain means that frozen weights are in the graph too, and still do not move.
            assert all(p.requires_grad for p in form.model.parameters()) == (name == PLAIN)
            kinds = {p.dtype for p in form.model.parameters()}
            assert (kinds == {torch.float32}) == (name == PLAIN or precision == "fp32")
            if taught and name == PLAIN:  # it turns positions as the student does
                assert form.teacher is not None
                assert form.teacher.body.rotary_emb.inv_freq.dtype == torch.float32
            weight = form.model.prelude[0].mlp.up_proj.weight
            assert torch.equal(weight, tiny_model().prelude[0].mlp.up_proj.weight.to(weight.dtype))
    for name in FORMS:
        close = 1e-4 if precision == "fp32" else 1e-2
        assert losses[name] == pytest.approx(losses[PLAIN], rel=close)
    assert losses[OURS][0] != losses[OURS][2]


def test_options_are_the_demos() -> None:
    given = demo_options([Path("text")], "", "bf16", "kept")
    assert given["batch_size"] * given["seq_len"] == 1024
    assert given["train_coda"] == "full"
    assert (given["state_cache"], given["precision"]) == ("kept", "bf16")
    assert isinstance(given["learning_rate"], float)
    assert not {"train_steps", "eval_every"} & set(given)


def test_peak_begins_anew() -> None:
    block = torch.ones(40_000_000)
    assert peak_bytes() > 160e6
    del block
    start = reset_peak()
    assert peak_bytes() - start < 40e6
    other = torch.ones(20_000_000)
    assert peak_bytes() - start > 70e6
    assert len(other) == 20_000_000
