"""Ctrl-C in the real commands: one line, status 130, nothing half-written."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import ForkedOuro
from tests.support.processes import run_ouro, start_ouro

ON_LINUX = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
CONVERT = ("--prelude", 2, "--coda", 2, "--recurrent", 3, "--rank", 4, "--depth", 3)


Started = subprocess.Popen[str] | ForkedOuro


def start_export(checkpoint: Path, out: Path, line: str) -> Started:
    """Starts an export that is to be broken off at a line.

    What comes after the tracing has nothing to load any more: it is forked off what has loaded it.
    """
    words = ("export", checkpoint, out, "--max-depth", 5)
    if line in ("writing", "recording"):
        return ForkedOuro(*words, kept_traces=True)
    return start_ouro(*words)


def interrupt(process: Started) -> None:
    """Sends Ctrl-C and expects its one line."""
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "interrupted\n")


def wait_for_line(process: Started, start: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"it ended before it printed {start}: {process.communicate()}")


def wait_for_library(process: subprocess.Popen[str], name: str) -> None:
    """Waits until a process has loaded a library, so that its work is about to begin."""
    while process.poll() is None:
        if name in Path(f"/proc/{process.pid}/maps").read_text():
            return
        time.sleep(0.002)
    raise AssertionError(f"it ended before it loaded {name}: {process.communicate()}")


SWALLOWED = """
import signal
from cli import interrupts
from cli.errors import one_line_errors
signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored in the background
interrupts.heed()
with one_line_errors():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    raise AttributeError("TypedStorage")
"""


def test_what_fails_for_an_interrupt_that_was_swallowed_is_interrupted() -> None:
    """As imports of large packages do when they are broken off."""
    done = run_ouro(code=SWALLOWED)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("line", ["loading", "computing"])
def test_convert_leaves_nothing(tiny_original: Path, tmp_path: Path, line: str) -> None:
    process = start_ouro("convert", tiny_original, tmp_path / "out", *CONVERT)
    wait_for_line(process, line)
    interrupt(process)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("line", ["loading", "tracing", "writing", "recording"])
def test_export_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path, line: str) -> None:
    process = start_export(tiny_checkpoint, tmp_path / "out", line)
    wait_for_line(process, line)
    interrupt(process)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGHUP, "computing"), (signal.SIGTERM, "recording")]
)
def test_a_request_to_end_leaves_nothing(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path, number: signal.Signals, line: str
) -> None:
    if line == "computing":
        process: Started = ForkedOuro("convert", tiny_original, tmp_path / "out", *CONVERT)
    else:
        process = start_export(tiny_checkpoint, tmp_path / "out", line)
    wait_for_line(process, line)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_export_keeps_the_old_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_bundle, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    process = start_export(tiny_checkpoint, out, "writing")
    wait_for_line(process, "writing")
    interrupt(process)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_run_stops_at_once(tiny_bundle: Path) -> None:
    options: list[Any] = ["--max-new-tokens", 500, "--depth", 4, "--threads", 1]
    sampled = ["--temperature", 1, "--seed", 1]  # 400 tokens and more before an end of text
    process = start_ouro("run", tiny_bundle, "Hello", *options, *sampled)
    assert process.stdout is not None
    assert process.stdout.read(1)
    interrupt(process)


@ON_LINUX
@pytest.mark.parametrize("command", ["check", "bench"])
def test_check_and_bench_write_no_file(tiny_bundle: Path, tmp_path: Path, command: str) -> None:
    process = start_ouro(command, tiny_bundle, "--json", tmp_path / "figures.json")
    wait_for_library(process, "onnxruntime_pybind11_state")
    interrupt(process)
    assert list(tmp_path.iterdir()) == []


@ON_LINUX
def test_inspect_of_a_checkpoint(tiny_checkpoint: Path) -> None:
    process = start_ouro("inspect", tiny_checkpoint)
    wait_for_library(process, "libtorch")
    interrupt(process)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("typer", "KeyboardInterrupt"),
        ("cli.app", "KeyboardInterrupt"),
        ("rich", "KeyboardInterrupt"),
        ("pydantic", "KeyboardInterrupt"),
        ("safetensors", "ImportError"),
        ("safetensors", "RuntimeError"),
    ],
)
def test_imports_broken_off(tiny_checkpoint: Path, module: str, kind: str) -> None:
    """Ctrl-C while a module is imported, which can come out as another error."""
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}:\n"
        "            try:\n"
        "                raise KeyboardInterrupt\n"
        "            except KeyboardInterrupt as error:\n"
        f"                raise {kind} from error\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from cli.main import main\n"
        "main()\n"
    )
    process = start_ouro("inspect", tiny_checkpoint, code=code)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "interrupted\n")
