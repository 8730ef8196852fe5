"""Nothing is lost: whatever writes refuses a place that holds anything but what it may replace."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import TrtOptions, export_bundle, write_triton
from export.errors import ExportError
from ouroboros import convert, load_checkpoint, save_checkpoint
from ouroboros.errors import OuroborosError
from ouroboros.training.run import train
from runtime.bundle.reader import open_bundle
from runtime.files import atomic
from runtime.files.atomic import check_place, publish
from runtime.files.destinations import (
    BUNDLE,
    CHECKPOINT,
    EMPTY,
    FILE,
    FOREIGN,
    MISSING,
    MODEL,
    RUN,
    TRITON,
    find_strangers,
    kind_of,
)
from tests.support.paths import ROOT
from tests.support.training import options

THESIS = "years of work"
KNOWN = ("both", "old", "new", "kept")


def snapshot(folder: Path) -> dict[str, str]:
    """Every entry below a folder and what it holds, links as where they lead."""
    return {
        str(path.relative_to(folder)): f"-> {os.readlink(path)}"
        if path.is_symlink()
        else "folder"
        if path.is_dir()
        else f"{path.stat().st_size} {path.read_bytes()[:64].hex()}"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("The sea is wide and the sky is high. " * 200)
    return path


@pytest.fixture
def writers(
    tiny_original: Path, tiny_checkpoint: Path, tiny_bundle: Path, corpus: Path
) -> dict[str, Callable[[Path], object]]:
    """Everything that writes a directory, as a function of where."""

    def save(out: Path) -> None:
        save_checkpoint(*load_checkpoint(tiny_checkpoint), out)

    return {
        "convert": lambda out: convert(str(tiny_original), out, **KEPT),
        "save_checkpoint": save,
        "train": lambda out: train(tiny_checkpoint, out, options(corpus, train_steps=1)),
        "export": lambda out: export_bundle(tiny_checkpoint, out, max_depth=2),
        "triton": lambda out: write_triton(tiny_bundle, out.parent, name=out.name),
    }


KEPT: dict[str, Any] = {"prelude": 2, "coda": 2, "recurrent": 3, "bridge": "none"}
WRITERS = ("convert", "save_checkpoint", "train", "export", "triton")


def make_place(kind: str, folder: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> Path:
    """A destination that must be left alone; everything lies below `folder`."""
    out = folder / "out"
    match kind:
        case "folder":
            out.mkdir()
            (out / "thesis.txt").write_text(THESIS)
        case "hidden":
            out.mkdir()
            (out / ".thesis.old-1.txt").write_text(THESIS)
        case "file":
            out.write_text(THESIS)
        case "link to a file":
            (folder / "thesis.txt").write_text(THESIS)
            out.symlink_to(folder / "thesis.txt")
        case "link to a folder":
            (folder / "work").mkdir()
            (folder / "work" / "thesis.txt").write_text(THESIS)
            out.symlink_to(folder / "work")
        case "model":
            out.mkdir()
            (out / "config.json").write_text('{"model_type": "llama"}')
        case "checkpoint with a note":
            shutil.copytree(tiny_checkpoint, out)
            (out / "notes.txt").write_text(THESIS)
        case "bundle with a note":
            shutil.copytree(tiny_bundle, out)
            (out / "notes").mkdir()
            (out / "notes" / "thesis.txt").write_text(THESIS)
        case "named like ours":
            shutil.copytree(tiny_checkpoint, out)
            (out / "vocab.txt").mkdir()
            (out / "vocab.txt" / "thesis.txt").write_text(THESIS)
        case "run of somebody":
            shutil.copytree(tiny_checkpoint, out)
            (out / "state" / "step-10").mkdir(parents=True)
            (out / "state" / "step-10" / "optimizer.pt").write_text(THESIS)
            (out / "notes.txt").write_text(THESIS)
        case "below a file":
            (folder / "thesis.txt").write_text(THESIS)
            out = folder / "thesis.txt" / "out"
    return out


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "kind",
    [
        "folder",
        "hidden",
        "file",
        "link to a file",
        "link to a folder",
        "model",
        "checkpoint with a note",
        "bundle with a note",
        "named like ours",
        "run of somebody",
        "below a file",
    ],
)
def test_what_is_somebodys_is_left_alone(
    writers: dict[str, Callable[[Path], object]],
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    writer: str,
    kind: str,
) -> None:
    out = make_place(kind, tmp_path, tiny_checkpoint, tiny_bundle)
    before = snapshot(tmp_path)
    with pytest.raises((OuroborosError, ExportError)) as caught:
        writers[writer](out)
    assert snapshot(tmp_path) == before
    assert "\n" not in str(caught.value)
    assert "give " in str(caught.value)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("where", [".", "..", "home"])
def test_where_somebody_stands_is_left_alone(
    writers: dict[str, Callable[[Path], object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
    where: str,
) -> None:
    """Also where it is empty: a shell would stand in a directory that is gone."""
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    home = tmp_path / "users" / "me"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    out = {".": Path(), "..": Path(".."), "home": home}[where]
    if writer == "triton":  # a repository is written into, and its models have names
        out = here if where == "." else out.resolve()
    before = snapshot(tmp_path)
    with pytest.raises((OuroborosError, ExportError), match="directory"):
        writers[writer](out)
    assert snapshot(tmp_path) == before


def test_input_is_never_the_output(
    tiny_original: Path, tiny_checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    original, checkpoint = tmp_path / "models" / "original", tmp_path / "models" / "checkpoint"
    shutil.copytree(tiny_original, original)
    shutil.copytree(tiny_checkpoint, checkpoint)
    gguf = tmp_path / "models" / "model.gguf"
    gguf.write_bytes(b"GGUF")
    text = tmp_path / "run" / "text.txt"
    text.parent.mkdir()
    text.write_text(corpus.read_text())
    (tmp_path / "link").symlink_to(original)
    attempts: list[Callable[[], Any]] = [
        lambda: convert(str(original), original, **KEPT),
        lambda: convert(str(original), tmp_path / "link", **KEPT),
        lambda: convert(str(tmp_path / "link"), original, **KEPT),
        lambda: convert(str(original), tmp_path / "models", **KEPT),
        lambda: convert(str(gguf), tmp_path / "models", **KEPT),
        lambda: convert(str(gguf), gguf, **KEPT),
        lambda: train(checkpoint, checkpoint, options(corpus)),
        lambda: train(checkpoint, tmp_path / "models", options(corpus)),
        lambda: train(checkpoint, text.parent, options(text)),
        lambda: export_bundle(checkpoint, checkpoint, max_depth=2),
        lambda: export_bundle(checkpoint, tmp_path / "models", max_depth=2),
        lambda: export_bundle(
            checkpoint,
            checkpoint.parent,
            format="trt",
            max_depth=2,
            trt=TrtOptions(refit_from=checkpoint),
        ),
    ]
    before = snapshot(tmp_path)
    for attempt in attempts:
        with pytest.raises((OuroborosError, ExportError)):
            attempt()
        assert snapshot(tmp_path) == before


def test_kinds(
    tiny_original: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    def make(name: str, files: dict[str, str]) -> Path:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    (tmp_path / "empty" / ".out.staging-0123456789ab").mkdir(parents=True)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    signed = 'parameters { key: "ouroboros.checkpoint_sha256" value: { string_value: "0" } }'
    ours = '{"model_type": "ouroboros"}'
    found = {
        tmp_path / "missing": MISSING,
        tmp_path / "nowhere": MISSING,
        tmp_path / "empty": EMPTY,
        make("text", {"a": ""}) / "a": FILE,
        tiny_original: MODEL,
        tiny_checkpoint: CHECKPOINT,
        tiny_bundle: BUNDLE,
        make("run", {"state/step-3/hashes.json": "{}"}): RUN,
        make("new run", {"config.json": ours, "logs/events": ""}): RUN,
        make("triton", {"config.pbtxt": signed, "1/model.onnx": ""}): TRITON,
        make("pack", {"manifest.json": '{"format_version": 2, "header": {}}'}): FOREIGN,
        make("unsigned", {"config.pbtxt": f"# {signed}"}): FOREIGN,
        make("deep", {"manifest.json": "[" * 100_000, "config.json": "3"}): FOREIGN,
        make("thesis", {"thesis.txt": THESIS}): FOREIGN,
    }
    assert {path: kind_of(path) for path in found} == found
    assert find_strangers(tiny_checkpoint, CHECKPOINT) == []
    assert find_strangers(tiny_bundle, BUNDLE) == []


def test_what_was_written_before_is_replaced(
    writers: dict[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    for writer in ("save_checkpoint", "train"):
        out = tmp_path / writer
        writers[writer](out)
        assert find_strangers(out, kind_of(out)) == []
    (tmp_path / "link").symlink_to(tmp_path / "save_checkpoint")
    writers["save_checkpoint"](tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    # A run's state is lost neither to a checkpoint nor to a conversion.
    with pytest.raises(OuroborosError, match="is a training run, so it is left alone"):
        writers["save_checkpoint"](tmp_path / "train")
    with pytest.raises(OuroborosError, match="is a training run, so it is left alone"):
        writers["convert"](tmp_path / "train")


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write() -> None:
        with publish(out) as staging:
            (staging / "new").write_text("new")
            out.mkdir()
            (out / "thesis.txt").write_text(THESIS)

    with pytest.raises(FileExistsError, match="left alone"):
        write()
    assert os.listdir(tmp_path) == ["out"]
    assert (out / "thesis.txt").read_text() == THESIS


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every existing directory keeps its place, as a mount point does."""
    monkeypatch.setattr(atomic, "keeps_its_place", Path.is_dir)


@pytest.mark.slow
@pytest.mark.usefixtures("fixed")
def test_contents_are_exchanged_where_a_directory_keeps_its_place(
    writers: dict[str, Callable[[Path], object]], tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "export")
    for writer, kind in (("save_checkpoint", CHECKPOINT), ("train", RUN), ("export", BUNDLE)):
        out = tmp_path / writer
        out.mkdir(exist_ok=True)
        number = out.stat().st_ino
        writers[writer](out)
        assert out.stat().st_ino == number
        assert kind_of(out) == kind
        assert not [name for name in os.listdir(out) if name.startswith(".")]
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert (tmp_path / "train" / "state").is_dir()
    assert open_bundle(tmp_path / "export").manifest.depth.max == 2


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


def test_bundles_files_are_those_its_manifest_lists(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    manifest["files"].pop("LICENSE")
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    assert find_strangers(tmp_path / "bundle", BUNDLE) == ["LICENSE"]
