"""The state folder: whole or not there, and refused to a run that is not its own."""

from __future__ import annotations

import errno
import importlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import TrainingArguments

from ouroboros.errors import CheckpointError, TrainingError
from ouroboros.training.run import train
from ouroboros.training.state import (
    MACHINE,
    THREADS,
    check_options,
    find_newest_valid,
    find_problem,
    list_steps,
    publish_step,
    stage_step,
    write_options,
)
from tests.support.training import options


def save(state_dir: Path, step: int, content: str = "weights") -> Path:
    with stage_step(state_dir, step) as staged:
        (staged / "a.bin").write_text(content)
        (staged / "b.bin").write_text(str(step))
        return publish_step(staged, state_dir)


def test_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save(tmp_path, step)
    assert [folder.name for folder in list_steps(tmp_path)] == ["step-100", "step-10"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-100"]
    assert find_newest_valid(tmp_path, pytest.fail) == tmp_path / "step-100"


def test_failed_save_leaves_no_trace(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def fail() -> None:
        with stage_step(tmp_path, 6) as staged:
            (staged / "a.bin").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["step-5"]


@pytest.mark.parametrize(
    "damage", ["bit", "missing", "extra", "truncated", "hashes", "deep", "pipe"]
)
def test_damaged_state_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    assert find_problem(newest) is None
    match damage:
        case "bit":
            (newest / "a.bin").write_bytes(b"veights")
        case "missing":
            (newest / "a.bin").unlink()
        case "extra":
            (newest / "c.bin").write_bytes(b"")
        case "truncated":
            (newest / "a.bin").write_bytes(b"weig")
        case "hashes":
            (newest / "hashes.json").write_text('{"a.bin": ')
        case "deep":
            (newest / "hashes.json").write_text("[" * 100_000)
        case "pipe":
            (newest / "a.bin").unlink()
            os.mkfifo(newest / "a.bin")
    warnings: list[str] = []
    assert find_newest_valid(tmp_path, warnings.append) == tmp_path / "step-5"
    assert len(warnings) == 1
    assert "step-10 can't be used" in warnings[0]
    (tmp_path / "step-5" / "a.bin").unlink()
    with pytest.raises(TrainingError, match=r"holds no whole state .step-10: .*step-5: a\.bin"):
        find_newest_valid(tmp_path, warnings.append)


def test_no_state_is_none(tmp_path: Path) -> None:
    assert find_newest_valid(tmp_path / "nowhere", pytest.fail) is None
    assert find_newest_valid(tmp_path, pytest.fail) is None


def test_differing_options_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "step-1"
    folder.mkdir(parents=True)
    write_options(folder, {"seed": 1, "seq_len": 8, "depth": "8"})
    check_options(folder, {"seed": 1, "seq_len": 8, "depth": "8"}, pytest.fail)
    with pytest.raises(TrainingError, match="depth was '8', now '4'; seed was 1, now 2; give"):
        check_options(folder, {"seed": 2, "seq_len": 8, "depth": "4"}, pytest.fail)
    for content in ("[]", "{", "[" * 100_000):
        (folder / "options.json").write_text(content)
        with pytest.raises(TrainingError, match="not a table of options; delete"):
            check_options(folder, {"seed": 1}, pytest.fail)


def test_an_option_that_came_since_is_its_default(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "step-1"
    folder.mkdir(parents=True)
    write_options(folder, {"seed": 1})
    usual = {"seed": 0, "train_embedding": "frozen"}
    check_options(folder, {"seed": 1, "train_embedding": "frozen"}, pytest.fail, usual)
    with pytest.raises(TrainingError, match="train_embedding was 'frozen', now 'full'; give"):
        check_options(folder, {"seed": 1, "train_embedding": "full"}, pytest.fail, usual)


def test_other_threads_are_warned_of(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "step-1"
    folder.mkdir(parents=True)
    write_options(folder, {"seed": 1, THREADS: 2})
    check_options(folder, {"seed": 1, THREADS: 2}, pytest.fail)
    warnings: list[str] = []
    check_options(folder, {"seed": 1, THREADS: 8}, warnings.append)
    assert len(warnings) == 1
    assert "began on 2 CPU threads and goes on with 8: the last bits" in warnings[0]
    with pytest.raises(TrainingError, match="seed was 1, now 2; give the old ones"):
        check_options(folder, {"seed": 2, THREADS: 8}, pytest.fail)


def test_another_device_is_warned_of(tmp_path: Path) -> None:
    """Unless the state does not say on which it began."""
    folder = tmp_path / "state" / "step-1"
    folder.mkdir(parents=True)
    write_options(folder, {"seed": 1})
    check_options(folder, {"seed": 1, MACHINE: "cpu with torch 2.9.0"}, pytest.fail)
    write_options(folder, {"seed": 1, MACHINE: "cuda with torch 2.9.0"})
    check_options(folder, {"seed": 1, MACHINE: "cuda with torch 2.9.0"}, pytest.fail)
    warnings: list[str] = []
    check_options(folder, {"seed": 1, MACHINE: "cpu with torch 2.9.0"}, warnings.append)
    (line,) = warnings
    assert "began on cuda with torch 2.9.0 and goes on on cpu with torch 2.9.0" in line


def test_run_refuses_a_folder_in_use_and_other_options(
    corpus: Path,
    checkpoint: Path,
) -> None:
    out = corpus.parent / "trained"
    console = Console(record=True, width=300, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    train(checkpoint, out, options(corpus), resume=True, console=console)
    assert "starting from the beginning" in console.export_text()
    with pytest.raises(TrainingError, match="holds the state of an earlier run; go on with --res"):
        train(checkpoint, out, options(corpus))
    for changes, name in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"seq_len": 8}, "data was .*seq_len was 16, now 8"),
        ({"learning_rate": 0.5}, "learning_rate was 0.01, now 0.5"),
        ({"train_steps": 9}, "train_steps was 4, now 9"),
    ):
        with pytest.raises(TrainingError, match=name):
            train(checkpoint, out, options(corpus, **changes), resume=True)
    (corpus / "00.txt").write_text("the dog " * 30)
    with pytest.raises(TrainingError, match="data was '"):
        train(checkpoint, out, options(corpus), resume=True)
    console.file.close()


def test_other_number_of_processes_is_refused(
    corpus: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = corpus.parent / "trained"
    train(checkpoint, out, options(corpus))
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(TrainingError, match="world_size was 1, now 2; give the old ones"):
        train(checkpoint, out, options(corpus), resume=True)


def test_resumed_run_warns_of_other_threads(
    corpus: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = corpus.parent / "trained"
    train(checkpoint, out, options(corpus))
    there = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: there + 5)
    console = Console(file=io.StringIO(), width=300, record=True)
    train(checkpoint, out, options(corpus), resume=True, console=console)
    assert f"on {there} CPU threads and goes on with {there + 5}" in console.export_text()


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("state.publish_step", OSError(errno.ENOSPC, "No space left on device")),
        *(
            pytest.param(where, error, marks=pytest.mark.slow)
            for where, error in (
                ("save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
                ("state.publish_step", RuntimeError("PytorchStreamWriter failed writing file")),
            )
        ),
    ],
)
def test_full_disk_says_how_to_go_on(
    corpus: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: Exception,
) -> None:
    out, run = corpus.parent / "trained", options(corpus, save_every=2)
    owner, _, name = f"ouroboros.training.trainer.{where}".rpartition(".")
    whole = getattr(importlib.import_module(owner.removesuffix(".state")), name, publish_step)
    room = 0

    def save_while_there_is_room(*arguments: Any) -> Any:
        nonlocal room
        room -= 1
        if room < 0:
            raise error
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(f"ouroboros.training.trainer.{where}", save_while_there_is_room)
        with pytest.raises(TrainingError, match="no state was saved before: mend that and start"):
            train(checkpoint, out, run)
        room = 1
        with pytest.raises(TrainingError, match=r"saved before are whole.* go on with --resume"):
            train(checkpoint, out, run)
    assert [folder.name for folder in list_steps(out / "state")] == ["step-2"]
    with monkeypatch.context() as patch:
        patch.setattr("ouroboros.checkpoint.publish", full_disk)
        with pytest.raises(CheckpointError, match=r"No space left .* go on with --resume"):
            train(checkpoint, out, run, resume=True)
    assert train(checkpoint, out, run, resume=True).train_steps == 4
