"""What `tests/conformance` recorded of the Python engine, asked of the C++ library."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conformance.bundles import bundle_of, names, recorded
from tests.support.cpp import BUILD, built

REPLAY = BUILD / "tests" / "replay_conformance"
# 0 and -1 stand for the default and for "auto" there, and every row has its own depth and seed.
NO_WORDS_FOR = (
    "bad depth 0",
    "bad depth -1",
    "bad depth 0 of a session",
    "bad depth -1 of a session",
    "depths",
    "seeds",
    "threads 0",
    "threshold 0.0",
)

pytestmark = pytest.mark.skipif(
    not REPLAY.exists(), reason=f"{REPLAY} is not there: make cpp builds it"
)


@pytest.mark.parametrize("name", names())
def test_cpp_answers_as_recorded(
    name: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = recorded(name, request, tmp_path_factory)
    done = subprocess.run([REPLAY, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    left_out = re.findall(r"^left out (.*): ", done.stdout, re.MULTILINE)
    assert set(left_out) <= set(NO_WORDS_FOR)
    said = re.search(r"^(\d+) requests asked, 0 answered otherwise", done.stdout, re.MULTILINE)
    assert said is not None
    assert int(said[1]) > 100


def test_threads_share_an_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = recorded("llama-halting", request, tmp_path_factory)
    words = [REPLAY, file, "", "cpu", "8"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


# The second chooses its depth, the third freezes a mean on the first prompt too.
@pytest.mark.parametrize("name", ["llama", "llama-halting", "qwen3-int4"])
def test_a_session_keeps_what_was_said_where_an_answer_fails(
    name: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = [built("failing"), bundle_of(name, request, tmp_path_factory)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=280)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_changed_recording_is_seen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    text = recorded("llama", request, tmp_path_factory).read_text()
    (tmp_path / "changed.json").write_text(text.replace('"finish_reason": "eos"', '"x": "eos"', 1))
    done = subprocess.run(
        [REPLAY, tmp_path / "changed.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 1
    assert "1 answered otherwise" in done.stdout
