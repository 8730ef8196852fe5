"""`ouro-cli` does what `ouro` does: the same reports, texts, errors and exit statuses."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BundleError, Engine, EngineError
from runtime.bundle.reader import write_manifest
from runtime.parity.cases import Case, load_cases, save_cases
from runtime.parity.check import check_bundle
from tests.conformance.bundles import bundle_of
from tests.support import manifests
from tests.support.cpp import BUILD
from tests.support.parity import seal
from tests.support.recordings import ODD, WRONG, rewrite

CLI = BUILD / "ouro-cli"
pytestmark = pytest.mark.skipif(not CLI.exists(), reason=f"{CLI} is not there: make cpp builds it")

Change = Callable[[list[Case]], Sequence[Case]]


def ouro_cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CLI, *words], capture_output=True, text=True, check=False, timeout=280)


def assert_same_report(bundle: Path, folder: Path) -> str:
    """Both languages report alike; returns the verdict."""
    expected = check_bundle(bundle, "cpu", threads=1)
    file = folder / "report.json"
    done = ouro_cli("check", bundle, "--backend", "cpu", "--threads", "1", "--json", file)
    assert done.returncode == (1 if expected.verdict == "FAIL" else 0), done.stdout + done.stderr
    assert_near(json.loads(file.read_text()), expected.to_json(), "report")
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{expected.verdict} the logits err by {expected.worst_relative_l2:.2e}")
    return expected.verdict


def assert_near(found: Any, expected: Any, where: str) -> None:
    """Equal but for the last digits of sums, which the order of adding decides."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_near(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_near(one, other, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-13), (where, found, expected)
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", ["llama", "llama-block", "llama-halting", "qwen2", "mistral-fp16",
                                  "qwen3-int4"])  # fmt: skip
