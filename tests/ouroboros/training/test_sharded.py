"""FSDP: pieces in two processes train as the whole in one, and what can't be is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from rich.console import Console
from safetensors.torch import load_file

from ouroboros.checkpoint import load_checkpoint
from ouroboros.errors import TrainingError
from ouroboros.training import sharded, trainer
from ouroboros.training.run import train
from ouroboros.training.sharded import ASKED, check_sharded, check_sharding
from ouroboros.training.state import list_steps
from tests.support.launched import Launched, Training, launch
from tests.support.paths import ROOT
from tests.support.training import options, write_checkpoint, write_corpus, write_teacher

CONFIG = ROOT / "recipes" / "fsdp.yaml"
# accelerate 1.15 shards on accelerators only, and quietly trains unsharded on CPUs. FSDP itself
# runs there, so accelerate is told that these are accelerators; all else is as it launches it.
PROGRAM = """
import json
from accelerate import PartialState
from accelerate.utils import DistributedType
from ouroboros.training import run

made = run.training_arguments

def arguments(*given):
    found = made(*given)
    assert found.device.type == "cpu" and found.world_size == 2
    PartialState().distributed_type = DistributedType.MULTI_GPU
    return found

class Watched(run.OuroborosTrainer):
    def create_scheduler(self, *given, **more):
        # Of every matrix a process holds half, and so does the optimizer.
        pieces = {n: p.to_local().shape[0] / p.shape[0] for n, p in self._trainable().items()}
        out.with_suffix(f".{self.args.process_index}").write_text(json.dumps(pieces))
        return super().create_scheduler(*given, **more)

