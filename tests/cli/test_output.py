"""Files that commands write: whole or not at all, on a disk that is full too."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from cli.errors import CommandError, describe
from cli.output import require_writable, write_json, write_output
from tests.support.processes import call_ouro, limited_files

CONVERT = ("--prelude", 2, "--coda", 2, "--recurrent", 3, "--rank", 4, "--depth", 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_require_writable_names_what_is_wrong(tmp_path: Path) -> None:
    require_writable(None, [])
    require_writable(tmp_path / "new.json", [None, tmp_path / "other.json"])
    with pytest.raises(CommandError, match="is a directory; give a file"):
        require_writable(tmp_path, [])
    with pytest.raises(CommandError, match="its directory is not there"):
        require_writable(tmp_path / "no" / "new.json", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match="its directory is not there"):
        require_writable(tmp_path / "file" / "new.json", [])


def test_what_a_command_reads_is_not_written_over(tiny_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The sea is wide. " * 40)
    before = contents(tmp_path) | contents(tiny_bundle)
    (tmp_path / "link").symlink_to(tiny_bundle)
    licence, inside = tmp_path / "link" / "LICENSE", tiny_bundle / "new.png"
    both = tmp_path / "both.svg"
    for line, reason in (
        (("check", tiny_bundle, "--json", licence), "lies in"),
        (("check", tiny_bundle, "--plot", inside), "lies in"),
        (("check", tiny_bundle, "--json", both, "--plot", both), "is"),
        (("bench", tmp_path / "link", "--json", tiny_bundle / "LICENSE"), "lies in"),
        (("eval", tiny_bundle, "--text", text, "--json", text), "is"),
    ):
        done = call_ouro(*line)
        assert done.returncode == 1
        wanted = rf"error: \S+ {reason} \S+, which this command uses; give a file elsewhere\n"
        assert re.fullmatch(wanted, done.stderr), done.stderr
    assert contents(tmp_path) | contents(tiny_bundle) == before


def test_write_json_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    for number in (1, 2):
        write_json(file, {"a": number})
        assert file.read_text() == f'{{\n  "a": {number}\n}}\n'
    assert list(tmp_path.iterdir()) == [file]
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


def test_write_output_follows_a_link_and_writes_to_a_device(tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_text("old")
    (tmp_path / "link.json").symlink_to(real)
    write_json(tmp_path / "link.json", 1)
    assert real.read_text() == "1\n"
    assert (tmp_path / "link.json").is_symlink()
    write_json(Path(os.devnull), 1)
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_write_output_that_fails_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "figures.json"
    file.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises((CommandError, KeyboardInterrupt)) as caught:
        write_output(file, write)
    assert contents(tmp_path) == {"figures.json": b"old"}
    if isinstance(error, OSError):
        assert "no space left" in (describe(caught.value) or "")


def test_check_on_a_full_disk_keeps_the_old_file(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "parity.json"
    file.write_text("old")
    with limited_files():
        result = call_ouro("check", tiny_bundle, "--json", file)
    assert result.returncode == 1
    assert result.stderr == f"error: {file}: can't be written: File too large; it is as it was\n"
    assert "PASS" in result.stdout
    assert contents(tmp_path) == {"parity.json": b"old"}


def test_convert_on_a_full_disk_keeps_the_old_checkpoint(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_checkpoint, out)
    before = contents(tmp_path)
    with limited_files():
        result = call_ouro("convert", tiny_original, out, *CONVERT)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {out}: can't write the checkpoint: ")
    assert len(result.stderr.splitlines()) == 1
    assert contents(tmp_path) == before