def test_check_reports_what_python_does(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    bundle = bundle_of(name, request, tmp_path_factory)
    assert assert_same_report(bundle, tmp_path) in ("PASS", "AMBIGUOUS")


def changed(output: str, change: Callable[[Any], Any], kind: str) -> Change:
    """Changes an output of the last case of a kind."""

    def make(cases: list[Case]) -> list[Case]:
        place = max(place for place, case in enumerate(cases) if case.kind == kind)
        outputs = dict(cases[place].outputs)
        outputs[output] = change(outputs[output].copy())
        cases[place] = dataclasses.replace(cases[place], outputs=outputs)
        return cases

    return make


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda array: (array * factor).astype(array.dtype)


def other_best(array: Any) -> Any:
    """Exchanges the two best logits, as nearly as they lie."""
    row = array.reshape(-1, array.shape[-1])[0]
    best, second = np.argsort(-row)[:2]
    row[best], row[second] = row[second], row[best]
    return array


def with_nan(array: Any) -> Any:
    array.reshape(-1)[-1] = np.nan
    return array


def without(kind: str) -> Change:
    return lambda cases: [case for case in cases if case.kind != kind]


def replaced(kind: str, **fields: Any) -> Change:
    return lambda cases: [
        dataclasses.replace(case, **fields) if case.kind == kind else case for case in cases
    ]


def overflown(cases: list[Case]) -> list[Case]:
    """Cases in which PyTorch itself overflows, so that nothing bounds the engine."""
    return [dataclasses.replace(case, reference_error={"logits": math.inf}) for case in cases]


CHANGES: dict[str, tuple[str, Change]] = {
    "logits": ("llama", changed("logits", scaled(1.001), "prefill")),
    "sums": ("llama", changed("pool_sum", scaled(1.01), "decode")),
    "keys": ("llama", changed("new_key_values.recurrent.key", scaled(0.9), "mixed")),
    "best token": ("llama", changed("logits", other_best, "decode")),
    "not finite": ("llama", changed("logits", with_nan, "padded")),
    "shape": ("llama", changed("logits", lambda array: array[:, :1], "prefill")),
    "token": ("llama", changed("tokens", lambda array: (array + 1) % 200, "greedy")),
    "outside": ("llama", changed("tokens", lambda array: array + 10**6, "greedy")),
    "long": ("llama", changed("logits", scaled(1.1), "long")),
    "no greedy": ("llama", without("greedy")),
    "no padded": ("llama", without("padded")),
    "nothing": ("llama", lambda cases: []),
    "overflow": ("llama", replaced("mixed", reference_error={"logits": math.inf})),
    "overflow everywhere": ("llama", overflown),
    "own error": ("llama", replaced("far", reference_error={"logits": 0.5})),
    "depth": ("llama", replaced("decode", depth=4)),
    "chosen depth": ("llama-halting", changed("depth_used", lambda a: a % 4 + 1, "halting")),
    "scores": ("llama-halting", changed("halt_scores", scaled(2.0), "halting")),
    "scores of fewer rows": ("llama-halting", changed("halt_scores", lambda a: a[:1], "halting")),
    "scores of no rows": ("llama-halting", changed("halt_scores", lambda a: a.sum(), "halting")),
    "half": ("mistral-fp16", changed("logits", scaled(1.01), "mixed")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_check_sees_what_python_sees(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    kind, change = CHANGES[name]
    bundle = shutil.copytree(bundle_of(kind, request, tmp_path_factory), tmp_path / "bundle")
    cases = load_cases(bundle / "cases.safetensors")
    save_cases(change(cases), bundle / "cases.safetensors")
    seal(bundle)
    verdict = assert_same_report(bundle, tmp_path)
    unharmed = ("own error", "scores", "overflow")
    assert verdict == "FAIL" or name in unharmed


@pytest.mark.parametrize("name", ODD)
def test_check_fails_what_python_fails(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> None:
    kind, change, _ = ODD[name]
    bundle = shutil.copytree(bundle_of(kind, request, tmp_path_factory), tmp_path / "bundle")
    file = bundle / "cases.safetensors"
    save_cases(change(load_cases(file)), file)
    seal(bundle)
    assert assert_same_report(bundle, tmp_path) == "FAIL"


@pytest.mark.parametrize("name", [*WRONG, "int32"])
def test_check_refuses_the_cases_that_python_refuses(
    name: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    file = bundle / "cases.safetensors"
    if name == "int32":
        rewrite(file, json.dumps, dtype=np.int32)
    else:
        rewrite(file, WRONG[name][0])
    seal(bundle)
    with pytest.raises(BundleError) as caught:
        load_cases(file)
    done = ouro_cli("check", bundle)
    assert (done.returncode, done.stderr.strip()) == (1, f"error: {caught.value}")


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 9},
        {"max_new_tokens": 20, "temperature": 60.0, "top_k": 40, "min_p": 0.001, "seed": 3},
        {"max_new_tokens": 20, "temperature": 60.0, "seed": 2**64 - 1, "stop": ("e", "\ufffd")},
        {
            "max_new_tokens": 5,
            "repetition_penalty": 1.3,
            "top_p": 0.9,
            "temperature": 1.0,
            "seed": 0,
        },
    ],
)
@pytest.mark.filterwarnings("ignore:.*never trained:UserWarning")
def test_run_prints_what_python_generates(
    options: dict[str, Any], tiny_bundle: Path, engine: Engine
) -> None:
    words: list[str | Path] = []
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{name.replace('_', '-')}", str(one)]
    for chat, depth in ((False, 2), (True, 5)):
        expected = engine.generate("The sea", depth, chat=chat, **options).text
        more = ["--chat"] if chat else []
        done = ouro_cli("run", tiny_bundle, "The sea", "--depth", str(depth), *words, *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout == expected + "\n"
        assert ("never trained" in done.stderr) == (depth == 5)


def test_run_chooses_a_depth(halting_bundle: Path) -> None:
    with Engine.open(halting_bundle, backend="cpu", threads=1) as engine:
        expected = engine.generate("The sea", "auto", halt_threshold=0.2, max_new_tokens=4)
    done = ouro_cli("run", halting_bundle, "The sea", "--max-new-tokens=4", "--depth=auto",
                    "--halt-threshold", "0.2")  # fmt: skip
    assert done.stdout == expected.text + "\n"
    assert f"depth {expected.depth}, chosen on the prompt" in done.stderr


def test_run_warns_of_the_depth_that_was_chosen(halting_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(halting_bundle, tmp_path / "bundle")
    words = ("run", bundle, "The sea", "--max-new-tokens=1", "--depth=auto")
    chosen = int(ouro_cli(*words).stderr.rpartition("depth ")[2].partition(",")[0])
    for trained in (chosen, 5):
        write_manifest(bundle, **manifests.changed(bundle, "depth", "trained", value=[trained]))
        said = f"depth {chosen} was never trained (trained: 5)"
        assert (said in ouro_cli(*words).stderr) == ("never trained" in ouro_cli(*words).stderr)
        assert (said in ouro_cli(*words).stderr) == (trained == 5)


def test_bench_measures(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    done = ouro_cli("bench", tiny_bundle, "--depth", "1,3-4", "--context", "16", "--tokens", "8",
                    "--repeats", "1", "--threads", "1", "--json", file)  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert [row["depth"] for row in report["rows"]] == [1, 3, 4]
    for row in report["rows"]:
        assert row["tokens_per_s"] == pytest.approx(1000 / row["decode_ms"])
        assert 0 < row["engine_overhead"] < 1
        assert row["prefill_tokens_per_s"] > 0
    assert report["read_bytes_per_s"] > 1e8
    assert "1 x 8 tokens" in done.stdout
    # What was not asked for is no more than the model holds: 512 positions.
    for tokens, context in ((2, 64), (449, 63)):
        options = ["--depth", "1", "--tokens", str(tokens), "--repeats", "1", "--threads", "1"]
        assert ouro_cli("bench", tiny_bundle, *options, "--json", file).returncode == 0
        assert [row["context"] for row in json.loads(file.read_text())["rows"]] == [context]


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        ((), 2, "usage"),
        (("run",), 2, "usage"),
        (("frob",), 2, "error: No such command 'frob'; see `ouro-cli --help`"),
        (("run", "b"), 2, "error: Missing argument 'prompt'; see `ouro-cli run --help`"),
        (("run", "b", "x", "y"), 2, "error: Got unexpected extra argument(s) (y); see"),
        (("run", "b", "x", "--wat"), 2, "error: No such option: --wat; put -- before a text"),
        (("run", "b", "x", "--depth"), 2, "error: Option '--depth' requires an argument; see"),
        (("run", "b", "x", "--chat=1"), 2, "error: Option '--chat' does not take a value; see"),
        (("run", "b", "x", "--depth", "a"), 1, "error: --depth 'a' is no depth; give a number, or"),
        (("run", "b", "x", "--top-k", "a"), 1, "error: Invalid value for '--top-k': "),
        (("run", "b", "x", "--seed", "-1"), 1, "error: Invalid value for '--seed': "),
        (("run", "b", "x", "--top-p", ""), 1, "error: Invalid value for '--top-p': "),
        (("run", "nowhere", "x"), 1, "error: no bundle at nowhere; "),
        (("run", "BUNDLE", "--", "-x", "-y"), 2, "error: Got unexpected extra argument(s) (-y)"),
        (("run", "BUNDLE", "x", "--depth", "99"), 1, "error: depth=99 is outside this bundle's"),
        (("run", "BUNDLE", "x", "--top-k", "-3"), 1, "error: top_k=-3 is not allowed; a whole"),
        (("run", "BUNDLE", "x", "--backend", "gpu"), 1, "error: backend='gpu' is not known; "),
        (("bench", "BUNDLE", "--depth", "0"), 1, "error: --depth 0 is not a list of numbers such"),
        (("bench", "BUNDLE", "--depth", "3-1"), 1, "error: --depth 3-1 is not a list of numbers"),
        (("bench", "BUNDLE", "--repeats", "0"), 1, "error: repeats=0 is not allowed; a whole"),
        (("bench", "BUNDLE", "--tokens", "0"), 1, "error: max_new_tokens=0 is not allowed; a wh"),
        (("check", "BUNDLE", "--json", "BUNDLE/x"), 1, "which this command uses; give a file else"),
        (("check", "BUNDLE", "--json", "no/x"), 1, "error: no/x: its directory is not there; "),
    ],
)
def test_errors_are_one_line(
    words: tuple[str, ...], status: int, line: str, tiny_bundle: Path
) -> None:
    done = ouro_cli(*(word.replace("BUNDLE", str(tiny_bundle)) for word in words))
    assert done.returncode == status
    assert line in done.stderr
    assert done.stdout == ""
    assert line == "usage" or done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("run", "BUNDLE", "x"), ("check", "BUNDLE"), ("bench", "BUNDLE")]
)
def test_what_can_not_run_here_is_said_before_files_are_read(
    words: tuple[str, ...], tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle/model.onnx.data").unlink()
    with pytest.raises(EngineError) as refused:
        Engine.open(tmp_path / "bundle", backend="trt")
    words = tuple(word.replace("BUNDLE", str(tmp_path / "bundle")) for word in words)
    assert ouro_cli(*words, "--backend", "trt").stderr == f"error: {refused.value}\n"
    assert "lacks model.onnx.data" in ouro_cli(*words, "--backend", "cpu").stderr


def test_help_and_version_are_no_errors() -> None:
    for words in (("--help",), ("-h",), ("--version",), ("run", "--help"), ("check", "-h")):
        done = ouro_cli(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
