"""The bridge's fit: closed form, what it leaves out, what it is fed, and what it is refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ouroboros import convert, load_checkpoint
from ouroboros.conversion.bridge import STRENGTHS, Fit, fit_bridge, original_states
from ouroboros.conversion.convert import FIT_WINDOWS, STATE_BYTES, fit_windows
from ouroboros.errors import ConfigError, DataError
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.source.locate import locate
from ouroboros.source.weights import open_original
from ouroboros.text.windows import eval_windows
from tests.support.tiny import SMALL, build_tokenizer

WIDTH = 16


def states(seed: int, windows: int = 20, length: int = 33) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(windows, length, WIDTH, generator=generator) + 1


def apply(fit: Fit, source: torch.Tensor) -> torch.Tensor:
    return source + source @ fit.weight.T + fit.bias


@pytest.mark.parametrize("seed", range(4))
def test_fit_recovers_a_linear_map(seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    weight = torch.randn(WIDTH, WIDTH, generator=generator)
    bias = torch.randn(WIDTH, generator=generator)
    source = states(seed)
    fit = fit_bridge(source, source + source @ weight.T + bias)
    assert fit.strength == STRENGTHS[0]
    assert fit.error < 1e-8
    torch.testing.assert_close(fit.weight, weight, rtol=0, atol=1e-3)
    torch.testing.assert_close(fit.bias, bias, rtol=0, atol=1e-2)


def test_strength_is_the_best_on_windows_held_aside() -> None:
    """Noise that a map of full rank could learn by heart asks for much regularisation."""
    source = states(0, windows=5, length=8)  # 28 positions for 17 rows
    fit = fit_bridge(source, source + states(1, windows=5, length=8) - 1)
    assert fit.strength > STRENGTHS[2]
    errors = []
    for strength in STRENGTHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ouroboros.conversion.bridge.STRENGTHS", (strength,))
            errors.append(fit_bridge(source, source + states(1, windows=5, length=8) - 1).error)
    assert fit.error == min(errors) < 0.9 * errors[0]


def test_large_targets_do_not_drown_small_ones() -> None:
    """Positions weigh less the larger their target: the map sides with the small ones' majority."""
    source = states(3)
    target = source + 2.0
    target[:, ::8] += 1000.0
    fit = fit_bridge(source, target)
    mean = (target - source)[:, 1:].mean()
    assert abs(float(apply(fit, source).mean() - source.mean()) - 2.0) < 0.5 * float(mean - 2.0)


def test_first_position_is_left_out() -> None:
    source, target = states(0), states(1)
    whole = fit_bridge(source, target)
    source[:, 0], target[:, 0] = 1e4, -1e4
    again = fit_bridge(source, target)
    assert torch.equal(whole.weight, again.weight)
    assert torch.equal(whole.bias, again.bias)


def test_too_little_text_is_refused_with_the_rank_it_supports() -> None:
    few = states(0, windows=5, length=5)  # one window of five held aside: 4 * 4 positions
    with pytest.raises(DataError, match=r"16 positions .* rank 16, and it has 17 rows") as caught:
        fit_bridge(few, few)
    assert "--bridge none" in str(caught.value)


@pytest.fixture(scope="module")
def original(tiny_original: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_original, dtype=torch.float32).eval()


