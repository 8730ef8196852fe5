"""Files in parts, and stages that fail or hang, as the owner of a GPU machine meets them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench import gpu_machine
from bench.gpu_machine import CarryError, Stage, join, run_stages, split


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some-1.0-py3-none-any.whl"
    path.write_bytes(os.urandom(1000))
    return path


def test_parts_are_small_and_make_the_file_again(file: Path, tmp_path: Path) -> None:
    folders = split(file, tmp_path / "part", 300)
    assert [one.name for one in folders] == ["part0", "part1", "part2", "part3"]
    assert all(sum(one.stat().st_size for one in each.glob("*.part*")) <= 300 for each in folders)
    joined = join(tmp_path / "out", list(reversed(folders)))
    assert joined.name == file.name
    assert joined.read_bytes() == file.read_bytes()
    before = joined.stat().st_mtime_ns
    join(tmp_path / "out", folders)
    assert joined.stat().st_mtime_ns == before


def test_empty_file_is_one_part(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert join(tmp_path / "out", split(empty, tmp_path / "part", 10)).read_bytes() == b""


def test_missing_mixed_and_changed_parts_are_refused(file: Path, tmp_path: Path) -> None:
    folders = split(file, tmp_path / "part", 300)
    with pytest.raises(CarryError, match=r"the parts \[2\] of 4 are missing"):
        join(tmp_path / "out", [*folders[:2], folders[3]])
    other = tmp_path / "other"
    other.write_bytes(b"other")
    with pytest.raises(CarryError, match="not the parts of one file"):
        join(tmp_path / "out", [*folders, *split(other, tmp_path / "other-part", 300)])
    (part,) = folders[1].glob("*.part*")
    part.write_bytes(bytes(len(part.read_bytes())))
    with pytest.raises(CarryError, match="its sha256 is"):
        join(tmp_path / "out", folders)
    assert not list((tmp_path / "out").iterdir())


def test_stages_go_on_after_one_that_fails_or_hangs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(name: str, code: str, limit_s: int = 60) -> Stage:
        return Stage(name, (sys.executable, "-c", code), limit_s)

    stages = [
        stage("fails", "print('why'); raise SystemExit(3)"),
        stage("hangs", "import time; print('begun', flush=True); time.sleep(600)", 3),
        stage("works", "import os; print(os.environ['PLACE'])"),
    ]
    assert not run_stages(stages, tmp_path, dict(os.environ, PLACE="here"))
    printed = capsys.readouterr().out
    assert "s  exit status 3" in printed
    assert "s  ended after 3 s" in printed
    assert "s  ok" in printed
    logs = {log.name: log.read_text() for log in tmp_path.iterdir()}
    assert logs == {"fails.log": "why\n", "hangs.log": "begun\n", "works.log": "here\n"}


@pytest.mark.needs_torch
def test_stages_of_a_run_are_commands_that_exist(tmp_path: Path) -> None:
    from bench import gpu

    stages = gpu_machine.make_stages(tmp_path, tmp_path / "work", tmp_path / "out", sys.executable)
    assert [stage.name for stage in stages] == ["doctor", "tests", "export", "parity", "speed"]
    for stage in stages[2:]:
        assert stage.command[1:3] == ("-m", "bench.gpu")
        gpu.parse(stage.command[3:])
    for file in (one for one in stages[1].command if one.startswith("tests/")):
        assert (gpu_machine.ROOT / file).is_file()


def test_unknown_stage_and_missing_parts_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: no stage lunch; there are doctor, tests"):
        gpu_machine.main(["run", str(tmp_path), "--stages", "lunch"])
    (tmp_path / "part0").mkdir()
    with pytest.raises(SystemExit, match="error: not the parts of one file"):
        gpu_machine.main(["join", str(tmp_path / "out"), str(tmp_path / "part0")])
