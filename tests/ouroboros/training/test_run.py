"""Loss, packing, what trains and what does not, recipes; exact resume is in test_state.py."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.errors import ConfigError, DataError, TrainingError
from ouroboros.halting.options import HalterOptions
from ouroboros.halting.run import make_halter
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.text.windows import PackedWindows, collate, load_windows, pack_documents
from ouroboros.training import plots
from ouroboros.training.depth import draw_depth
from ouroboros.training.order import RunOrder
from ouroboros.training.plots import GATE
from ouroboros.training.recipe import TrainOptions, make_options, read_recipe
from ouroboros.training.run import train
from ouroboros.training.state import list_steps
from ouroboros.training.trainer import OuroborosTrainer
from tests.support.halting import write_halting
from tests.support.paths import ROOT
from tests.support.training import options, tiny_model, tiny_tokenizer


def packed(seq_len: int = 24) -> PackedWindows:
    documents = ["the cat sat", "on a mat and ran", "a", "the mat sat on the cat and ran away"]
    return pack_documents(documents, tiny_tokenizer(), seq_len)


@pytest.mark.parametrize("pooling", ["causal", "token", "mean"])
def test_packed_window_equals_its_documents_alone(pooling: str) -> None:
    model = tiny_model(pooling=pooling)
    windows = packed()
    for index in range(len(windows)):
        batch = collate([windows[index]])
        together = model(batch["input_ids"], position_ids=batch["position_ids"], depth=3).logits[0]
        starts = [*torch.nonzero(batch["position_ids"][0] == 0).flatten().tolist(), 24]
        assert index > 0 or len(starts) > 2
        for first, last in itertools.pairwise(starts):
            alone = model(batch["input_ids"][:, first:last], depth=3).logits[0]
            torch.testing.assert_close(together[first:last], alone, rtol=1e-4, atol=1e-3)
            if first > 0:  # the test can fail: without the restart they differ a hundred times more
                mixed = model(batch["input_ids"], depth=3).logits[0]
                assert (mixed[first:last] - alone).abs().max() > 0.1


def test_labels_are_shifted_exactly_once() -> None:
    """The loss is -log p(next token), summed by hand over the pairs within a document."""
    model = tiny_model()
    windows = packed()
    total, count, twice = 0.0, 0, 0.0
    for index in range(len(windows)):
        window = {name: torch.from_numpy(array) for name, array in windows[index].items()}
        ids, positions = window["input_ids"], window["position_ids"]
        logits = model(ids[None], position_ids=positions[None], depth=2).logits[0].detach()
        log_p = torch.log_softmax(logits.double(), dim=-1)
        for t in range(len(ids) - 1):
            if positions[t + 1] != 0:
                total -= float(log_p[t, ids[t + 1]])
                count += 1
                twice -= float(log_p[t, ids[min(t + 2, len(ids) - 1)]])
    batch = collate([windows[index] for index in range(len(windows))])
    loss = float(model(**batch, depth=2).loss.detach())
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert abs(loss - twice / count) > 1e-2


def test_gradients_accumulate_as_one_large_batch(corpus: Path, checkpoint: Path) -> None:
    """Micro-batches are weighted by their labels, so 2 x 2 windows are 1 x 4 windows."""
    weights = []
    for name, batch_size, grad_accum in (("a", 4, 1), ("b", 2, 2), ("c", 1, 4)):
        out = corpus.parent / name
        train(checkpoint, out, options(corpus, batch_size=batch_size, grad_accum=grad_accum))
        weights.append(load_checkpoint(out)[0].state_dict())
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("coda", ["frozen", "norms", "full"])
def test_trainable_parameters_change_and_frozen_do_not(
    corpus: Path, checkpoint: Path, coda: str
) -> None:
    out = corpus.parent / "trained"
    train(checkpoint, out, options(corpus, train_coda=coda, depth="6", eval_depths=(1,)))
    before, after = load_checkpoint(checkpoint)[0], load_checkpoint(out)[0]
    after.mark_trainable(coda)
    trained = set(after.trainable_names())
    assert any(name.startswith("coda") for name in trained) == (coda != "frozen")
    for name, value in before.state_dict().items():
        changed = not torch.equal(value, after.state_dict()[name])
        assert changed == (name in trained), name


@pytest.mark.parametrize(("given", "gate_rate"), [({"gate_learning_rate": 1e-5}, 1e-5), ({}, 1e-4)])
def test_layers_and_gate_have_rates_of_their_own(
    corpus: Path, tmp_path: Path, given: dict[str, float], gate_rate: float
) -> None:
    """With AdamW's first step every number of a part moves by its rate, whatever its gradient."""
    path, out = tmp_path / "gated", tmp_path / "trained"
    save_checkpoint(tiny_model(), tiny_tokenizer(), path)
    rates = {"learning_rate": 1e-3, "layer_learning_rate": 3e-5, **given}
    train(path, out, options(corpus, train_steps=1, warmup=0, train_coda="full", **rates))
    before, after = (load_checkpoint(one)[0].state_dict() for one in (path, out))
    expected = {
        "recurrent.norm.weight": 1e-3, "coda.0.mlp.up_proj.weight": 3e-5,
        "recurrent.gate.proj.weight": gate_rate,
    }  # fmt: skip
    for name, rate in expected.items():
        moved = float((after[name] - before[name]).abs().max())
        assert moved == pytest.approx(rate, rel=0.02), name


