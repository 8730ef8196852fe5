"""The teacher: its final state, and what is no teacher of a checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ouroboros.checkpoint import checkpoint_sha256, load_checkpoint
from ouroboros.errors import CheckpointError, TrainingError
from ouroboros.training.run import train
from ouroboros.training.teacher import check_tokenizer, find_teacher, load_teacher
from runtime.files.hashing import hash_file
from tests.support.training import options, write_teacher


def test_final_state_and_head_give_the_teachers_logits(checkpoint: Path, tmp_path: Path) -> None:
    """Packed documents are apart: each gives what it gives alone."""
    path = write_teacher(checkpoint, tmp_path / "teacher")
    student, _ = load_checkpoint(checkpoint)
    teacher = load_teacher(str(path), student.lm_head.weight)
    whole = AutoModelForCausalLM.from_pretrained(path).eval()
    ids = torch.randint(2, 28, (2, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, -1)
    with torch.no_grad():
        found = student.lm_head(teacher.final_state(ids, positions))
        for first, last in ((0, 4), (4, 9)):
            expected = whole(ids[:, first:last], use_cache=False).logits
            torch.testing.assert_close(found[:, first:last], expected, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in teacher.body.parameters())


@pytest.mark.slow
def test_distilling_is_another_run_than_plain_training(checkpoint: Path, corpus: Path) -> None:
    teacher = str(write_teacher(checkpoint, corpus.parent / "teacher"))
    weights = []
    for name, changes in (
        ("plain", {}),
        ("share", {"teacher": teacher}),
        ("all", {"teacher": teacher, "distill": 1.0}),
        ("soft", {"teacher": teacher, "distill": 1.0, "temperature": 3.0}),
    ):
        out = corpus.parent / name
        train(checkpoint, out, options(corpus, **changes))
        weights.append(load_checkpoint(out)[0].recurrent.norm.weight.detach())
    for number, one in enumerate(weights):
        assert not any(torch.equal(one, other) for other in weights[:number])


def test_a_folded_teacher_is_run_at_its_own_depth(checkpoint: Path) -> None:
    student, _ = load_checkpoint(checkpoint)
    teacher = load_teacher(str(checkpoint), student.lm_head.weight)
    assert teacher.head is None
    assert teacher.sha256 == find_teacher(str(checkpoint)).sha256 == checkpoint_sha256(checkpoint)
    ids = torch.randint(2, 28, (2, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]).expand(2, -1)
    with torch.no_grad():
        found = student.lm_head(teacher.final_state(ids, positions))
        for first, last in ((0, 4), (4, 9)):
            expected = student(ids[:, first:last], depth=student.config.depth).logits
            torch.testing.assert_close(found[:, first:last], expected, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in teacher.body.parameters())


def test_files_of_a_teacher_are_hashed_once(
    checkpoint: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def count(file: Path) -> str:
        hashed.append(Path(file))
        return hash_file(file)

    for name in ("ouroboros.source.weight_files.hash_file", "ouroboros.checkpoint.hash_file"):
        monkeypatch.setattr(name, count)
    folded = Path(shutil.copytree(checkpoint, corpus.parent / "folded"))
    for teacher in (write_teacher(checkpoint, corpus.parent / "original"), folded):
        states = str(corpus.parent / f"states-of-{teacher.name}")
        run = options(corpus, train_steps=1, teacher=str(teacher), state_cache=states)
        train(checkpoint, corpus.parent / f"out-{teacher.name}", run)
        read = [file for file in hashed if file.parent == teacher]
        assert read
        assert len(read) == len(set(read))


def test_frequencies_stay_float32_in_a_teacher_of_bfloat16(checkpoint: Path) -> None:
    student, _ = load_checkpoint(checkpoint)
    original = write_teacher(checkpoint, checkpoint.parent / "original")
    for source in (checkpoint, original):
        teacher = load_teacher(str(source), student.lm_head.weight)
        before = teacher.body.rotary_emb.inv_freq.clone()
        teacher.to(torch.device("cpu"), torch.bfloat16)
        assert torch.equal(teacher.body.rotary_emb.inv_freq, before)
        assert next(teacher.body.parameters()).dtype == torch.bfloat16


def test_what_a_run_writes_does_not_replace_its_teacher(checkpoint: Path, corpus: Path) -> None:
    teacher = corpus.parent / "teacher"
    shutil.copytree(checkpoint, teacher)
    with pytest.raises(TrainingError, match="teacher"):
        train(checkpoint, teacher, options(corpus, teacher=str(teacher)))


@pytest.mark.parametrize("state_cache", ["", "states"])
def test_a_model_has_nothing_to_learn_of_itself(
    checkpoint: Path, corpus: Path, state_cache: str
) -> None:
    kept = {"state_cache": str(corpus.parent / state_cache), "state_dtype": "float32"}
    run = options(
        corpus, teacher=str(checkpoint), distill=1.0, depth="3", learning_rate=1e-9,
        **(kept if state_cache else {}),
    )  # fmt: skip
    own, other = (
        train(checkpoint, corpus.parent / f"out{depth}", replace(run, depth=depth)).history
        for depth in ("3", "1")
    )
    assert abs(own[-1]["train_loss"]) < 1e-9
    assert other[-1]["train_loss"] > 1e-4


def test_teacher_of_a_head_that_was_trained_since_keeps_its_own(checkpoint: Path) -> None:
    student, _ = load_checkpoint(checkpoint)
    head = student.lm_head.weight
    folder = checkpoint.parent
    assert load_teacher(str(write_teacher(checkpoint, folder / "same")), head).head is None
    other = load_teacher(str(write_teacher(checkpoint, folder / "other", head=1.01)), head)
    assert torch.equal(other.head, head * 1.01)


def test_kept_states_are_of_a_head_that_both_share(checkpoint: Path, corpus: Path) -> None:
    other = write_teacher(checkpoint, corpus.parent / "other", head=1.01)
    run = options(corpus, teacher=str(other), state_cache=str(corpus.parent / "states"))
    with pytest.raises(TrainingError, match=r"other has another LM head .*; leave --state-cache"):
        train(checkpoint, corpus.parent / "out", run)


def test_teacher_of_other_tokens_is_refused(checkpoint: Path, corpus: Path) -> None:
    other = write_teacher(checkpoint, corpus.parent / "other", head=-1.0)
    with pytest.raises(TrainingError, match=r"other is not the model .* \[40, 32\].* --teacher"):
        train(checkpoint, corpus.parent / "out", options(corpus, teacher=str(other)))
    with pytest.raises(CheckpointError, match="nowhere"):
        train(
            checkpoint,
            corpus.parent / "out",
            options(corpus, teacher=str(corpus.parent / "nowhere")),
        )
    assert not (corpus.parent / "out").exists()


@pytest.mark.parametrize("state_cache", ["", "states"])
@pytest.mark.parametrize("folded", [True, False])
def test_teacher_of_another_tokenizer_is_refused(
    checkpoint: Path, corpus: Path, state_cache: str, folded: bool
) -> None:
    """Its weights are right, and its ids stand for other tokens."""
    other = corpus.parent / "other"
    if folded:
        shutil.copytree(checkpoint, other)
    else:
        write_teacher(checkpoint, other)
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {
        token: {3: 4, 4: 3}.get(number, number) for token, number in vocabulary.items()
    }
    file.write_text(json.dumps(content))
    kept = {"state_cache": str(corpus.parent / state_cache)} if state_cache else {}
    differ = r"other has another tokenizer .*: 2 of 29 tokens differ, token 3 is 'c' there and 'b'"
    with pytest.raises(TrainingError, match=differ):
        train(checkpoint, corpus.parent / "out", options(corpus, teacher=str(other), **kept))


def test_a_tokenizer_may_name_a_few_tokens_anew() -> None:
    class Tokenizer:
        def __init__(self, **changed: int) -> None:
            self.changed = changed

        def get_vocab(self) -> dict[str, int]:
            plain = {f"t{number}": number for number in range(200)}
            named = set(self.changed.values())
            return {t: n for t, n in plain.items() if n not in named} | self.changed

    check_tokenizer("other", Tokenizer(system=7, tool=250), Tokenizer())
    check_tokenizer("other", None, Tokenizer())
    with pytest.raises(TrainingError, match="3 of 200 tokens differ, token 7 is 'a' there"):
        check_tokenizer("other", Tokenizer(a=7, b=8, c=9), Tokenizer())
