"""Models of the hub: their names, one commit for every file, and one line for what fails."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ouroboros import convert, load_checkpoint
from ouroboros.errors import ConfigError, OuroborosError, SourceError
from ouroboros.source.locate import load_source, locate
from ouroboros.source.weights import open_original
from tests.support.hub import FakeHub, fill_cache, serving
from tests.support.tiny import OPTIONS

FIRST, SECOND = "a1" * 20, "b2" * 20


@pytest.fixture
def original(tiny_original: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    shutil.copytree(tiny_original, folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9]}))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which can't be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that can be reached."""
    with serving(FakeHub()) as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_converted(out: Path, original: Path, commit: str) -> None:
    config = load_checkpoint(out)[0].config
    source = config.source
    weights = sha256(original / "model.safetensors")
    assert source["name"] == "acme/tiny"
    assert source["commit"] == commit
    assert source["license"] == "apache-2.0"
    assert source["url"] == "https://huggingface.co/acme/tiny"
    assert source["sha256"] == hashlib.sha256(bytes.fromhex(weights)).hexdigest()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert source["files"][name] == sha256(original / name)
    attribution = (out / "ATTRIBUTION").read_text()
    assert attribution.startswith("The weights derive from acme/tiny; its licence")
    assert "\nOrganization: acme\n" in attribution
    assert "\nSource: https://huggingface.co/acme/tiny\n" in attribution
    assert (out / "LICENSE").read_text() == "The licence of the tiny model.\n"
    assert commit not in attribution


