"""The program that kills trainings: what it counts, and that it can say no."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.kills import count_states, describe_moment, fingerprint, kill_again_and_again
from ouroboros.checkpoint import save_checkpoint
from ouroboros.training.state_store import HASHES
from tests.support.training import tiny_model, tiny_tokenizer


def test_moments_are_told_by_what_is_left_behind(tmp_path: Path) -> None:
    assert describe_moment(tmp_path, lacking=False) == "before its first state"
    (tmp_path / "state" / "step-3").mkdir(parents=True)
    assert describe_moment(tmp_path, lacking=False) == "training"
    (tmp_path / "state" / ".staging").mkdir()
    assert describe_moment(tmp_path, lacking=False) == "saving a state"
    assert describe_moment(tmp_path, lacking=True) == "before the cache was full"


def test_kept_states_are_counted_by_their_hashes(tmp_path: Path) -> None:
    assert count_states(tmp_path / "none") == 0
    for name, kept in (("prelude-1", 2), ("teacher-2", 3)):
        (tmp_path / name).mkdir()
        rows = np.zeros((5, 32), np.uint8)
        rows[:kept, 7] = 1
        rows.tofile(tmp_path / name / HASHES)
    assert count_states(tmp_path) == 5


def test_other_weights_or_another_optimizer_are_other_bits(tmp_path: Path) -> None:
    step = tmp_path / "state" / "step-10"
    step.mkdir(parents=True)
    files = [tmp_path / "model.safetensors", step / "trainable.safetensors", step / "optimizer.pt"]
    for file in files:
        file.write_bytes(b"1")
    (step / "trainer_state.json").write_text("12 seconds")
    found = {fingerprint(tmp_path)}
    (step / "trainer_state.json").write_text("13 seconds")
    assert found == {fingerprint(tmp_path)}
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
        found.add(fingerprint(tmp_path))
    assert len(found) == 4
    old = tmp_path / "state" / "step-9"
    old.mkdir()
    assert fingerprint(tmp_path) in found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_trainings_end_in_the_same_bits(tmp_path: Path) -> None:
    save_checkpoint(tiny_model(), tiny_tokenizer(), tmp_path / "converted")
    (tmp_path / "text.txt").write_text("the cat sat on a mat and ran away " * 60)
    given = ["--data", str(tmp_path / "text.txt"), "--train-steps", "60", "--save-every", "3"]
    given += ["--seq-len", "16", "--batch-size", "2", "--depth", "1-3"]
    (tmp_path / "killed").mkdir()
    found = kill_again_and_again(
        tmp_path / "converted", tmp_path / "killed", 3, keep=True, seed=0, given=given
    )
    assert found["kills"] == 3
    assert found["same_bits"] == found["trainings"]
