"""What `--compile` makes of a run: the same training, and a word where nothing can be compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.errors import TrainingError
from ouroboros.training import compiling
from ouroboros.training.compiling import compile_errors
from ouroboros.training.run import train
from tests.support.training import options, tiny_model, tiny_tokenizer

# What PyTorch warns of as it compiles is of its own code.
pytestmark = pytest.mark.filterwarnings("ignore")
FORMS: dict[str, dict[str, Any]] = {
    "controller": {},
    "block": {
        "prelude": 1, "coda": 1, "recurrent": 2, "recurrent_layers": 2, "gate_start": "open",
        "bases": "per_step", "input_injection": "add",
    },
    "free": {"modulation": "free"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("controller", {"train_coda": "lora", "train_recurrent": "lora", "adapter_rank": 4}),
        ("block", {"recompute": True, "backprop_steps": 1}),
        ("free", {}),
        ("of whole blocks", {"qat": "int8", "train_coda": "full"}),
        ("of whole blocks", {"qat": "int4", "train_coda": "lora", "adapter_rank": 4}),
    ],
)
def test_compiled_run_is_the_same_training(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Path,
    form: str,
    changes: dict[str, Any],
) -> None:
    """What is captured of the model is the model, at every depth, and gates are still measured."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    start = tiny_checkpoint
    if form in FORMS:
        start = tmp_path / "start"
        save_checkpoint(tiny_model(**FORMS[form]), tiny_tokenizer(), start)
    reports, ends = [], []
    limits: Any = torch._dynamo.config
    for compiled in (False, True):
        torch.compiler.reset()
        out = tmp_path / f"compiled-{compiled}"
        given = {"depth": "1-5", "train_steps": 6, "eval_every": 3, "learning_rate": 1e-3}
        chosen = options(corpus, **given, **changes, compile=compiled)
        with limits.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
            reports.append(train(start, out, chosen))
        ends.append(load_checkpoint(out)[0].state_dict())
    plain, other = (report.history for report in reports)
    assert [set(line) for line in plain] == [set(line) for line in other]
    for line, twin in zip(plain, other, strict=True):
        for name in line:
            if "loss" in name or "gate" in name:
                assert twin[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_missing_compiler_is_named(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    torch.compiler.reset()
    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nothing-kept"))
    with pytest.raises(TrainingError, match=r"can't be compiled .*no-such-compiler.*--compile out"):
        train(checkpoint, tmp_path / "out", options(corpus, compile=True))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="something else"), compile_errors():
        raise RuntimeError("something else")