run.training_arguments, run.OuroborosTrainer = arguments, Watched
"""
LAUNCH = ("accelerate.commands.launch", "--config_file", CONFIG)
COMMON: dict[str, Any] = {"train_steps": 8, "depth": "1-6", "seed": 3, "learning_rate": 2e-3}
ARMS: dict[str, dict[str, Any]] = {
    "full": {
        "train_coda": "full", "train_recurrent": "full", "recompute": True, "learning_rate": 2e-4,
    },
    "adapters": {"train_coda": "lora", "train_recurrent": "lora", "adapter_rank": 4},
    "bf16": {"train_coda": "full", "precision": "bf16"},
}  # fmt: skip


def losses(out: Path) -> list[float]:
    """The training loss of every train step."""
    text = (list_steps(out / "state")[0] / "trainer_state.json").read_text()
    return [entry["loss"] for entry in json.loads(text)["log_history"] if "loss" in entry]


def in_two(out: Path, arm: str) -> Training:
    """The training of an arm in two processes, each with half the windows; of all weights it
    leaves a state half way too.
    """
    corpus, checkpoint = out.with_name("corpus"), out.with_name("converted")
    given = {**COMMON, **ARMS[arm], "batch_size": 2}
    if arm == "adapters":
        given["teacher"] = str(out.with_name("teacher"))
    if arm == "full":
        given["save_every"] = 4
    return Training(checkpoint, out, corpus, given)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """What two processes trained of every arm."""
    folder = tmp_path_factory.mktemp("in_two")
    write_corpus(folder / "corpus")
    write_teacher(write_checkpoint(folder / "converted"), folder / "teacher")
    return launch(LAUNCH, PROGRAM, [in_two(folder / arm, arm) for arm in ARMS])


def of_arm(trained: Launched, arm: str) -> Path:
    (out,) = (one.out for one in trained.trainings if one.out.name == arm)
    return trained.finished(out)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("arm", ARMS)
def test_pieces_give_the_curve_and_the_weights_of_the_whole(
    corpus: Path, checkpoint: Path, tmp_path: Path, arm: str, trained: Launched
) -> None:
    """In float32 to rounding; in bfloat16 to what DDP differs by too, a sum over two halves."""
    out = of_arm(trained, arm)
    common = {**COMMON, **ARMS[arm]}
    if arm == "adapters":
        common["teacher"] = str(out.with_name("teacher"))
    held: dict[str, float] = json.loads(out.with_suffix(".0").read_text())
    assert {name: share for name, share in held.items() if share != 0.5} == {}
    train(checkpoint, tmp_path / "one", options(corpus, **common, batch_size=4))
    two, one = losses(out), losses(tmp_path / "one")
    assert len(one) == len(two) == 8
    exact = arm != "bf16"
    assert two == pytest.approx(one, abs=1e-4) if exact else two == pytest.approx(one, rel=5e-3)
    assert max(one) - min(one) > 0.1  # a curve, and not a line that any run gives
    load_checkpoint(out)
    found, expected = (load_file(n / "model.safetensors") for n in (out, tmp_path / "one"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-5 if exact else 0.02
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol)
    start = load_file(checkpoint / "model.safetensors")
    assert any(not torch.equal(value, found[name]) for name, value in start.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pieces_go_on_to_the_same_bits(
    corpus: Path, checkpoint: Path, tmp_path: Path, trained: Launched
) -> None:
    """In a launch of its own: nothing is left of the processes that trained the first half."""
    whole = of_arm(trained, "full")
    shutil.copytree(whole, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "state" / "step-8")
    (tmp_path / "parts" / "model.safetensors").unlink()
    again = in_two(tmp_path / "parts", "full")
    parts = launch(LAUNCH, PROGRAM, [again]).finished(again.out)
    found, expected = (load_file(n / "model.safetensors") for n in (parts, whole))
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def plugin(**changes: Any) -> Any:
    """As recipes/fsdp.yaml makes it."""
    fields: dict[str, Any] = {
        "fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", "reshard_after_forward": True,
        "cpu_ram_efficient_loading": False, "activation_checkpointing": False,
    }  # fmt: skip
    return FullyShardedDataParallelPlugin(**{**fields, **changes})


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin leaves variables behind."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.parametrize(
    ("changes", "given", "words"),
    [
        ({"fsdp_version": 1, "reshard_after_forward": "FULL_SHARD"}, {},
         r"fsdp_version=1 is not supported; set fsdp_version to 2, see recipes/fsdp\.yaml"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, {},
         r"fsdp_state_dict_type=SHARDED_STATE_DICT saves states in pieces"),
        ({"cpu_ram_efficient_loading": True}, {}, r"cpu_ram_efficient_loading .* set it to false"),
        ({"activation_checkpointing": True}, {}, r"leave it out, give --recompute"),
        ({}, {"qat": "int8"}, "qat does not go with FSDP; leave it out, or train"),
        ({}, {"compile": True}, "compile does not go with FSDP"),
        ({}, {"state_cache": "kept"}, "state_cache does not go with FSDP"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_pieces_is_refused(
    corpus: Path, changes: dict[str, Any], given: dict[str, Any], words: str
) -> None:
    with pytest.raises(TrainingError, match=words):
        check_sharding(plugin(**changes), options(corpus, **given))


def test_weights_stay_float32_whatever_is_computed_in(corpus: Path) -> None:
    made = plugin()
    made.set_mixed_precision("bf16")  # accelerate's own choice: all of it in bfloat16
    assert made.mixed_precision_policy.param_dtype == torch.bfloat16
    check_sharding(made, options(corpus, precision="bf16"))
    policy = made.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, None, None)


@pytest.mark.parametrize(("name", "sharded"), [("optimizer.bin", False), ("optimizer.pt", True)])
def test_a_state_goes_on_as_it_began(tmp_path: Path, name: str, sharded: bool) -> None:
    (tmp_path / name).write_bytes(b"")
    check_sharded(str(tmp_path), not sharded)
    words = "was saved without FSDP, .* goes on with" if sharded else "saved with FSDP, .* without"
    with pytest.raises(TrainingError, match=words):
        check_sharded(str(tmp_path), sharded)


def test_asked_for_on_a_cpu_it_says_that_there_is_none(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    console = Console(file=written, width=200)
    monkeypatch.setenv(ASKED, "true")
    train(checkpoint, tmp_path / "out", options(corpus, train_steps=1), console=console)
    assert written.getvalue().count("warning: accelerate has no FSDP for CPUs") == 1


def test_a_saved_state_puts_each_parameter_together_once(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_together: list[int] = []
    whole, save = sharded.whole, trainer.OuroborosTrainer._save_checkpoint

    def count(tensor: torch.Tensor) -> torch.Tensor:
        put_together.append(tensor.data_ptr())
        return whole(tensor)

    def save_counted(self: trainer.OuroborosTrainer, model: Any, trial: Any) -> None:
        put_together.clear()
        save(self, model, trial)
        assert sorted(put_together) == sorted(p.data_ptr() for p in self._trainable().values())

    monkeypatch.setattr(sharded, "whole", count)
    monkeypatch.setattr(trainer, "whole", count)
    monkeypatch.setattr(trainer.OuroborosTrainer, "_save_checkpoint", save_counted)
    train(checkpoint, tmp_path / "out", options(corpus, train_steps=1))
    assert put_together