def test_frozen_prelude_is_not_back_propagated_through() -> None:
    model = tiny_model().train()
    outputs: list[torch.Tensor] = []
    model.prelude[-1].register_forward_hook(lambda _, __, output: outputs.append(output))
    model(**collate([packed()[0]]), depth=2).loss.backward()
    assert not outputs[0].requires_grad
    assert all(p.grad is None for p in model.prelude.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_run_publishes_a_checkpoint_with_pictures_and_logs(
    corpus: Path, checkpoint: Path, heldout: Path
) -> None:
    out = corpus.parent / "trained"
    report = train(checkpoint, out, options(corpus, eval=(heldout,), eval_every=2, train_steps=12))
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "state", "logs"} <= names
    assert (out / "LICENSE").read_text() == "free"
    for picture in ("training.png", "gate.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    model, tokenizer = load_checkpoint(out)
    assert model.config.trained_depths == [1, 2, 3]
    assert model.config.use_cache
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == [2, 3, 4]
    assert report.train_steps == 12
    assert sorted(report.heldout) == [1, 2, 3]
    start = train(checkpoint, corpus.parent / "x", options(corpus, eval=(heldout,), train_steps=1))
    assert report.heldout[3] < start.heldout[3] - 0.1


def test_bfloat16_keeps_float32_weights(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    report = train(checkpoint, out, options(corpus, precision="bf16"))
    assert math.isfinite(report.loss)
    model, _ = load_checkpoint(out)
    start = load_checkpoint(checkpoint)[0].recurrent.norm.weight
    change = (model.recurrent.norm.weight - start)[:3].abs()
    # Steps of 1e-2 and less around 1.0, where bfloat16 only knows multiples of 2^-7 or 2^-8.
    assert change.max() > 0
    assert (model.recurrent.norm.weight.bfloat16().float() != model.recurrent.norm.weight).any()


def test_loss_that_is_no_number_stops_the_run(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    with pytest.raises(
        TrainingError, match=r"loss is nan at train step 3 \(it began in the output of recurrent\."
    ):
        train(checkpoint, out, options(corpus, learning_rate=1e30, train_steps=20, save_every=1))
    # The state before is the last good one: its weights are finite.
    saved = list_steps(out / "state")[0]
    assert saved.name == "step-2"
    weights = load_file(saved / "trainable.safetensors")
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert not (out / "config.json").exists()


@pytest.mark.parametrize("scored", [True, False])
def test_divergence_in_the_last_update_is_not_published(
    corpus: Path, checkpoint: Path, heldout: Path, scored: bool
) -> None:
    out = corpus.parent / "trained"
    texts = (heldout,) if scored else ()
    run = options(corpus, learning_rate=1e30, train_steps=1, warmup=0, eval=texts)
    with pytest.raises(
        TrainingError, match=r"loss is nan at train step 1 \(it began .*--learning-rate"
    ):
        train(checkpoint, out, run)
    assert not (out / "config.json").exists()
    assert list_steps(out / "state") == []


def test_weight_that_is_no_number_is_not_published(
    corpus: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = corpus.parent / "trained"
    evaluate = OuroborosTrainer.evaluate

    def spoil(self: OuroborosTrainer) -> None:
        # Of a step that is neither trained nor scored: no loss shows it.
        model: Any = self.model
        with torch.no_grad():
            model.recurrent.norm.weight[5, 0] = math.inf

    def evaluate_and_spoil(self: OuroborosTrainer, *args: Any, **kwargs: Any) -> Any:
        metrics = evaluate(self, *args, **kwargs)
        spoil(self)
        return metrics

    monkeypatch.setattr(OuroborosTrainer, "evaluate", evaluate_and_spoil)
    with pytest.raises(
        TrainingError, match=r"norm\.weight holds NaN or infinity .*--learning-rate"
    ):
        train(checkpoint, out, options(corpus, max_grad_norm=0.0))
    assert not (out / "config.json").exists()
    assert list_steps(out / "state") == []


def test_held_out_text_in_the_training_text_is_told_of(corpus: Path, checkpoint: Path) -> None:
    words = " ".join(f"{first}{second}" for first in "abcdefgh" for second in "abcdefgh")
    (corpus / "seen.txt").write_text(words)
    held = {"seen": words, "new": words[::-1]}
    paths = []
    for name, text in held.items():
        (corpus.parent / name).mkdir()
        paths.append(corpus.parent / name / f"{name}.txt")
        paths[-1].write_text(text)
    console = Console(file=io.StringIO(), width=300, record=True)
    run = options(corpus, train_steps=1, eval=tuple(paths), seq_len=64, batch_size=1)
    train(checkpoint, corpus.parent / "out", run, console=console)
    told = [line for line in console.export_text().splitlines() if "held-out text" in line]
    assert len(told) == 1
    assert "warning: 100% of the runs of 13 words of held-out text 'seen' stand in" in told[0]


def test_pictures_need_no_held_out_text(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    train(checkpoint, out, options(corpus, train_steps=5, eval_every=2))
    for picture in ("training.png", "gate.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    history = json.loads((out / "state/step-5/trainer_state.json").read_text())["log_history"]
    gates = [entry for entry in history if GATE.format(step=3) in entry]
    assert [entry["step"] for entry in gates] == [0, 2, 4, 5]
    assert all(0 < entry[GATE.format(step=1)] < 1 for entry in gates)
    assert not any("eval_loss" in entry for entry in history)


def test_logged_loss_is_of_the_next_token(corpus: Path, checkpoint: Path) -> None:
    """Through the loader and the Trainer: a shift of theirs would make it next-next-token."""
    out = corpus.parent / "trained"
    report = train(checkpoint, out, options(corpus, depth="2", train_steps=1, batch_size=3))
    model, tokenizer = load_checkpoint(checkpoint)
    windows = load_windows([corpus], tokenizer, 16)
    losses, twice = [], []
    for index in RunOrder(len(windows), 3, seed=0):
        ids, positions = (
            torch.from_numpy(windows[index][name]) for name in ("input_ids", "position_ids")
        )
        logits = model(ids[None], position_ids=positions[None], depth=2).logits[0].detach()
        log_p = torch.log_softmax(logits.double(), dim=-1)
        inside = [t for t in range(15) if positions[t + 1] != 0]
        losses += [-float(log_p[t, ids[t + 1]]) for t in inside]
        twice += [-float(log_p[t, ids[min(t + 2, 15)]]) for t in inside]
    assert report.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert abs(report.loss - np.mean(twice)) > 1e-2


@pytest.mark.parametrize("kind", ["original", "bundle", "both", "files"])
def test_folder_of_something_else_is_left_alone(tmp_path: Path, corpus: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    files = {
        "original": {"config.json": '{"model_type": "llama"}', "model.safetensors": "weights"},
        "bundle": {"manifest.json": "{}", "model.onnx": "graph"},
        "both": {"manifest.json": "{}", "config.json": '{"model_type": "ouroboros"}'},
        "files": {"thesis.txt": "years of work"},
    }[kind]
    for name, content in files.items():
        (out / name).write_text(content)
    (out / "state").mkdir()
    for resume in (False, True):
        # Before anything is loaded: is what it is made from is not even there.
        with pytest.raises(TrainingError, match=r"left alone; give a new directory|also holds"):
            train(tmp_path / "nowhere", out, options(corpus), resume=resume)
    assert {p.name: p.read_text() for p in out.iterdir() if p.is_file()} == files


def test_folders_a_run_may_use(tmp_path: Path, corpus: Path, checkpoint: Path) -> None:
    run = options(corpus, train_steps=1)
    empty, begun, earlier = (tmp_path / name for name in ("empty", "begun", "earlier"))
    empty.mkdir()
    (begun / "state").mkdir(parents=True)
    (begun / "logs").mkdir()
    save_checkpoint(tiny_model(), tiny_tokenizer(), earlier)
    for out in (empty, begun, earlier):
        train(checkpoint, out, run)
        assert load_checkpoint(out)[0].config.trained_depths == [1, 2, 3]


def test_sequence_longer_than_the_positions_is_refused(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    with pytest.raises(DataError, match="--seq-len=129 is more than the model's 128 positions"):
        train(checkpoint, out, options(corpus, seq_len=129))
    train(checkpoint, out, options(corpus, seq_len=128, train_steps=1))


def test_token_outside_the_vocabulary_is_refused(corpus: Path, heldout: Path) -> None:
    path, out = corpus.parent / "small", corpus.parent / "trained"
    save_checkpoint(tiny_model(20), tiny_tokenizer(), path)
    message = r"the training text: .* token id 2\d, the model's vocabulary is 0\.\.19"
    with pytest.raises(DataError, match=message):
        train(path, out, options(corpus))
    for file in corpus.iterdir():
        file.write_text("abcdef" * 20)
    with pytest.raises(DataError, match=r"held-out text 'held': .* token id 2\d"):
        train(path, out, options(corpus, eval=(heldout,)))


def test_bad_runs_are_refused_before_anything_is_written(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    with pytest.raises(ConfigError, match="depth=7"):
        train(checkpoint, out, options(corpus, depth="1-7"))
    for changes, flag in (({"depth": "1-16"}, "depth"), ({"eval_depths": (1, 8)}, "eval-depth")):
        advice = f"max_depth 6; give --{flag} 1-6 or convert with a larger --max-depth"
        with pytest.raises(ConfigError, match=advice):
            train(checkpoint, out, options(corpus, **changes))
    ungated = corpus.parent / "ungated"
    save_checkpoint(tiny_model(gate=False), tiny_tokenizer(), ungated)
    with pytest.raises(ConfigError, match=r"--gate-learning-rate=0\.1 is of a gate, and this"):
        train(ungated, out, options(corpus, gate_learning_rate=0.1))
    with pytest.raises(TrainingError, match="is what it is made from"):
        train(checkpoint, checkpoint, options(corpus))
    assert not out.exists()


def test_depth_is_drawn_from_seed_and_train_step_alone() -> None:
    drawn = [draw_depth(5, step, 1, 16) for step in range(4000)]
    assert drawn == [draw_depth(5, step, 1, 16) for step in range(4000)]
    assert drawn != [draw_depth(6, step, 1, 16) for step in range(4000)]
    counts = np.bincount(drawn, minlength=17)[1:]
    assert len(counts) == 16
    # 250 each are expected; 4 standard deviations of a uniform draw are 61.
    assert abs(counts - 250).max() < 61
    assert {draw_depth(0, step, 8, 8) for step in range(20)} == {8}


def test_run_order_is_shuffled_passes() -> None:
    order = list(RunOrder(10, 25, seed=1))
    assert len(RunOrder(10, 25, seed=1)) == 25 == len(order)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20] != list(range(10))
    assert list(RunOrder(10, 12, seed=1)) == order[:12]
    assert list(RunOrder(10, 25, seed=2)) != order


def test_plain_trainer_takes_the_model(tmp_path: Path) -> None:
    """Trains, scores, saves and loads with nothing of ours but the model and the data."""
    model = tiny_model()
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        disable_tqdm=True, save_steps=12, learning_rate=1e-2, dataloader_pin_memory=False,
        eval_strategy="steps", eval_steps=12, eval_on_start=True, label_names=["labels"],
    )  # fmt: skip
    windows = packed(8)
    trainer = Trainer(
        model, arguments, train_dataset=windows, eval_dataset=windows, data_collator=collate
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2
    assert losses[1] < losses[0] - 0.1
    loaded = OuroborosForCausalLM.from_pretrained(tmp_path / "checkpoint-12")
    for name, value in loaded.named_parameters():
        torch.testing.assert_close(value, model.get_parameter(name), rtol=0, atol=0)
        assert name not in frozen or torch.equal(value, frozen[name])


def test_progress_on_a_terminal_is_a_live_bar(
    corpus: Path, checkpoint: Path, heldout: Path
) -> None:
    written = io.StringIO()
    console = Console(force_terminal=True, file=written, width=140)
    run = options(corpus, train_steps=6, eval=(heldout,), eval_every=3)
    train(checkpoint, corpus.parent / "trained", run, console=console)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())
    assert "\x1b[?25l" in written.getvalue()  # the cursor is hidden, and shown again at the end
    assert written.getvalue().rindex("\x1b[?25h") > written.getvalue().rindex("\x1b[?25l")
    assert "train step" not in text.partition("passes in 6 train steps")[2]
    last = text.strip().splitlines()[-1]
    assert re.search(r"training .* 6/6 loss \d+\.\d{3} +held-out \d+\.\d{3} +[\d,]+ tokens/s", last)


# PEFT 0.21 still reads transformers' old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_wraps_the_model_and_trains_a_step(tmp_path: Path) -> None:
    import peft

    lora = peft.LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(), lora)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert before
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", learning_rate=1e-2, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=packed(8), data_collator=collate)
    assert math.isfinite(trainer.train().training_loss)
    after = dict(model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_recipe_sets_options_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "data: [texts]\nlearning_rate: 1e-4\ndepth: 8\nseed: 3\ncompile: true\n"
    )
    (tmp_path / "r.toml").write_text(
        'data = "texts"\nlearning_rate = 1e-4\ndepth = "8"\nseed=3\ncompile=true\n'
    )
    for name in ("r.yaml", "r.toml"):
        made = make_options({"seed": 7, "warmup": None}, tmp_path / name)
        assert made.data == (tmp_path / "texts",)
        assert made.compile is True
        assert (made.learning_rate, made.depth, made.seed, made.warmup) == (1e-4, "8", 7, 10)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("heal*.toml")), ids=lambda p: p.stem
)
def test_recipes_of_the_repository_are_read(path: Path) -> None:
    made = make_options({"data": (Path("texts"),), "teacher": "original"}, path)
    assert made.train_coda in ("lora", "full")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train_stepz: 3", r"unknown option 'train_stepz'; did you mean train_steps\?"),
        ("colour: 3", "unknown option 'colour'; the options are adapter_alpha"),
        ("train_steps: many", "train_steps='many' is not a whole number"),
        ("train_steps: true", "train_steps=True is not a whole number"),
        ("train_steps: 3.0", r"train_steps=3\.0 is not a whole number"),
        ("train_steps: null", "train_steps=None is not a whole number"),
        ("learning_rate: high", "learning_rate='high' is not a number"),
        ("learning_rate: true", "learning_rate=True is not a number"),
        ("train_recurent: full", r"unknown option .* did you mean train_recurrent\?"),
        ("distill: much", "distill='much' is not a number"),
        ("teacher: 3", "teacher=3 is not a text"),
        ("compile: 1", "compile=1 is not true or false"),
        ("depth: 8.0", r"depth=8\.0 is not a text"),
        ("data: [a, 3]", r"data=\['a', 3\] is not a path, or a list of them"),
        ("eval_depths: [1, two]", r"eval_depths=\[1, 'two'\] is not a whole number, or a list"),
        ("eval_depths: &a [*a]", "eval_depths=.* is not a whole number, or a list"),
        ("- 1", "a recipe is a table"),
        ("a: [", "not YAML"),
    ],
)
def test_bad_recipe_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(TrainingError, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": "0"}, "depth=0 is not allowed"),
        ({"depth": "-3"}, "--depth='-3' is no depth"),
        ({"depth": "9-3"}, "--depth='9-3' is no depth"),
        ({"train_steps": 0}, "--train-steps=0 is not allowed; give 1 or more"),
        ({"seq_len": 1}, "--seq-len=1 is not allowed"),
        ({"learning_rate": 0.0}, "--learning-rate=0.0 is not allowed"),
        (
            {"learning_rate": 1e38},
            r"--learning-rate=1e\+38 is not allowed; give more than 0 and at",
        ),
        ({"seed": 5000000000}, r"--seed=5000000000 is not allowed; give 0\.\.4294967295"),
        ({"learning_rate": math.nan}, "--learning-rate=nan is not allowed"),
        ({"precision": "fp8"}, "--precision='fp8' is unknown; choose one of fp32, bf16"),
        ({"train_coda": "some"}, "--train-coda='some' is unknown"),
        (
            {"train_recurrent": "norms"},
            "--train-recurrent='norms' is unknown; choose one of frozen, lora, full",
        ),
        ({"distill": 1.5, "teacher": "x"}, "--distill=1.5 is not allowed; give a share, 0 to 1"),
        ({"distill": math.nan, "teacher": "x"}, "--distill=nan is not allowed"),
        ({"temperature": 0.0, "teacher": "x"}, "--temperature=0.0 is not allowed"),
        ({"temperature": math.inf, "teacher": "x"}, "--temperature=inf is not allowed"),
        ({"layer_learning_rate": -1e-3, "train_coda": "full"}, "--layer-learning-rate=-0.001 is"),
        ({"gate_learning_rate": math.inf}, "--gate-learning-rate=inf is not allowed; give 0"),
        ({"distill": 0.9}, "--distill=0.9 is of distillation, and there is no teacher; give --te"),
        ({"temperature": 2.0}, "--temperature=2.0 is of distillation, .* leave --temperature out"),
        ({"distill": 0.0, "teacher": "x"}, "--distill=0.0 makes no use of --teacher"),
        (
            {"layer_learning_rate": 1e-4},
            "--layer-learning-rate=0.0001 is of layers of the original that train, and none does",
        ),
        ({"adapter_rank": 0, "train_coda": "lora"}, "--adapter-rank=0 is not allowed; give 1"),
        ({"adapter_alpha": 0.0, "train_coda": "lora"}, "--adapter-alpha=0.0 is not allowed"),
        ({"adapter_alpha": math.inf, "train_coda": "lora"}, "--adapter-alpha=inf is not allowed"),
        (
            {"adapter_rank": 8, "train_coda": "full"},
            "--adapter-rank=8 is of adapters, and none trains; give --train-coda lora or",
        ),
        ({"depth_curriculum": -1}, "--depth-curriculum=-1 is not allowed; give 0 or more"),
        ({"depth_curriculum": 301}, "--depth-curriculum=301 ends after the run; give at most --tr"),
        (
            {"depth_curriculum": 9, "depth": "8"},
            "--depth-curriculum=9 is of a range, and --depth=8 is one depth; give a range like",
        ),
        ({"depth_term": 0.5, "depth": "8-8"}, "--depth-term=0.5 is of a range, and --depth=8-8 is"),
        ({"depth_term": math.nan}, "--depth-term=nan is not allowed"),
        ({"depth_term": -0.5}, "--depth-term=-0.5 is not allowed; give 0 or more"),
        ({"backprop_steps": -1}, "--backprop-steps=-1 is not allowed"),
        ({"adapter_alpha": 8.0}, "--adapter-alpha=8.0 is of adapters, .* leave --adapter-alpha"),
        ({"data": ()}, "no training text"),
    ],
)
def test_bad_option_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainOptions(**{"data": (Path("x"),), **changes})


@pytest.mark.parametrize("count", [1, 2, 5, 90])
def test_picture_has_whole_train_steps_and_no_line_twice(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes: list[Any] = []
    to_png = plots._to_png
    monkeypatch.setattr(plots, "_to_png", lambda f, a: (axes.append(a), to_png(f, a))[1])
    plots.plot_training([{"step": step, "loss": 1 / step} for step in range(1, count + 1)])
    low, high = axes[0].get_xlim()
    assert all(float(tick).is_integer() for tick in axes[0].get_xticks() if low <= tick <= high)
    labels = [line.get_label() for line in axes[0].get_lines()]
    assert len(labels) == (2 if count > 30 else 1)
    assert not any("mean of 1 " in label for label in labels)
    if count == 1:
        assert axes[0].get_lines()[0].get_marker() == "o"


@pytest.mark.parametrize("kind", ["trained", "confidence"])
def test_a_halter_is_not_carried_over_to_other_weights(
    corpus: Path, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    """It says so once; the result is as if there had been none, and is given one as always."""
    write_halting(checkpoint, tmp_path / "adaptive", kind)
    written = io.StringIO()
    console = Console(file=written, width=400)
    train(tmp_path / "adaptive", tmp_path / "out", options(corpus), console=console)
    lines = [line for line in written.getvalue().splitlines() if "halter" in line]
    (line,) = lines
    assert line.startswith(f"warning: the halter of {tmp_path / 'adaptive'} is left out")
    assert "`ouro halter`" in line
    train(checkpoint, tmp_path / "plain", options(corpus))
    found, expected = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "plain"))
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    model, _ = load_checkpoint(tmp_path / "out")
    assert (model.config.halter, model.config.halt_depth, model.halter) == ("none", 0, None)
    with pytest.raises(ConfigError, match="no halter, so it can't choose a depth; `ouro halter"):
        model(input_ids=torch.tensor([[3, 4]]), halt_threshold=0.5)
    halter = HalterOptions(data=(corpus,), windows=8, seq_len=32, prompts=2, kind=kind)
    make_halter(tmp_path / "out", tmp_path / "again", halter)
    assert load_checkpoint(tmp_path / "again")[0].config.halter == kind
