"""`.ci/run` runs every part, says how long each took, and ends with the first that fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import ROOT

RUN = ROOT / ".ci" / "run"


def write_make(folder: Path, script: str) -> None:
    """Writes what stands in for make."""
    stand_in = folder / "make"
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(0o755)


def with_make(folder: Path) -> dict[str, str]:
    """The environment in which the make of a folder is found first."""
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def ci_run(folder: Path, make: str, *parts: str) -> subprocess.CompletedProcess[str]:
    """Runs it with this script in the place of make."""
    write_make(folder, make)
    command = [str(RUN), *parts]
    return subprocess.run(
        command, env=with_make(folder), capture_output=True, text=True, check=False
    )


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def test_ci_run_prints_a_parts_own_seconds_and_all(tmp_path: Path) -> None:
    done = ci_run(tmp_path, "sleep 1", "check", "test")
    assert done.returncode == 0
    said = re.findall(r"== make (\w+) done in (\d+) s, (\d+) s in all", done.stdout)
    assert [name for name, _, _ in said] == ["check", "test"]
    own, whole = ([int(row[place]) for row in said] for place in (1, 2))
    assert min(own) >= 1
    assert own[1] < whole[1]
    assert abs(whole[1] - sum(own)) <= 2  # whole seconds


def test_ci_run_runs_every_part_once(tmp_path: Path) -> None:
    done = ci_run(tmp_path, "true")
    assert done.returncode == 0
    ran = re.findall(r"^== make ([\w-]+)$", done.stdout, re.MULTILINE)
    assert ran[0] == "base"
    beside = ["cpp-docs", "wheel-test", "test-lowest", "test-newest"]
    one_by_one = ["check", "test", "cpp-test", "test-slow"]
    assert sorted(ran) == sorted(["base", "venv", "cpp", *one_by_one, *beside])


def test_the_page_lists_the_parts_and_no_others() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.split("| part |")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    listed = [target for cell in cells for target in re.findall(r"`make ([\w-]+)`", cell)]
    (steps,) = re.findall(r"^STEPS=\((.*?)^\)", RUN.read_text(), re.MULTILINE | re.DOTALL)
    parts = " ".join(re.findall(r'"(.*?)"', steps)).split()
    assert sorted(listed) == sorted(parts)


@pytest.mark.parametrize("part", ["cpp", "check"])
def test_a_part_that_fails_ends_it_with_what_runs_beside_it(tmp_path: Path, part: str) -> None:
    done = ci_run(tmp_path, f'test "$2" != {part} || {{ echo "of $2"; exit 3; }}')
    assert done.returncode != 0
    assert f"of {part}" in done.stdout
    assert "== make venv done" in done.stdout
    assert "== make test\n" not in done.stdout


@pytest.mark.parametrize("part", ["tests", "venv cpp", ""])
def test_a_part_that_is_none_is_refused_with_those_there_are(tmp_path: Path, part: str) -> None:
    done = ci_run(tmp_path, "true", part)
    assert done.returncode == 2
    assert f"no part {part}; parts: base venv cpp check test" in done.stderr


def test_told_to_end_it_ends_what_runs_side_by_side(tmp_path: Path) -> None:
    write_make(tmp_path, f'test "$2" != base || exit 0; echo $$ >{tmp_path}/$2.pid; sleep 60; true')
    process = subprocess.Popen([str(RUN)], env=with_make(tmp_path), stdout=subprocess.DEVNULL)
    ids = [tmp_path / "venv.pid", tmp_path / "cpp.pid"]
    until(lambda: all(one.exists() and one.read_text() for one in ids))
    process.send_signal(signal.SIGTERM)  # SIGINT is ignored where the tests run in the background
    assert process.wait(30) == 130
    until(lambda: not any(Path("/proc", one.read_text().strip()).exists() for one in ids))
