"""What a run trains and leaves alone, logs, shows and publishes; resuming is in test_resume.py."""

from __future__ import annotations

import io
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

from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.errors import ConfigError, TrainingError
from ouroboros.halting.options import HalterOptions
from ouroboros.halting.run import make_halter
from ouroboros.text.windows import collate
from ouroboros.training import depth as depth_module
from ouroboros.training import plots
from ouroboros.training import trainer as trainer_module
from ouroboros.training.depth import draw_depth
from ouroboros.training.order import RunOrder
from ouroboros.training.plots import GATE
from ouroboros.training.run import train
from ouroboros.training.state import list_steps
from ouroboros.training.trainer import OuroborosTrainer
from tests.support.halting import write_halting
from tests.support.training import options, packed, tiny_model, tiny_tokenizer, write_teacher


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


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_heads_products_are_of_the_precision_asked_for(
    corpus: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    kind: torch.dtype,
) -> None:
    """Of the student, the teacher and the shallower read-out alike: they are the widest of all."""
    seen: dict[str, set[torch.dtype]] = {}

    def watch(module: Any, name: str) -> None:
        plain = getattr(module, name)

        def noting(hidden: Any, other: Any, head: Any, *rest: Any) -> Any:
            seen.setdefault(name, set()).update(one.dtype for one in (hidden, other, head))
            return plain(hidden, other, head, *rest)

        monkeypatch.setattr(module, name, noting)

    watch(trainer_module, "piece_loss")
    watch(depth_module, "_depth_piece")
    teacher = write_teacher(checkpoint, corpus.parent / "teacher")
    given = {"precision": precision, "depth_term": 0.5, "teacher": str(teacher)}
    train(checkpoint, corpus.parent / "trained", options(corpus, **given))
    assert seen == {"piece_loss": {kind}, "_depth_piece": {kind}}


def test_states_are_not_kept_in_what_is_written(corpus: Path, checkpoint: Path) -> None:
    out = corpus.parent / "trained"
    with pytest.raises(TrainingError, match=r"trained holds .*kept, which it is made from"):
        train(checkpoint, out, options(corpus, state_cache=str(out / "kept")))


def test_it_is_said_on_what_is_trained_and_that_rounding_is_left(
    corpus: Path, checkpoint: Path
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["qat"] = {"bits": 4, "block": 32, "symmetric": True}
    (checkpoint / "config.json").write_text(json.dumps(config))
    written = io.StringIO()
    console = Console(file=written, width=400)
    train(checkpoint, corpus.parent / "out", options(corpus, warmup=9), console=console)
    assert "parameters on CPU at depth 1-3" in written.getvalue()
    assert "warmup=9 is longer than the 4 train steps" in written.getvalue()
    assert "was trained for rounded weights" in written.getvalue()
    assert "--qat int4 keeps to" in written.getvalue()
    assert load_checkpoint(corpus.parent / "out")[0].config.qat == {}


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


def test_what_is_scored_of_a_long_text_is_held_against_the_training_text(
    corpus: Path, checkpoint: Path
) -> None:
    """Forty words of it are scored, which are a thousandth of the whole."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=5)) for _ in range(40_000)]
    (corpus / "seen.txt").write_text(" ".join(words[:40]))
    long = corpus.parent / "long.txt"
    long.write_text(" ".join(words))
    console = Console(file=io.StringIO(), width=300, record=True)
    run = options(corpus, train_steps=1, eval=(long,), seq_len=60, batch_size=1, eval_windows=4)
    train(checkpoint, corpus.parent / "out", run, console=console)
    text = console.export_text()
    assert "100% of the runs of 13 words of what is scored of held-out text 'long' stand" in text


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
    assert axes[0].get_ylabel() == "next-token loss (nats per token)"


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, ""),
        ({"teacher": "t"}, "0.5 CE + 0.5 KL"),
        ({"teacher": "t", "distill": 1.0}, "1 KL"),
        ({"depth_term": 0.25}, "1 CE + 0.25 depth term"),
    ],
)
def test_what_the_training_loss_is_made_of_is_said(
    corpus: Path, changes: dict[str, Any], terms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn beside held-out cross-entropy, a share of it would look like overfitting."""
    assert options(corpus, **changes).loss_terms == terms
    axes: list[Any] = []
    monkeypatch.setattr(plots, "_to_png", lambda f, a: axes.append(a) or b"")
    plots.plot_training([{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss_depth_2": 3.0}], terms)
    labels = [line.get_label() for line in axes[0].get_lines()]
    mixed = [f"training ({terms})", "held-out CE, depth 2"]
    assert labels == (mixed if terms else ["training", "held-out, depth 2"])


@pytest.mark.parametrize("kind", [pytest.param("trained", marks=pytest.mark.slow), "confidence"])
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
