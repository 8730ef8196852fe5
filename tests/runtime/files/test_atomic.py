"""Publishing: links, modes, what is carried over, and what a killed run leaves."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from runtime.files.atomic import publish

KNOWN = ("a", "b", "old", "new", "log", "stale.json", "state/deep/note")


def test_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "real"
    real.mkdir(parents=True)
    (real / "a").write_text("old")
    link = tmp_path / "out"
    link.symlink_to(real)
    with publish(link, known=KNOWN) as staging:
        (staging / "b").write_text("new")
    assert link.is_symlink()
    assert [p.name for p in real.iterdir()] == ["b"]
    assert [p.name for p in real.parent.iterdir()] == ["real"]
    assert [p.name for p in tmp_path.iterdir() if p.name != "disk"] == ["out"]


def test_link_to_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "later")
    with publish(tmp_path / "out") as staging:
        (staging / "a").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "later" / "a").read_text() == "new"


@pytest.mark.parametrize(
    ("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640)]
)
def test_modes_follow_the_umask(tmp_path: Path, umask: int, folder: int, file: int) -> None:
    before = os.umask(umask)
    try:
        with publish(tmp_path / "out") as staging:
            (staging / "plain").write_text("x")
            (staging / "inner").mkdir()
            descriptor, _ = tempfile.mkstemp(dir=staging / "inner")  # 0600 whatever the umask
            os.close(descriptor)
    finally:
        os.umask(before)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        expected = folder if path.is_dir() else file
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_only_named_entries_are_carried_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "state" / "deep").mkdir(parents=True)
    (out / "state" / "deep" / "note").write_text("kept")
    for name in ("stale.json", "log"):
        (out / name).write_text("old")
    with publish(out, keep=("state", "log", "none"), known=KNOWN) as staging:
        (staging / "log").write_text("new")
    assert sorted(p.name for p in out.iterdir()) == ["log", "state"]
    assert (out / "log").read_text() == "new"
    assert (out / "state" / "deep" / "note").read_text() == "kept"


@pytest.mark.parametrize("exchange", [True, False])
def test_staged_elsewhere_touches_the_parent_only_to_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:  # as on a file system without it
        monkeypatch.setattr("runtime.files.atomic._exchange", lambda *_: False)
    shared, out = tmp_path / "shared", tmp_path / "shared" / "out"
    (out / "old").mkdir(parents=True)
    seen = []
    rename = Path.rename

    def note(self: Path, target: Path) -> Path:
        done = rename(self, target)
        seen.append({path.name for path in shared.iterdir()})
        return done

    monkeypatch.setattr(Path, "rename", note)
    with publish(out, staged_in=tmp_path, known=KNOWN) as staging:
        assert staging.parent == tmp_path
        (staging / "new").write_text("new")
        assert [path.name for path in shared.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]
    assert all(names <= {"out"} for names in seen)
    assert exchange or len(seen) == 3


def test_run_killed_between_two_renames_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without an exchange: what was moved aside comes back, or goes in the end."""
    monkeypatch.setattr("runtime.files.atomic._exchange", lambda *_: False)
    out, rename, count = tmp_path / "out", Path.rename, 0

    def write(text: str) -> None:
        with publish(out, known=KNOWN) as staging:
            (staging / text).write_text(text)

    def killed(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        return rename(self, target)

    for after in (1, 2):
        write("old")
        monkeypatch.setattr(Path, "rename", killed)
        count = 0
        with pytest.raises(KeyboardInterrupt):
            write("new")
        monkeypatch.setattr(Path, "rename", rename)
        assert out.exists() == (after == 2)
        with pytest.raises(ZeroDivisionError), publish(out, known=KNOWN):
            raise ZeroDivisionError
        assert os.listdir(out) == ["old" if after == 1 else "new"]
        assert os.listdir(tmp_path) == ["out"]


def test_killed_run_is_swept_up_and_a_live_one_left_alone(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from runtime.files.atomic import publish
        with publish(Path(sys.argv[1])) as staging:
            (staging / "half").write_text("written")
            print("staged", flush=True)
            time.sleep(60)
        """
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        with publish(out, known=KNOWN) as staging:
            (staging / "a").write_text("one")
        left = [p.name for p in tmp_path.iterdir() if p.name != "out"]
        assert len(left) == 1
        assert left[0].startswith(".out.staging-")
        (tmp_path / ".output.staging-other").mkdir()  # of another destination
        process.send_signal(signal.SIGKILL)
        process.wait()
    with publish(out, known=KNOWN) as staging:
        (staging / "a").write_text("two")
    assert (out / "a").read_text() == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".output.staging-other", "out"]
