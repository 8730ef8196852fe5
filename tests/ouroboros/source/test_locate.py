"""Original models: .gguf files, hub ids, tokenizers, licences, and code that is never run."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ouroboros import convert, load_checkpoint
from ouroboros.errors import CheckpointError, ConfigError, SourceError
from ouroboros.model.auto_map import AUTO_MAP
from ouroboros.source import papers
from ouroboros.source.locate import load_source, locate
from runtime.files.hashing import hash_file
from tests.support.gguf import write_gguf
from tests.support.processes import call_ouro

SMALL: dict[str, Any] = {
    "prelude": 2, "coda": 2, "rank": 4, "max_depth": 6, "depth": 3, "bridge": "none"
}  # fmt: skip


def ouro(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a directory, with nobody at the keyboard."""
    with contextlib.chdir(cwd):
        return call_ouro(*arguments)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_model_is_hashed_for_who_asks(
    tiny_original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def count(file: Path) -> str:
        hashed.append(file.name)
        return hash_file(file)

    monkeypatch.setattr("ouroboros.source.weight_files.hash_file", count)
    source = load_source(str(tiny_original))
    assert hashed == []
    assert source.sha256 == source.sha256
    assert sorted(hashed) == sorted(source.files)


def test_gguf_is_the_model_it_was_written_from(tiny_original: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_original, file)
    source = load_source(str(file))
    model = AutoModelForCausalLM.from_pretrained(tiny_original, dtype=torch.float32).eval()
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        found, expected = source.model(ids).logits, model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert source.tokenizer("Hello")["input_ids"] == [258, 78, 78, 81]  # He, l, l, o
    assert (source.name, len(source.sha256)) == ("tiny", 64)


def test_gguf_converts_with_its_licence_and_author(tiny_original: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(
        tiny_original,
        file,
        general__license="apache-2.0",
        general__author="A. N. Author",
        general__organization="Tiny Lab",
        general__source__url="https://example.org/tiny",
    )
    out = tmp_path / "out"
    report = convert(str(file), out, recurrent=2, norm_init="ones", **SMALL)
    assert report.dropped_layers == (3,)
    model, tokenizer = load_checkpoint(out)
    weight = AutoModelForCausalLM.from_pretrained(tiny_original).model.layers[5].self_attn.k_proj
    assert torch.equal(model.coda[1].self_attn.k_proj.weight, weight.weight)
    assert tokenizer is not None
    assert model.config.source["license"] == "apache-2.0"
    assert (out / "LICENSE").read_text() == (
        "No licence file came with tiny; its metadata name the licence apache-2.0: see "
        "https://example.org/tiny.\n"
    )
    assert (out / "ATTRIBUTION").read_text() == (
        "The weights derive from tiny; its licence stands in the file LICENSE.\n"
        "Model: Tiny Llama\n"
        "Organization: Tiny Lab\n"
        "Author: A. N. Author\n"
        "Licence: apache-2.0\n"
        "Source: https://example.org/tiny\n"
        "Changed by Ouroboros: layers 0..1, 4..5 of 6 kept as they were; layers 3 dropped; layer 2 "
        "looped in their place; added a Controller, low-rank bases, per-step norms and a gate.\n"
    )


def test_papers_taken_from_beside_a_gguf_are_named(tiny_original: Path, tmp_path: Path) -> None:
    """A folder of downloads may hold another model's."""
    file, said = tmp_path / "tiny.gguf", list[str]()
    write_gguf(tiny_original, file, general__license="apache-2.0")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    names = ["LICENSE.md", "NOTICE"]
    for name in names:
        (tmp_path / name).write_text(f"The {name} of some model.\n")
    convert(str(file), tmp_path / "out", recurrent=2, norm_init="ones", report=said.append, **SMALL)
    assert (tmp_path / "out/LICENSE").read_text() == "The LICENSE.md of some model.\n"
    assert (
        "taking along what lies beside tiny.gguf: LICENSE.md, NOTICE (the licence is called "
        "apache-2.0); where that is another model's, move the file into a folder of its own"
    ) in said
    for name in names:  # the card says nothing that the file does not
        (tmp_path / name).unlink()
    said.clear()
    convert(str(file), tmp_path / "out", recurrent=2, norm_init="ones", report=said.append, **SMALL)
    assert not [line for line in said if "taking along" in line]


def test_damaged_gguf_is_refused_in_one_line(tiny_original: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_original, file)
    whole = file.read_bytes()
    for content in (whole[:-1000], whole[:5000], whole[:10], b"", b"\0" * 5000):
        file.write_bytes(content)
        with pytest.raises(SourceError, match="truncated or not a GGUF file") as caught:
            convert(str(file), tmp_path / "out", **SMALL)
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


def test_gguf_that_would_convert_wrongly_is_refused(tiny_original: Path, tmp_path: Path) -> None:
    write_gguf(tiny_original, tmp_path / "other.gguf", arch="gemma")
    with pytest.raises(ConfigError, match=r"'gemma' can't be converted; allowed are llama"):
        locate(str(tmp_path / "other.gguf"))
    write_gguf(tiny_original, tmp_path / "yarn.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(ConfigError, match=r"RoPE scaling is not read from a \.gguf file"):
        locate(str(tmp_path / "yarn.gguf"))


def test_code_that_comes_with_a_source_is_neither_run_nor_asked_about(
    copy: Path, tmp_path: Path
) -> None:
    """With standard input closed a question would fail; with the code run the file is there."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    (copy / "code.py").write_text(code)
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text(code)
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": "code.T"}
    edit_json(copy / "config.json", auto_map=names)
    edit_json(copy / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", "code.T"]})
    options = ["--prelude", "2", "--coda", "2", "--rank", "4", "--recurrent", "3", "--depth", "2"]
    result = ouro("convert", copy, "out", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "custom code" not in result.stdout + result.stderr
    edit_json(copy / "config.json", model_type="mambo")
    result = ouro("convert", copy, "other", cwd=tmp_path)
    assert result.returncode == 1
    assert "'mambo' can't be converted" in result.stderr
    assert not (tmp_path / "ran").exists()
    loaded = json.loads((tmp_path / "out" / "config.json").read_text())
    assert loaded["auto_map"] == AUTO_MAP  # its own, not the source's
    assert "auto_map" not in loaded["base_config"]


def test_convert_prints_what_it_kept_and_dropped(copy: Path, tmp_path: Path) -> None:
    options = ["--prelude", "1", "--coda", "1", "--rank", "4", "--recurrent", "3", "--depth", "2"]
    result = ouro("convert", ".", tmp_path / "out", *options, "--max-depth", "6", cwd=copy)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    out = tmp_path / "out"
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64
    whole = 259 * 64 + 6 * layer + 64
    bases = 4 * (2 * 128 + 2 * 96 + 3 * 160)
    style = (64 + 1) * 256 + 6 * 128 + (384 + 1) * 256 + (256 + 1) * 128 + 128 * 7 * 4
    trainable = style + 6 * 64 + (128 + 1) * 64 + (64 + 1) * 64
    assert lines == [
        "loading .",
        "taking over 2 of 6 layers",
        "fitting the bridge on 24,576 tokens",
        "matching the norms of 2 steps on 2,048 tokens",
        "computing the low-rank bases of 7 projections",
        f"writing {out}",
        f"original: 6 layers, {whole:,} parameters",
        "prelude layers 0..0",
        "recurrent layer 3, looped up to 6 times",
        "coda layers 5..5",
        f"kept {whole - 3 * layer:,} parameters, unchanged",
        f"dropped layers 1..2, 4: {3 * layer:,} parameters",
        f"bases {bases:,} numbers, frozen (rank 4, mean)",
        f"trainable {trainable:,} parameters (Controller, gate, step norms, bridge)",
        f"wrote {out}",
        f"next: ouro train {out} OUT --data FILE --eval FILE",
    ]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--recurrent", "-1", "recurrent layer -1 is negative; give auto or one of .* 2..3"),
        ("--recurrent", "abc", "recurrent='abc' is neither auto nor the number of a layer"),
        ("--alpha", "inf", "alpha=inf must be a finite number"),
        ("--alpha", "nan", "alpha=nan must be a finite number"),
        ("--rank", "0", "rank=0 is outside 1"),
        ("--bases", "per_step", "bases=per_step needs a removed layer"),
    ],
)
def test_bad_options_are_refused_before_the_weights_are_read(
    copy: Path, tmp_path: Path, option: str, value: str, words: str
) -> None:
    (copy / "model.safetensors").write_bytes(b"")
    options: dict[str, Any] = {**SMALL, "recurrent": "2"}
    options[option.removeprefix("--")] = float(value) if option == "--alpha" else value
    if option == "--rank":
        options["rank"] = 0
    if option == "--bases":
        options["prelude"] = 3
        options["recurrent"] = 3
    with pytest.raises(ConfigError, match=words):
        convert(str(copy), tmp_path / "out", **options)


def test_recurrent_is_checked_on_the_command_line(copy: Path, tmp_path: Path) -> None:
    split = ["--prelude", "2", "--coda", "2"]
    result = ouro("convert", copy, "out", *split, "--recurrent", "-1", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "replaced layers 2..3" in result.stderr


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model_type": "mambo"}, ConfigError, r"'mambo' can't be converted; allowed are llama"),
        ({"hidden_size": 64}, ConfigError, r"None can't be converted; allowed are llama"),
        ({"model_type": ["llama"]}, ConfigError, r"\['llama'\] can't be converted"),
        ({"model_type": "llama", "hidden_size": "x"}, ConfigError, r"expected int, got str"),
        (
            {"model_type": "qwen2", "num_hidden_layers": 10**9},
            ConfigError,
            "num_hidden_layers=1000000000 is above 4,096; get an intact copy",
        ),
        (
            {"model_type": "llama", "transformers_weights": "other.safetensors"},
            ConfigError,
            "transformers_weights in config.json names other weights .*; take it out",
        ),
        ([1], SourceError, "can't read the model's config"),
        (3, SourceError, "can't read the model's config"),
    ],
)
def test_bad_configs_of_a_source_are_refused(
    tmp_path: Path, fields: Any, error: type[Exception], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(error, match=words) as caught:
        locate(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_deeply_nested_config_of_a_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(SourceError, match="can't read the model's config"):
        locate(str(tmp_path))


def test_unknown_rope_of_a_source_is_one_line(copy: Path, tmp_path: Path) -> None:
    edit_json(copy / "config.json", rope_parameters={"rope_type": "foo", "rope_theta": 1e4})
    result = ouro("convert", copy, "out", "--prelude", "2", "--coda", "2", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "rope_type='foo' is unknown; transformers has default, linear" in result.stderr


def test_source_without_a_tokenizer_has_none_and_a_broken_one_is_named(
    copy: Path, tmp_path: Path
) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match="can't load its tokenizer"):
        load_source(str(copy))
    for file in copy.glob("*token*"):
        file.unlink()
    assert load_source(str(copy)).tokenizer is None
    convert(str(copy), tmp_path / "out", recurrent=3, norm_init="ones", **SMALL)


def test_a_chat_template_named_as_a_path_is_refused_and_nothing_is_written(
    copy: Path, tmp_path: Path
) -> None:
    (copy / "chat_template.jinja").unlink()
    fields = json.loads((copy / "tokenizer_config.json").read_text())
    fields["chat_template"] = [{"name": "../../evil", "template": "x"}]
    (copy / "tokenizer_config.json").write_text(json.dumps(fields))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"'\.\./\.\./evil' is no text, or its name is not"):
        convert(str(copy), tmp_path / "out", recurrent=3, norm_init="ones", **SMALL)
    assert sorted(tmp_path.rglob("*")) == before


def test_converting_over_a_checkpoint_leaves_nothing_of_it(
    copy: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_checkpoint, out)
    (out / "training.png").write_bytes(b"old")
    for file in [*copy.glob("*token*"), copy / "chat_template.jinja"]:
        file.unlink()
    convert(str(copy), out, recurrent=3, norm_init="ones", **SMALL)
    names = {"ATTRIBUTION", "LICENSE", "config.json", "generation_config.json"}
    names |= {"model.safetensors", "modeling_ouroboros.py"}
    assert {p.name for p in out.iterdir()} == names


def test_papers_of_a_folder_read_its_card_and_notice(copy: Path) -> None:
    (copy / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tiny-1.0\nlicense_link: https://example.org/l\n---\nHi\n"
    )
    (copy / "NOTICE").write_text("Made by Tiny Lab.\n")
    found = papers.papers_of_folder("tiny", copy)
    assert found.license == "tiny-1.0"
    assert found.license_file() == "The licence of the tiny model.\n"
    assert found.attribution_file("nothing.").endswith("came with it:\n\nMade by Tiny Lab.\n")
    (copy / "LICENSE").unlink()
    file = papers.papers_of_folder("tiny", copy).license_file()
    assert "the licence tiny-1.0: see https://example.org/l" in file
    for content in ("---\nlicense: [\n---\n", "---\n- 1\n---\n", "no card", "\udcff"):
        (copy / "README.md").write_bytes(content.encode("utf-8", "surrogateescape"))
        assert papers.papers_of_folder("tiny", copy).license == ""
