"""Held-out loss by depth, and `ouro eval` and `ouro train` on the command line."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from cli.errors import CommandError
from cli.evaluate import evaluate
from cli.train import train
from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.errors import CheckpointError, ConfigError, DataError, TrainingError
from ouroboros.evaluate import (
    Evaluation,
    Row,
    evaluate_model,
    score_auto,
    score_windows,
    scoring_prefix,
)
from ouroboros.gap import Shortened
from ouroboros.training.trainer import OuroborosTrainer
from tests.support.processes import answered_signals
from tests.support.training import tiny_model, tiny_tokenizer

WINDOWS = np.random.default_rng(1).integers(2, 29, size=(3, 20))


def by_hand(logits: torch.Tensor, ids: torch.Tensor, first: int) -> list[float]:
    """-log p of tokens first.. of one window, from the logits of all its positions."""
    log_p = torch.log_softmax(logits.detach().double(), dim=-1)
    return [-float(log_p[t - 1, ids[t]]) for t in range(first, len(ids))]


@pytest.mark.parametrize("prefix", [0, 7])
def test_loss_is_the_mean_over_predicted_tokens(prefix: int) -> None:
    model = tiny_model()
    losses = [
        loss
        for ids in torch.from_numpy(WINDOWS)
        for loss in by_hand(model(ids[None], depth=3).logits[0], ids, prefix + 1)
    ]
    assert len(losses) == 3 * (19 - prefix)
    found = score_windows(model, WINDOWS, 3, prefix)
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found == pytest.approx(score_windows(model, WINDOWS, 3, prefix, batch=3), rel=1e-6)
    assert abs(found - score_windows(model, WINDOWS, 1, prefix)) > 1e-4


def test_mean_pooling_is_scored_without_seeing_its_targets() -> None:
    model = tiny_model(pooling="mean")
    assert scoring_prefix("mean", 20) == 10
    assert scoring_prefix("causal", 20) == scoring_prefix("token", 20) == 0
    honest = score_windows(model, WINDOWS, 3, prefix=10)
    # The same by hand, token by token through the cache: the mean stays that of the prefix.
    losses = []
    for ids in torch.from_numpy(WINDOWS):
        output = model(ids[None, :10], depth=3, use_cache=True)
        for t in range(10, 19):
            output = model(ids[None, t : t + 1], depth=3, past_key_values=output.past_key_values)
            log_p = torch.log_softmax(output.logits[0, -1].detach().double(), dim=-1)
            losses.append(-float(log_p[ids[t + 1]]))
    assert honest == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    leaking = [
        loss
        for ids in torch.from_numpy(WINDOWS)
        for loss in by_hand(model(ids[None], depth=3).logits[0], ids, 11)
    ]
    assert abs(honest - sum(leaking) / len(leaking)) > 1e-4
    with pytest.raises(DataError, match="scored after a prefix"):
        score_windows(model, WINDOWS, 3)


def test_any_causal_model_is_scored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip
    model.train()
    ids = torch.from_numpy(WINDOWS)
    expected = float(model.eval()(ids, labels=ids).loss.detach())
    model.train()
    rows = evaluate_model("full", model, {"a": WINDOWS, "b": WINDOWS[:1]}, [None])
    assert model.training
    assert rows[0].texts["a"] == pytest.approx(expected, rel=1e-5)
    assert rows[0].depth is None


def test_each_window_is_scored_at_the_depth_it_chose() -> None:
    model = tiny_model(halter="distance", halt_depth=6, halt_threshold=0.9)
    loss, depth = score_auto(model, WINDOWS, 8)
    ids = torch.from_numpy(WINDOWS[:, :8])
    chosen = model(input_ids=ids, depth=6, halt_threshold=0.9).depth_used.tolist()
    assert len(set(chosen)) > 1
    alone = [
        score_windows(model, window[None], one, 8)
        for window, one in zip(WINDOWS, chosen, strict=True)
    ]
    assert depth == pytest.approx(sum(chosen) / len(chosen))
    assert loss == pytest.approx(sum(alone) / len(alone), rel=1e-5)
    with pytest.raises(DataError, match="nothing to choose on"):
        score_auto(model, WINDOWS, 0)
    with pytest.raises(ConfigError, match="no halter"):
        score_auto(tiny_model(), WINDOWS, 8)


def test_windows_that_leave_nothing_are_refused() -> None:
    for windows, prefix in ((WINDOWS[:, :1], 0), (WINDOWS[:0], 0), (WINDOWS, 19), (WINDOWS, -1)):
        with pytest.raises(DataError, match="leave nothing to predict"):
            score_windows(tiny_model(), windows, 1, prefix)


def test_row_counts_each_text_once() -> None:
    row = Row("trained", 8, {"wiki": 2.0, "code": 4.0})
    assert row.mean == 3.0
    assert row.perplexity == pytest.approx(math.exp(3.0))
    assert Row("x", None, {"a": 1e4}).perplexity == math.inf
    assert row.to_json() == {
        "model": "trained", "depth": 8, "mean": 3.0, "perplexity": row.perplexity,
        "texts": {"wiki": 2.0, "code": 4.0},
    }  # fmt: skip


def ouro(*arguments: object) -> Result:
    app = typer.Typer()
    app.command("train")(train)
    app.command("eval")(evaluate)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_eval_prints_and_writes_one_row_a_depth(
    checkpoint: Path,
    heldout: Path,
    tmp_path: Path,
) -> None:
    untrained, scores = tmp_path / "untrained", tmp_path / "scores.json"
    save_checkpoint(tiny_model(), tiny_tokenizer(), untrained)
    arguments = ["--text", heldout, "--seq-len", 16, "--windows", 3, "--json", scores]
    result = ouro("eval", checkpoint, *arguments, "--depth", "1,3", "--converted", untrained)
    assert result.exit_code == 0, result.output
    written = json.loads(scores.read_text())
    assert written["windows"] == {"held": 3}
    assert [(row["model"], row["depth"]) for row in written["rows"]] == [
        ("converted", 1), ("converted", 3), ("trained", 1), ("trained", 3),
    ]  # fmt: skip
    model, tokenizer = load_checkpoint(checkpoint)
    ids = tokenizer(heldout.read_text(), add_special_tokens=False)["input_ids"][:48]
    expected = score_windows(model, np.asarray(ids).reshape(3, 16), 3)
    assert written["rows"][3]["texts"]["held"] == pytest.approx(expected)
    assert f"{expected:.3f}" in result.output
    # By default depths 1, 4, 8 and 16 as far as the model goes.
    assert ouro("eval", untrained, *arguments).exit_code == 0
    rows = json.loads(scores.read_text())["rows"]
    assert [(row["model"], row["depth"]) for row in rows] == [("converted", 1), ("converted", 4)]


def test_eval_scores_the_original_whole_and_shortened(
    heldout: Path,
    tmp_path: Path,
) -> None:
    model = tiny_model()
    base = LlamaForCausalLM(LlamaConfig(**model.config.base_config))
    base.save_pretrained(tmp_path / "original")
    tiny_tokenizer().save_pretrained(tmp_path / "original")
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "converted")
    scores = tmp_path / "s.json"
    arguments = ["--text", heldout, "--seq-len", 16, "--json", scores, "--depth", 2]
    result = ouro("eval", tmp_path / "converted", *arguments, "--original", tmp_path / "original")
    assert result.exit_code == 0, (result.output, result.exception)
    rows = {row["model"]: row for row in json.loads(scores.read_text())["rows"]}
    assert list(rows) == ["full", "dropped", "converted"]
    ids = tiny_tokenizer()(heldout.read_text(), add_special_tokens=False)["input_ids"]
    windows = np.asarray(ids[: 8 * 16]).reshape(8, 16)
    assert rows["full"]["mean"] == pytest.approx(score_windows(base, windows), rel=1e-5)
    full, dropped = (rows[name]["mean"] for name in ("full", "dropped"))
    assert dropped != full
    if dropped > full:
        found = (dropped - rows["converted"]["mean"]) / (dropped - full)
        assert rows["converted"]["share"] == pytest.approx(found)
        assert f"{found:.3f}" in result.output


def test_share_is_of_the_gap_between_the_shortened_and_the_whole_original() -> None:
    rows = [Row("full", None, {"a": 2.0, "b": 4.0}), Row("dropped", None, {"a": 5.0, "b": 7.0})]
    rows += [Row("trained", 8, {"a": 3.0, "b": 5.5})]
    evaluation = Evaluation(tuple(rows), 8, {"a": 1, "b": 1}, 0, Shortened(8, range(21, 22), 8))
    assert [row.get("share") for row in evaluation.to_json()["rows"]] == [1.0, 0.0, 1.75 / 3]
    assert evaluation.to_json()["shortened"] == "8 + layer 21 + 8"
    # The order between the two turned round, or one of them missing, there is no gap to close.
    for kept in (rows[1:], [rows[0], rows[2]], [Row("dropped", None, {"a": 1.0}), *rows[::2]]):
        assert Evaluation(tuple(kept), 8, {"a": 1}, 0).share(rows[2]) is None


@pytest.mark.parametrize(
    ("prelude", "looped", "coda", "said"),
    [
        (1, range(1, 3), 1, "1 + layers 1, 2 + 1"),
        (3, range(0), 1, "3 + 1"),
        (4, range(0), 0, "4 + 0"),
        (2, range(1, 2), 1, ""),
        (1, range(2, 4), 1, ""),
        (3, range(0), 2, ""),
        (1, range(2, 3), -1, ""),
        (1, range(7, 8), 1, ""),
    ],
)
def test_layers_that_are_kept_do_not_overlap(
    prelude: int, looped: range, coda: int, said: str
) -> None:
    kept = Shortened(prelude, looped, coda)
    if said:
        kept.check(4)
        assert str(kept) == said
    else:
        with pytest.raises(ConfigError, match="can't be kept of 4 layers"):
            kept.check(4)


def test_eval_scores_the_original_beside_a_bundle(
    tiny_bundle: Path, tiny_checkpoint: Path, tiny_original: Path, heldout: Path, tmp_path: Path
) -> None:
    """A bundle does not say which layer it loops; the checkpoint that it was made from does."""
    scores = tmp_path / "s.json"
    arguments = ["--text", heldout, "--seq-len", 8, "--windows", 1, "--json", scores, "--depth", 2]
    arguments += ["--original", tiny_original]
    for more, names in (
        ([], ["full", "trained"]),
        (["--plain", "1,1,1"], ["full", "dropped", "trained"]),
        (["--converted", tiny_checkpoint], ["full", "dropped", "converted", "trained"]),
    ):
        result = ouro("eval", tiny_bundle, *arguments, *more)
        assert result.exit_code == 0, (result.output, result.exception)
        rows = json.loads(scores.read_text())["rows"]
        assert [row["model"] for row in rows] == names


def test_eval_refuses_bad_input(
    checkpoint: Path,
    heldout: Path,
) -> None:
    assert isinstance(ouro("eval", checkpoint).exception, CommandError)
    bad_depth = ouro("eval", checkpoint, "--text", heldout, "--depth", 7).exception
    assert isinstance(bad_depth, ConfigError)
    too_long = ouro("eval", checkpoint, "--text", heldout, "--seq-len", 4096).exception
    assert isinstance(too_long, DataError)
    for plain, more, words in (
        ("8,21", ["--original", checkpoint], "does not name first"),
        ("8,auto,8", ["--original", checkpoint], "leaves the layers between open"),
        ("8,21,8", [], "plain layers of no original"),
    ):
        asked = ["--text", heldout, "--plain", plain, *more]
        refused = ouro("eval", checkpoint, *asked).exception
        assert isinstance(refused, CommandError)
        assert words in str(refused)


def test_eval_refuses_what_the_model_can_not_read(
    checkpoint: Path,
    heldout: Path,
    tmp_path: Path,
) -> None:
    arguments = ["--text", heldout, "--depth", 2, "--seq-len"]
    too_long = ouro("eval", checkpoint, *arguments, 129).exception
    assert isinstance(too_long, DataError)
    assert "seq_len=129 is more than the model's 128 positions" in str(too_long)
    assert ouro("eval", checkpoint, *arguments, 128).exit_code == 0
    save_checkpoint(tiny_model(20), tiny_tokenizer(), tmp_path / "small")
    unknown = ouro("eval", tmp_path / "small", *arguments, 16).exception
    assert isinstance(unknown, DataError)
    assert "held: the tokenizer gives token id 28, the model's vocabulary is 0..19" in str(unknown)


def test_eval_of_a_diverged_model_is_an_error(
    heldout: Path,
    tmp_path: Path,
) -> None:
    model, scores = tiny_model(trained_depths=[2]), tmp_path / "scores.json"
    with torch.no_grad():
        model.recurrent.norm.weight.fill_(3e38)
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "diverged")
    arguments = ["--text", heldout, "--seq-len", 16, "--depth", 2, "--json", scores]
    result = ouro("eval", tmp_path / "diverged", *arguments)
    assert isinstance(result.exception, CheckpointError)
    assert re.search("loss of the trained model on 'held' is nan at depth 2", str(result.exception))
    assert "nan" not in result.output
    assert not scores.exists()


def test_json_holds_no_infinity() -> None:
    written = Row("x", None, {"a": 1e4}).to_json()
    assert written["perplexity"] is None
    json.dumps(written, allow_nan=False)


@pytest.mark.parametrize("changes", [{"prelude": 1}, {"coda": 1}, {"pooling": "token"}])
def test_eval_refuses_another_model_as_the_converted_one(
    checkpoint: Path,
    heldout: Path,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    save_checkpoint(tiny_model(**changes), tiny_tokenizer(), tmp_path / "other")
    arguments = ["--text", heldout, "--seq-len", 16, "--converted", tmp_path / "other"]
    error = ouro("eval", checkpoint, *arguments).exception
    ((name, value),) = changes.items()
    assert isinstance(error, DataError)
    assert f"the untrained checkpoint has {name} {value}, the model" in str(error)


def test_train_command_trains(
    checkpoint: Path,
    corpus: Path,
    heldout: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "trained"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train_steps: 9\nseq_len: 16\ndepth: 1-3\nbatch_size: 2\n")
    arguments = ["--data", corpus, "--eval", heldout, "--recipe", recipe, "--train-steps", 3]
    result = ouro("train", checkpoint, out, *arguments, "--eval-depth", "1,2")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "3 train steps in" in result.output
    assert "at depth 2" in result.output
    assert load_checkpoint(out)[0].config.trained_depths == [1, 2, 3]
    again = ouro("train", checkpoint, out, *arguments)
    assert isinstance(again.exception, TrainingError)
    assert ouro("train", checkpoint, out, *arguments, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (0, "interrupted before a state was saved"),
        (2, "state: give the same command with --resume"),
    ],
)
def test_train_command_says_how_to_go_on_after_ctrl_c(
    checkpoint: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    words: str,
) -> None:
    calls: list[int] = []
    compute = OuroborosTrainer.compute_loss

    def interrupt(self: OuroborosTrainer, *given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            signal.raise_signal(signal.SIGINT)
        return compute(self, *given, **named)

    monkeypatch.setattr(OuroborosTrainer, "compute_loss", interrupt)
    arguments = ["--data", corpus, "--seq-len", 16, "--depth", "2", "--save-every", 1]
    with answered_signals():
        result = ouro("train", checkpoint, tmp_path / "out", *arguments)
    assert result.exit_code == 130
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "out" / "config.json").exists()