@pytest.mark.parametrize("way", ["id", "path", "slash", "dots", "link", "link to link", "relative"])
def test_a_model_in_the_cache_has_its_hub_name_however_it_is_named(
    original: Path, cache: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = fill_cache(cache, "acme/tiny", original, FIRST)
    (tmp_path / "link").symlink_to(snapshot)
    (tmp_path / "second").symlink_to("link")
    if way == "relative":
        monkeypatch.chdir(snapshot)
    source = {
        "id": "acme/tiny",
        "path": str(snapshot),
        "slash": f"{snapshot}/",
        "dots": f"{snapshot}/../{FIRST}/.",
        "link": str(tmp_path / "link"),
        "link to link": "second",
        "relative": ".",
    }[way]
    place = locate(source)
    assert (place.name, place.place.repo, place.place.commit) == ("acme/tiny", "acme/tiny", FIRST)
    if way in ("id", "link"):
        convert(source, tmp_path / "out", **OPTIONS)
        check_converted(tmp_path / "out", original, FIRST)


def test_a_model_without_an_owner_and_one_with_dashes(original: Path, cache: Path) -> None:
    for repo in ("tiny", "acme/tiny-1-b", "ac-me/tiny_1.5"):
        snapshot = fill_cache(cache, repo, original, FIRST)
        assert locate(str(snapshot)).name == locate(repo).name == repo
    assert locate(str(snapshot)).place.facts["organization"] == "ac-me"
    assert locate("tiny").place.facts["organization"] == ""


def test_local_directories_keep_their_own_name(original: Path, monkeypatch: Any) -> None:
    assert locate(str(original)).name == locate(f"{original}/").name == "original"
    monkeypatch.chdir(original)
    assert locate(".").name == locate("./").name == locate("../original/.").name == "original"
    place = locate(original).place
    assert (place.repo, place.commit, place.facts) == ("", "", {})
    monkeypatch.setenv("HOME", str(original.parent))
    assert locate("~/original").name == "original"


def test_local_sources_record_the_hashes_of_their_files(original: Path, tmp_path: Path) -> None:
    (original / "other.safetensors").write_bytes(b"not read")
    convert(original, tmp_path / "out", **OPTIONS)
    source = load_checkpoint(tmp_path / "out")[0].config.source
    assert source["files"]["model.safetensors"] == sha256(original / "model.safetensors")
    assert "other.safetensors" not in source["files"]
    assert "commit" not in source
    assert source["sha256"] == load_source(str(original)).sha256


def change(original: Path, target: Path) -> Path:
    """A later state of the model: other weights, config, tokenizer, licence and defaults."""
    shutil.copytree(original, target)
    tensors = load_file(target / "model.safetensors")
    save_file(
        {k: v + 1 for k, v in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    (target / "LICENSE").write_text("Another licence.\n")
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    return target


@pytest.mark.parametrize("form", ["whole", "sharded", "pickled"])
def test_every_file_is_of_the_commit_that_was_main_at_first(
    original: Path, hub: FakeHub, tmp_path: Path, form: str
) -> None:
    """The branch moves as soon as config.json was served."""
    tensors = load_file(original / "model.safetensors")
    names = ["model.safetensors"]
    if form == "sharded":
        names = ["one.safetensors", "two.safetensors"]
        halves = (dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:]))
        for name, half in zip(names, halves, strict=True):
            save_file(half, original / name, metadata={"format": "pt"})
        index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
        (original / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    if form == "pickled":
        names = ["pytorch_model.bin"]
        torch.save(tensors, original / names[0])
    hub.add("acme/tiny", FIRST, original)
    later = change(original, tmp_path / "later")
    hub.add("acme/tiny", SECOND, later)
    if form != "whole":
        for commit in (FIRST, SECOND):
            del hub.models["acme/tiny"][commit]["model.safetensors"]
    hub.after["config.json"] = lambda: hub.main.update({"acme/tiny": SECOND})
    convert("acme/tiny", tmp_path / "out", **OPTIONS)
    assert hub.main["acme/tiny"] == SECOND
    assert [path for path in hub.asked if SECOND in path] == []
    model, _ = load_checkpoint(tmp_path / "out")
    assert torch.equal(model.embed_tokens.weight, tensors["model.embed_tokens.weight"])
    assert model.generation_config.eos_token_id == [2, 9]
    assert model.config.base().rms_norm_eps == 1e-6
    assert (tmp_path / "out" / "LICENSE").read_text() == "The licence of the tiny model.\n"
    assert model.config.source["commit"] == FIRST
    assert {n: model.config.source["files"][n] for n in names} == {
        name: sha256(original / name) for name in names
    }
    if form == "whole":
        check_converted(tmp_path / "out", original, FIRST)


def test_what_does_not_convert_is_refused_before_its_weights_are_fetched(
    original: Path, hub: FakeHub
) -> None:
    config = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps({**config, "model_type": "mambo"}))
    hub.add("acme/tiny", FIRST, original)
    with pytest.raises(ConfigError, match="'mambo' can't be converted"):
        convert("acme/tiny", "out", **OPTIONS)
    assert [path for path in hub.asked if "safetensors" in path and "resolve" in path] == []


def test_pickled_weights_are_not_fetched_where_there_are_safetensors(
    original: Path, hub: FakeHub
) -> None:
    (original / "pytorch_model.bin").write_bytes(b"0" * 100)
    hub.add("acme/tiny", FIRST, original)
    assert open_original(locate("acme/tiny")).commit == FIRST
    assert [path for path in hub.asked if "pytorch_model" in path] == []


def with_files(folder: Path, **files: str) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_what_the_hub_can_not_give_is_one_line_with_its_cure(original: Path, hub: FakeHub) -> None:
    hub.add("acme/gated", FIRST, original)
    hub.gated.add("acme/gated")
    hub.datasets.add("acme/texts")
    hub.add("acme/adapter", FIRST, with_files(original, adapter_config__json="{}"))
    hub.add("acme/quants", FIRST, with_files(original, **{"tiny-Q4__gguf": "x"}))
    hub.add("acme/empty", FIRST, with_files(original, README__md="Hi"))
    for repo, words in {
        "acme/gated": r"a gated model; accept its terms at https://.*/acme/gated and log in: `hf a",
        "acme/texts": "a data set, not a model",
        "acme/adapter": r"holds a PEFT adapter .* merge it into its base model",
        "acme/quants": r"holds \.gguf files .*`hf download acme/quants tiny-Q4\.gguf`",
        "acme/empty": r"no config\.json in it; give",
        "acme/nothing": r"nor a model on the hub; .*if the model is private, log in: `hf auth",
    }.items():
        with pytest.raises(SourceError, match=f"^{repo}: .*{words}") as caught:
            convert(repo, "out", **OPTIONS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("modls/llama", r"did you mean models/llama\? .*check the path"),
        ("models/lama", r"did you mean models/llama\?"),
        ("models/LLAMA", r"did you mean models/llama or models/llama\.gguf\?"),
        ("./modls/llama", r"no such directory; did you mean models/llama\? If not, check the path"),
        ("models/deep/x", "no such directory; check the path"),
        ("../nowhere/at/all", "no such directory; check the path"),
        ("~/x-not-there", "no such directory; check the path"),
        ("C:\\models\\llama", "no such directory; check the path"),
        ("models/llama.ggfu", r"did you mean models/llama\.gguf or models/llama\?"),
        ("models/lama.gguf", r"no such file; did you mean models/llama\.gguf"),
        ("acme/tiny", r"no directory of that name, and no model in the hub's cache \(HF_HUB_OFF"),
        ("tiny", "no directory of that name, and no model in the hub's cache"),
        ("", "the source is empty; give a Hugging Face model directory"),
        ("notes.txt", r"neither a model directory nor a \.gguf file"),
    ],
)
def test_mistyped_paths_are_named_with_what_is_near(
    cache: Path, tmp_path: Path, source: str, words: str
) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    (tmp_path / "models" / "llama.gguf").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SourceError, match=words) as caught:
        locate(source)
    assert "\n" not in str(caught.value)
    assert "internet" not in str(caught.value)


def test_an_unreachable_hub_is_said_so(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"acme/tiny: .*the hub can't be reached.*connection"):
        locate("acme/tiny")


def test_a_folder_of_the_cache_without_its_snapshot_is_named(original: Path, cache: Path) -> None:
    snapshot = fill_cache(cache, "acme/tiny", original, FIRST)
    for folder in (snapshot.parent, snapshot.parent.parent):
        with pytest.raises(SourceError, match=f"give the model in it: {snapshot}"):
            locate(str(folder))


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised by gptq"),
        ({"quant_method": "awq"}, "quantised by awq"),
        ({"quant_method": "fp8"}, "quantised by fp8"),
        ({"quant_method": "compressed-tensors"}, "quantised by compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantised by bitsandbytes"),
        ({"load_in_8bit": True}, "quantised by bitsandbytes"),
        ({"bits": 3}, "quantised by an unknown method"),
        ("x", "quantised by an unknown method"),
    ],
)
def test_quantised_models_are_refused_by_the_methods_name(
    original: Path, quantization: Any, words: str
) -> None:
    config = json.loads((original / "config.json").read_text())
    config["quantization_config"] = quantization
    (original / "config.json").write_text(json.dumps(config))
    with pytest.raises(OuroborosError, match=f"{words} .*give the unquantised original") as caught:
        locate(str(original))
    assert "\n" not in str(caught.value)
