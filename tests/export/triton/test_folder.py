"""Where a Triton model is written: only our own is replaced, and no server sees half of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from export.errors import ExportError
from export.triton.config import write_triton
from export.triton.folder import SIGN, publish_model
from runtime.bundle.reader import open_bundle
from runtime.errors import BundleError


def write_foreign(models: Path, name: str, config: str) -> None:
    """A model of somebody else's."""
    (models / name / "1").mkdir(parents=True)
    (models / name / "1" / "model.py").write_text("theirs")
    (models / name / "config.pbtxt").write_text(config)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_only_the_models_own_folder_is_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_foreign(models, "bert", 'name: "bert"\nbackend: "python"\n')
    (models / "README").write_text("theirs")
    theirs = snapshot(models)
    (models / "ouroboros").mkdir()  # empty: nothing to lose
    write_triton(tiny_bundle, models)
    first = snapshot(models)
    assert first.items() > theirs.items()
    (models / "ouroboros" / "1" / "old").write_text("of the model before")
    write_triton(tiny_bundle, models)
    assert snapshot(models) == first
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.mark.parametrize(
    "config",
    [
        'name: "ouroboros"\nbackend: "python"\n',
        'name: "ouroboros"\n# key: "ouroboros.checkpoint_sha256"\n',
        None,
    ],
)
def test_folder_of_somebody_else_is_left_alone(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None
) -> None:
    models = tmp_path / "models"
    write_foreign(models, "ouroboros", config or "")
    if config is None:
        (models / "ouroboros" / "config.pbtxt").unlink()
    before = snapshot(tmp_path)
    with pytest.raises(ExportError, match="models/ouroboros is not of Ouroboros, so it is left"):
        write_triton(tiny_bundle, models)
    assert refuse_at_once(monkeypatch, tmp_path / "bundle", models).startswith(
        f"error: {models / 'ouroboros'} is not of Ouroboros, so it is left alone"
    )
    assert snapshot(tmp_path) == before


def refuse_at_once(patch: pytest.MonkeyPatch, out: Path, models: Path) -> str:
    """The one line that `ouro export --triton` says before it exports anything."""

    def export(*_: Any, **__: Any) -> None:
        raise AssertionError("exported what could not be written")

    patch.setattr("export.bundle.export_bundle", export)
    arguments = ["export", "checkpoint", str(out), "--triton", str(models)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    return result.stderr


@pytest.mark.parametrize("name", ["models", "models/ouroboros"])
def test_file_in_the_way_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ExportError, match=f"{name} is "):
        write_triton(tiny_bundle, tmp_path / "models")
    said = refuse_at_once(monkeypatch, tmp_path / "bundle", tmp_path / "models")
    assert f"{tmp_path / name} is " in said
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("bundle", "models", "words"),
    [
        ("bundle", "bundle", "bundle is the bundle itself"),
        ("models/bundle", "models", "models holds the bundle"),
        ("bundle", "bundle/triton/models", "models lies in the bundle"),
        ("bundle", "link", "link is the bundle itself"),
        ("bundle", "link/models", "models lies in the bundle"),
        ("linked/bundle", "linked", "linked holds the bundle"),
        ("bundle", "other", "other/ouroboros is the bundle itself"),
    ],
)
def test_repository_and_bundle_lie_apart(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bundle: str,
    models: str,
    words: str,
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ouroboros").symlink_to(tmp_path / "bundle")
    said = refuse_at_once(monkeypatch, tmp_path / bundle, tmp_path / models)
    assert words in said
    assert said.endswith("give --triton a directory apart from it\n")
    assert not (tmp_path / "bundle").exists()  # nothing was written to find that out
    shutil.copytree(tiny_bundle, tmp_path / bundle)
    with pytest.raises(ExportError, match=words):
        write_triton(tmp_path / bundle, tmp_path / models)
    open_bundle(tmp_path / bundle)


def test_running_server_sees_no_model_that_is_half_written(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_foreign(models, "bert", "")
    with publish_model(models / "ouroboros") as staging:
        (staging / "config.pbtxt").write_text("")
        assert [path.name for path in models.iterdir()] == ["bert"]
    assert sorted(path.name for path in models.iterdir()) == ["bert", "ouroboros"]


def test_repository_without_room_beside_it_is_written_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.triton.folder.os.access", lambda path, _: Path(path) != tmp_path)
    models = tmp_path / "models"
    with publish_model(models / "ouroboros") as staging:
        (staging / "config.pbtxt").write_text("")
        (hidden,) = models.iterdir()
        # What Triton would need to load anything from it: a config.pbtxt or a version.
        assert not (hidden / "config.pbtxt").exists()
        assert not any(path.name.isdigit() for path in hidden.iterdir())
        assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert [path.name for path in models.iterdir()] == ["ouroboros"]


@pytest.mark.parametrize("room", [True, False])
def test_model_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    def fail(models: Path) -> None:
        with publish_model(models / "ouroboros") as staging:
            (staging / "config.pbtxt").write_text("half")
            raise OSError("the disk is full")

    monkeypatch.setattr(
        "export.triton.folder.os.access", lambda path, _: room or Path(path) != tmp_path
    )
    with pytest.raises(OSError, match="full"):
        fail(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    write_foreign(tmp_path / "old", "ouroboros", f'key: "{SIGN}"')
    with pytest.raises(OSError, match="full"):
        fail(tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {*snapshot(tmp_path / "old")} == {"ouroboros/1/model.py", "ouroboros/config.pbtxt"}


def test_damaged_bundle_leaves_the_old_repository(tiny_bundle: Path, tmp_path: Path) -> None:
    write_triton(tiny_bundle, tmp_path / "models")
    before = (tmp_path / "models" / "ouroboros" / "config.pbtxt").read_bytes()
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with (tmp_path / "bundle" / "model.onnx.data").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(BundleError, match="is damaged or was changed"):
        write_triton(tmp_path / "bundle", tmp_path / "models", name="other")
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["ouroboros"]
    assert (tmp_path / "models" / "ouroboros" / "config.pbtxt").read_bytes() == before
