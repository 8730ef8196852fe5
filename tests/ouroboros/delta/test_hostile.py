"""Deltas that are damaged or made to do harm: refused by name, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ouroboros import save_delta
from ouroboros.checkpoint import hash_file
from ouroboros.delta.record import INDEX
from tests.support.deltas import SHARD, edit_tensors, read, refuse, sign, write

WEIGHTS = "model.safetensors"
GATE, KEPT = "recurrent.gate.proj.weight", "prelude.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(
    tiny_original: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("delta") / "delta"
    save_delta(tiny_checkpoint, path, str(tiny_original))
    return path


@pytest.fixture
def delta(whole: Path, tmp_path: Path) -> Path:
    path = tmp_path / "work" / "delta"
    shutil.copytree(whole, path)
    return path


def edit_json(*keys: str, value: Any) -> Callable[[Path], None]:
    def change(delta: Path) -> None:
        record = read(delta)
        place = record
        for key in keys[:-1]:
            place = place[key]
        if value is None:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        write(delta, record)

    return change


def spoil(delta: Path) -> None:
    content = bytearray((delta / SHARD).read_bytes())
    content[-1] ^= 1
    (delta / SHARD).write_bytes(content)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(delta: Path) -> None:
        fields = json.loads((delta / "config.json").read_text())
        (delta / "config.json").write_text(json.dumps({**fields, **changes}))
        sign(delta, "config.json")

    return edit


def add_file(name: str, content: str = "print('owned')") -> Callable[[Path], None]:
    def add(delta: Path) -> None:
        (delta / name).write_text(content)
        record = read(delta)
        record["files"][name] = [name]
        write(delta, record)
        sign(delta, name)

    return add


def entry(name: str, **changes: Any) -> Callable[[Path], None]:
    """Changes what a delta says of one tensor."""

    def change(delta: Path) -> None:
        record = read(delta)
        record["weights"][WEIGHTS]["tensors"][name].update(changes)
        write(delta, record)

    return change


def move_in(delta: Path) -> None:
    """A second weight file, which nothing would read."""
    record = read(delta)
    tensors = record["weights"][WEIGHTS]["tensors"]
    moved = {"tensors": {GATE: tensors.pop(GATE)}, "metadata": {"format": "pt"}}
    hashes = []
    for names in (tensors, moved["tensors"]):
        checkpoint = load_file(delta.parent.parent / "whole" / WEIGHTS)
        chosen = {name: checkpoint[name] for name in names}
        save_file(chosen, delta.parent / "x", metadata={"format": "pt"})
        hashes.append(hash_file(delta.parent / "x"))
    (delta.parent / "x").unlink()
    record["weights"][WEIGHTS]["sha256"] = hashes[0]
    record["weights"]["model-00001-of-00002.safetensors"] = {**moved, "sha256": hashes[1]}
    write(delta, record)


def rename_tensor(delta: Path) -> None:
    record = read(delta)
    tensors = record["weights"][WEIGHTS]["tensors"]
    tensors["extra.weight"] = tensors.pop(KEPT)
    write(delta, record)


def move_out(delta: Path) -> None:
    """A weight file outside the checkpoint."""
    record = read(delta)
    record["weights"]["../../model.safetensors"] = record["weights"].pop(WEIGHTS)
    write(delta, record)


PLACES = ("../evil", "/tmp/evil", "a/b", "..", "", "a\\b", "additional_chat_templates/../../evil")
CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated shard": (
        lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes()[:-9]),
        rf"{SHARD}: .* bytes instead of .*: truncated or changed; copy it again",
    ),
    "flipped bit": (spoil, rf"{SHARD}: damaged or changed since it was written"),
    "missing shard": (lambda d: (d / SHARD).unlink(), rf"{SHARD}: missing; copy the whole folder"),
    "missing tokenizer config": (
        lambda d: (d / "tokenizer_config.json").unlink(), "tokenizer_config.json: missing",
    ),
    "no record": (lambda d: (d / "delta.json").unlink(), r"no delta here \(delta.json is missing"),
    "cut record": (
        lambda d: (d / "delta.json").write_text((d / "delta.json").read_text()[:-40]),
        r"delta\.json: can't be read as JSON",
    ),
    "deep record": (lambda d: (d / "delta.json").write_text("[" * 99_999), "delta.json: can't"),
    "huge record": (
        lambda d: (d / "delta.json").write_text(" " * (17 << 20)), "it is 17,.* bytes long",
    ),
    "list": (lambda d: (d / "delta.json").write_text("[]"), "delta.json: it is no object"),
    "format": (edit_json("format", value="other"), "its format is not ouroboros-delta"),
    "version": (edit_json("version", value=3), r"version 3 is not known, this is 2"),
    "dtype": (edit_json("dtype", value="int4"), "dtype is 'int4', not lossless or bfloat16"),
    "unknown key": (edit_json("extra", value=1), "it has the unknown key 'extra'"),
    "missing key": (edit_json("copied", value=None), "it lacks 'copied'"),
    "no hash": (edit_json("source", "sha256", value="x"), r"source\.sha256 is 'x', no sha256"),
    "files not listed": (edit_json("own", SHARD, value=None), "no file holds|is in none of its"),
    "wrong size": (edit_json("own", SHARD, "bytes", value=-1), "is -1, no size"),
    "size as truth": (edit_json("own", SHARD, "bytes", value=True), "is True, no size"),
    "config not listed": (edit_json("files", "config.json", value=None), "names no config.json"),
    "part not listed": (
        edit_json("files", "LICENSE", value=["LICENSE", "nothing"]), "nothing has no hash",
    ),
    "no parts": (edit_json("files", "LICENSE", value=[]), "files.LICENSE is empty"),
    "weights elsewhere": (move_out, r"'\.\./\.\./model\.safetensors', not the name of a weight"),
    "stranger": (add_file("evil.sh"), "names the file 'evil.sh', which no checkpoint has"),
    "code": (add_file("modeling_ouroboros.py"), "modeling_ouroboros.py is not one of a delta's"),
    "weights as a file": (add_file(WEIGHTS, "x" * 99), f"{WEIGHTS} is not one of a delta's|no"),
    "weights beside an index": (
        add_file("model-00001-of-00002.safetensors", "x"),
        "model-00001-of-00002.safetensors is not one of a delta's files",
    ),
    "half a surrogate pair": (
        edit_json("weights", WEIGHTS, "metadata", value={"x": "\ud800"}), "no short text",
    ),
    "pickle": (add_file("pytorch_model.bin"), "names the file 'pytorch_model.bin', which no"),
    "source's file": (
        edit_json("copied", "tokenizer.json", value="0" * 64),
        r"its tokenizer\.json is not the one that .* takes over; give .* with the tokenizer.json",
    ),
    "unknown source tensor": (
        entry(KEPT, source="model.layers.99.x"), r"is the source's 'model.layers.99.x', which it",
    ),
    "other source tensor": (
        entry(KEPT, source="model.layers.4.mlp.up_proj.weight"),
        rf"{WEIGHTS} comes out with sha256 .* instead of",
    ),
    "source tensor of another shape": (
        entry(KEPT, source="model.layers.0.mlp.down_proj.weight"), r"is \[96, 64\], the source's",
    ),
    "wrong shape": (entry(KEPT, shape=[64, 96]), r"has the shape \[64, 96\], config.json asks for"),
    "negative shape": (entry(KEPT, shape=[-1, 64]), "is -1, no size"),
    "enormous shape": (entry(KEPT, shape=[1 << 60]), "no size"),
    "other type": (entry(KEPT, kind="I8"), "is 'I8' .*, no weight"),
    "narrower type": (entry(KEPT, kind="BF16"), "comes out with sha256"),
    "both": (entry(KEPT, pieces=[GATE]), "from both the source and the delta"),
    "neither": (entry(GATE, pieces=[]), "from both the source and the delta, or from neither"),
    "piece twice": (entry(GATE, pieces=[GATE, GATE]), "is used twice"),
    "piece of nothing": (entry(GATE, pieces=["x"]), "'x' is in none of its files"),
    "extra name": (rename_tensor, r"extra.weight has the shape .* config.json asks for none|asks"),
    "tensor left over": (
        edit_tensors(lambda t: t.update(extra=torch.zeros(3))), "'extra', which is part of no",
    ),
    "tensor gone": (edit_tensors(lambda t: t.pop(GATE)), f"{GATE!r} is in none of its files"),
    "tensor too short": (
        edit_tensors(lambda t: t.update({GATE: t[GATE][1:].clone()})), "numbers, its shape is",
    ),
    "not a number": (
        edit_tensors(lambda t: t[GATE].view(-1)[-1:].fill_(float("nan"))),
        f"{GATE} holds NaN or infinity",
    ),
    "integers": (edit_tensors(lambda t: t.update({GATE: t[GATE].int()})), "which is no weight"),
    "changed number": (
        edit_tensors(lambda t: t[GATE].view(-1)[-1:].add_(1)), "comes out with sha256",
    ),
    "config of more layers": (edit_config(prelude=3, coda=1), "config.json asks for|layers"),
    "config of many layers": (
        edit_config(
            prelude=3_000,
            base_config={
                "model_type": "llama", "num_hidden_layers": 3_009, "vocab_size": 259,
                "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
                "intermediate_size": 96, "max_position_embeddings": 512, "bos_token_id": 1,
                "eos_token_id": 2, "tie_word_embeddings": True,
            },
            recurrent=3_003,
        ),
        r"3,003 layers by config\.json, \d+ tensors",
    ),
    "config of a great many layers": (
        edit_config(base_config={"model_type": "qwen2", "num_hidden_layers": 2 * 10**9}),
        "num_hidden_layers=2000000000 is above 4,096",
    ),
    "config of another kind": (edit_config(model_type="llama"), "not an Ouroboros checkpoint"),
    "config with code": (edit_config(nonsense=1), "unknown keys nonsense"),
}  # fmt: skip


def test_a_weight_file_that_nothing_reads_is_refused(
    delta: Path, tiny_original: Path, tiny_checkpoint: Path
) -> None:
    shutil.copytree(tiny_checkpoint, delta.parent.parent / "whole")
    move_in(delta)
    refuse(delta, tiny_original, r"its index of weights names others than model-00001-of-00002")


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_refused(name: str, delta: Path, tiny_original: Path) -> None:
    change, words = CHANGES[name]
    change(delta)
    refuse(delta, tiny_original, words)


@pytest.mark.parametrize("group", ["own", "files", "copied"])
@pytest.mark.parametrize("place", PLACES)
def test_names_stay_in_the_folder(group: str, place: str, delta: Path, tiny_original: Path) -> None:
    values = {"own": {"sha256": "0" * 64, "bytes": 1}, "files": ["LICENSE"], "copied": "0" * 64}
    edit_json(group, place, value=values[group])(delta)
    refuse(delta, tiny_original, rf"delta\.json: a name in {group} is .*, no plain file name")


def test_parts_stay_in_the_folder(delta: Path, tiny_original: Path) -> None:
    edit_json("files", "LICENSE", value=["../../secret"])(delta)
    refuse(delta, tiny_original, "files.LICENSE is '../../secret', no plain file name")


def test_an_index_that_lies_is_refused(delta: Path, tiny_original: Path) -> None:
    for content, words in (
        ("[]", "no index of tensors"),
        ('{"weight_map": {}}', "which .* has elsewhere or not at all"),
        (
            json.dumps({"weight_map": dict.fromkeys(load_file(delta / SHARD), "../x")}),
            "which .* has elsewhere or not at all",
        ),
    ):
        (delta / INDEX).write_text(content)
        sign(delta, INDEX)
        refuse(delta, tiny_original, words)


@pytest.mark.slow
def test_a_full_disk_leaves_what_was_there(
    whole: Path, tiny_original: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Written under a limit of file sizes, in a process of its own."""
    import subprocess
    import sys

    from tests.support.paths import ROOT
    from tests.support.processes import environment

    out = tmp_path / "back"
    shutil.copytree(tiny_checkpoint, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from cli.main import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "restore", whole, out, "--source", tiny_original],
        capture_output=True, text=True, timeout=120, check=False,
        env={**environment(), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "can't write the checkpoint" in done.stderr
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["back"]