def whole_states(original: Any, windows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        found: tuple[torch.Tensor, ...] = original(
            windows, output_hidden_states=True, use_cache=False
        ).hidden_states
    return found


def draw(windows: int, length: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(3, 250, (windows, length), generator=generator)


def test_states_are_those_of_transformers(
    tiny_original: Path, tmp_path: Path, original: Any
) -> None:
    convert(str(tiny_original), tmp_path / "out", recurrent=3, **SMALL)
    model, _ = load_checkpoint(tmp_path / "out")
    read = open_original(locate(str(tiny_original))).layer
    windows = draw(11)  # more than a batch, the last one smaller
    expected = whole_states(original, windows)
    numbers = []
    for number, found in original_states(model, read, windows, 4):
        torch.testing.assert_close(found, expected[number], rtol=1e-4, atol=1e-5)
        numbers.append(number)
    assert numbers == [2, 3, 4]


def read_text(windows: int) -> torch.Tensor:
    """Of the text that the conversions below are fitted on: a map of random states says nothing."""
    text = resources.files("ouroboros").joinpath("calibration.txt").read_text("utf-8")
    return torch.from_numpy(eval_windows(text, build_tokenizer(), 64, windows))


def bridged(original: Path, out: Path, **options: Any) -> OuroborosForCausalLM:
    convert(str(original), out, **{**SMALL, "norm_init": "ones", **options})
    model: OuroborosForCausalLM = load_checkpoint(out)[0]
    assert model.bridge is not None
    return model


@pytest.mark.parametrize("looped", [{}, {"recurrent": "3-4", "coda": 1}], ids=["auto", "a block"])
def test_entry_leads_to_the_first_looped_layers_input(
    tiny_original: Path, tmp_path: Path, original: Any, looped: dict[str, Any]
) -> None:
    model = bridged(tiny_original, tmp_path / "out", bridge="entry", **looped)
    windows = read_text(6)
    expected = whole_states(original, windows)
    source, target = expected[2][:, 1:], expected[model.config.recurrent][:, 1:]
    found = []
    model.bridge.register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        model(windows, depth=1, use_cache=False)
    if model.config.recurrent == 2:  # the prelude's end is what the layer knows
        torch.testing.assert_close(found[0], expected[2], rtol=1e-2, atol=1e-2)
    else:
        left = float((found[0][:, 1:] - target).norm() / (source - target).norm())
        assert left < 0.8


@pytest.mark.slow
def test_exit_leads_to_the_codas_input(tiny_original: Path, tmp_path: Path, original: Any) -> None:
    model = bridged(tiny_original, tmp_path / "out", recurrent=3, bridge="exit")
    assert torch.equal(
        model.recurrent.layers[0].mlp.up_proj.weight, original.model.layers[3].mlp.up_proj.weight
    )
    windows = read_text(6)
    target = whole_states(original, windows)[4][:, 1:]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.bridge.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    with torch.no_grad():
        model(windows, depth=SMALL["depth"], use_cache=False)
    ((before, after),) = seen
    left = (after[:, 1:] - target).norm() / (before[:, 1:] - target).norm()
    assert float(left) < 0.8


@pytest.mark.slow
def test_auto_judges_every_layer_with_its_own_bridge(tiny_original: Path, tmp_path: Path) -> None:
    options = {**SMALL, "norm_init": "matched", "bridge": "entry"}
    report = convert(str(tiny_original), tmp_path / "auto", **options)
    assert sorted(one.layer for one in report.candidates) == [2, 3]
    assert "bridge" in report.text
    convert(str(tiny_original), tmp_path / "named", recurrent=report.recurrent, **options)
    chosen, named = (load_checkpoint(tmp_path / name)[0] for name in ("auto", "named"))
    for name, value in chosen.state_dict().items():
        assert torch.equal(value, named.state_dict()[name]), name


def test_short_text_and_unknown_place_are_refused(
    tiny_original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ouroboros.conversion.convert.CALIBRATION_TOKENS", 32)
    text = tmp_path / "short.txt"
    text.write_text("A text of barely one window. " * 2)
    with pytest.raises(DataError, match="rank 31, and it has 65 rows"):
        convert(
            str(tiny_original), tmp_path / "out", calibration=text, **{**SMALL, "bridge": "entry"}
        )
    with pytest.raises(ConfigError, match=r"bridge='middle'.*none, entry, exit"):
        convert(str(tiny_original), tmp_path / "out", **{**SMALL, "bridge": "middle"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [64, 576, 2048, 4096, 8192, 16384])
def test_wide_models_are_fitted_on_fewer_windows(width: int) -> None:
    count = fit_windows(width)
    assert count <= FIT_WINDOWS or width > 8192
    assert (count == FIT_WINDOWS) == (width < 4096)
    # Four windows in five are fitted on, less their first positions: enough for every row.
    assert count * 4 // 5 * 255 >= 1.4 * (width + 1)
    assert count * 256 * width * 4 <= STATE_BYTES or width >= 8192
