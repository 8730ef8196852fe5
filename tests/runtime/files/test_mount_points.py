"""Directories that keep their place, as mount points do: what they hold is exchanged, or stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runtime.files import atomic
from runtime.files.atomic import check_place, publish
from tests.support.folders import snapshot
from tests.support.paths import ROOT

KNOWN = ("both", "old", "new", "kept")


def fill(out: Path, keep: tuple[str, ...] = ()) -> None:
    with publish(out, keep, known=KNOWN) as staging:
        for name in ("both", "new"):
            (staging / name).write_text("new")


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize("after", range(8))
def test_exchange_that_fails_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """After each number of renames; and the same where the process is killed there."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("both", "old", "kept"):
        (out / name).write_text("old")
    rename, count = Path.rename, 0

    def fail(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == after + 1:
            raise OSError(errno.EIO, "no more")
        return rename(self, target)

    before = snapshot(out)
    monkeypatch.setattr(Path, "rename", fail)
    if after < 4:  # two entries go, two come
        with pytest.raises(OSError, match="no more"):
            fill(out, keep=("kept",))
        assert snapshot(out) == before
        monkeypatch.setattr(atomic, "_put_back", lambda *_: None)  # as if killed
        monkeypatch.setattr(atomic.shutil, "rmtree", lambda *_, **__: None)
        count = 0
        with pytest.raises(OSError, match="no more"):
            fill(out, keep=("kept",))
        monkeypatch.undo()
        monkeypatch.setattr(atomic, "keeps_its_place", Path.is_dir)
        assert snapshot(out) != before
        assert check_place(out, known=KNOWN) is None
        left = {name: held for name, held in snapshot(out).items() if ".staging-" not in name}
        assert left == before
    fill(out, keep=("kept",))
    held = {name: (out / name).read_text() for name in os.listdir(out)}
    assert held == {"both": "new", "new": "new", "kept": "old"}


def test_directory_that_turns_out_to_keep_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    (out / "kept").write_text("old")

    def busy(staging: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(atomic, "_replace", busy)
    fill(out, keep=("kept",))
    assert sorted(os.listdir(out)) == ["both", "kept", "new"]
    assert os.listdir(tmp_path) == ["out"]


def run_mounted(mount: str, script: str, out: Path) -> list[str]:
    """What a script prints in a mount namespace of its own; skips where the system gives none."""
    command = f'{mount} && {sys.executable} -c "$SCRIPT" {out}'
    environment = {**os.environ, "SCRIPT": script, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["tmpfs", "bind"])
def test_real_mount_points(tmp_path: Path, how: str) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    for folder in (out, other):
        folder.mkdir()
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom runtime.files.atomic import publish\n"
        "from runtime.files.destinations import keeps_its_place\n"
        "out = Path(sys.argv[1])\nassert keeps_its_place(out)\n"
        "for text in ('one', 'two'):\n"
        "    with publish(out, known=('one', 'two')) as staging:\n"
        "        (staging / text).write_text(text)\n"
        "    Path(out, 'lost+found').mkdir(exist_ok=True)\n"
        "print(*sorted(os.listdir(out)))\n"
    )
    mount = {"tmpfs": f"mount -t tmpfs none {out}", "bind": f"mount --bind {other} {out}"}[how]
    assert run_mounted(mount, script, out) == ["lost+found two"]


def test_mount_points_below_are_neither_emptied_nor_moved(tmp_path: Path) -> None:
    """A run's state on a volume of its own stays there; any other is refused."""
    out = tmp_path / "out"
    (out / "state").mkdir(parents=True)
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from runtime.files.atomic import publish
        from runtime.files.destinations import CHECKPOINT, RUN
        out = Path(sys.argv[1])
        (out / "state" / "step-1").mkdir()
        for text in ("one", "two"):
            with publish(out, ("state", "logs"), replaces=(CHECKPOINT, RUN)) as staging:
                (staging / "config.json").write_text(text)
        print((out / "config.json").read_text(), os.path.ismount(out / "state"))
        for replaces, known in (((CHECKPOINT,), ()), ((), ("config.json",))):
            try:
                with publish(out, ("state",), replaces=replaces, known=known):
                    pass
            except FileExistsError as error:
                print(error)
        print(*os.listdir(out / "state"))
        """
    )
    mount = f"mount -t tmpfs none {out / 'state'}"
    first, refused, again, held = run_mounted(mount, script, out)
    assert first == "two True"
    assert refused == f"{out} is a training run, so it is left alone; give a new directory"
    assert again == refused
    assert held == "step-1"


def test_mount_point_in_what_would_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "deep" / "disk").mkdir(parents=True)
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from runtime.files.atomic import publish
        out = Path(sys.argv[1])
        (out / "deep" / "disk" / "file").write_text("held")
        try:
            with publish(out, known=("deep/disk/file",)) as staging:
                (staging / "new").write_text("new")
        except FileExistsError as error:
            print(error)
        print((out / "deep" / "disk" / "file").read_text())
        """
    )
    refused, held = run_mounted(f"mount -t tmpfs none {out / 'deep' / 'disk'}", script, out)
    assert refused.startswith(f"{out} holds the mount point deep/disk, which is not replaced")
    assert held == "held"
