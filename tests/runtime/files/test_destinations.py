"""Nothing is lost: whatever writes refuses a place that holds anything but what it may replace."""

from __future__ import annotations

import json
import os
import shutil
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
from runtime.files.atomic import publish
from runtime.files.destinations import (
    BUNDLE,
    CHECKPOINT,
    DAMAGED,
    EMPTY,
    FILE,
    FOREIGN,
    MISSING,
    MODEL,
    RUN,
    TRITON,
    Obstacle,
    find_obstacle,
    find_strangers,
    kind_of,
)
from tests.support.folders import snapshot
from tests.support.training import options

THESIS = "years of work"


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
        make("cut", {"manifest.json": '{"format_vers'}): DAMAGED,
        make("emptied", {"manifest.json": "{}", "manifest.sha256": ""}): DAMAGED,
        make("alone", {"manifest.sha256": ""}): DAMAGED,
        make("app", {"manifest.json": '{"name": "app"}', "model.onnx": ""}): FOREIGN,
        make("unsigned", {"config.pbtxt": f"# {signed}"}): FOREIGN,
        make("deep", {"manifest.json": "[" * 100_000, "config.json": "3"}): FOREIGN,
        make("thesis", {"thesis.txt": THESIS}): FOREIGN,
    }
    assert {path: kind_of(path) for path in found} == found
    assert find_strangers(tiny_checkpoint, CHECKPOINT) == []
    assert find_strangers(tiny_bundle, BUNDLE) == []


def test_an_obstacle_is_a_problem_and_a_cure(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert find_obstacle(out) is None
    out.touch()
    found = find_obstacle(out)
    assert found == Obstacle("is a file", "give a directory")
    assert f"{out} {found}" == f"{out} is a file; give a directory"
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/manifest.sha256").touch()
    found = find_obstacle(tmp_path / "cut", (BUNDLE,))
    assert found == Obstacle(
        "is a damaged bundle or not of Ouroboros, so it is left alone", "give a new directory"
    )


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


def test_bundles_files_are_those_its_manifest_lists(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    manifest["files"].pop("LICENSE")
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    assert find_strangers(tmp_path / "bundle", BUNDLE) == ["LICENSE"]
