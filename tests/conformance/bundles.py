"""The tiny bundles that conformance is recorded from: every family, precision and tokenizer kind.

Together they hold each value of what a graph or a tokenizer may be, not each with each other: a
graph takes seconds to trace. Those that the suite makes anyway are taken from its fixtures.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from runtime.bundle.reader import read_manifest, write_manifest
from tests.conformance.recorder import record
from tests.support.chat_templates import LLAMA_2, QWEN_2_5
from tests.support.halting import give_halter
from tests.support.making import make_once
from tests.support.paths import ROOT
from tests.support.tiny import randomise
from tests.support.tokenizer_kinds import sentence_piece

DEMO = Path(os.environ.get("OURO_DEMO_BUNDLE", ROOT / "build" / "demo" / "bundle"))
VOCABULARY = 384
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3_SPLIT = CONTRACTIONS + WORDS + r"\p{N}{1,3}|" + REST
QWEN_2_SPLIT = CONTRACTIONS + WORDS + r"\p{N}|" + REST


def split_by(pattern: str, trim: bool) -> Any:
    """Splits by a pattern, then bytes, as Llama 3 and Qwen2 have it."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim, use_regex=False),
        ]
    )


def byte_pairs(splitter: Any, normalizer: Any = None) -> Any:
    """Byte-level pairs, learned from a page of this repository."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = splitter, decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    page = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
    core.train_from_iterator(page.splitlines(keepends=True), trainer)
    return core


def word_pieces(scheme: str) -> Any:
    """Pairs of characters with byte fallback behind a word's mark, a token before every text."""
    core = sentence_piece(scheme)()
    core.post_processor = TemplateProcessing(
        "<s> $A", "<s> $A <s> $B", [("<s>", core.token_to_id("<s>"))]
    )
    core.add_tokens([f"[{n}]" for n in range(core.get_vocab_size(), VOCABULARY)])
    return core


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: byte_pairs(split_by(QWEN_2_SPLIT, False), normalizers.NFC()),
    "llama-3": lambda: byte_pairs(split_by(LLAMA_3_SPLIT, True)),
    "digits": lambda: byte_pairs(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    ),
    "llama": lambda: word_pieces("llama"),
    "metaspace": lambda: word_pieces("first"),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a bundle is made of: a fixture of the suite, another kind with its tokenizer changed, or
    a family of its own.

    Attributes:
        fixture: that makes it.
        like: the kind whose graph it has.
        tokenizer: of TOKENIZERS.
        family: the original's model type; kinds of one family share a checkpoint.
        convert: options of its conversion.
        export: options of its export.
        chat: its chat template.
        halter: the kind of its halter.
    """

    fixture: str = ""
    like: str = ""
    tokenizer: str = ""
    family: str = ""
    convert: dict[str, Any] = dataclasses.field(default_factory=dict)
    export: dict[str, Any] = dataclasses.field(default_factory=dict)
    chat: str | None = None
    halter: str = ""


QWEN_3: dict[str, Any] = {
    "tokenizer": "qwen2",
    "family": "qwen3",
    "convert": {"prelude": 1, "coda": 1, "recurrent": 2, "bridge": "none", "pooling": "mean"},
    "chat": QWEN_2_5,
    "halter": "distance",
}
KINDS = {
    "llama": Kind(fixture="tiny_bundle"),
    "llama-block": Kind(fixture="block_bundle"),
    "llama-halting": Kind(fixture="halting_bundle"),
    "qwen2": Kind(fixture="massive_bundle"),
    "qwen3-int8": Kind(**QWEN_3, export={"precision": "int8"}),
    "qwen3-int4": Kind(**QWEN_3, export={"precision": "int4", "accuracy_level": 4}),
    "mistral-fp16": Kind(
        tokenizer="llama",
        family="mistral",
        convert={"prelude": 1, "coda": 1, "recurrent": "2-3", "bridge": "entry"},
        export={"precision": "fp16"},
        chat=LLAMA_2,
        halter="confidence",
    ),
    "llama-3": Kind(like="qwen3-int4", tokenizer="llama-3"),
    "digits": Kind(like="qwen3-int4", tokenizer="digits"),
    "metaspace": Kind(like="mistral-fp16", tokenizer="metaspace"),
}
"""By name; `demo` is beside them where DEMO is one."""


def bundle_of(name: str, request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Path:
    """The bundle of a kind, made once a test run; do not change it."""
    if name == "demo":
        return DEMO
    kind = KINDS[name]
    if kind.fixture:
        return Path(request.getfixturevalue(kind.fixture))
    folder = f"conformance-{name}"
    if kind.like:
        whole = bundle_of(kind.like, request, factory)
        return make_once(
            factory, folder, lambda path: change_tokenizer(whole, path, kind.tokenizer)
        )
    checkpoint = make_once(
        factory, f"conformance-{kind.family}", lambda path: build_checkpoint(path, kind)
    )
    return make_once(factory, folder, lambda path: export(checkpoint, path, kind))


def recorded(name: str, request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Path:
    """The recording of a bundle, made once a test run."""
    bundle = bundle_of(name, request, factory)
    return make_once(factory, f"recorded-{name}.json", lambda file: record(bundle, file))


def names(slow: Sequence[str] = ()) -> list[Any]:
    """Of every bundle to record from, as a test's parameters; the demo's takes minutes."""
    kinds = [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in KINDS]
    marks = (pytest.mark.slow, pytest.mark.timeout(1800))
    demo = [pytest.param("demo", marks=marks)] if (DEMO / "manifest.json").is_file() else []
    return [*kinds, *demo]


def build_checkpoint(path: Path, kind: Kind) -> None:
    """Writes the conversion of a random model, every trained part random."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from ouroboros import convert, load_checkpoint, save_checkpoint

    core = TOKENIZERS[kind.tokenizer]()
    begin, end = ("<s>", "</s>") if core.token_to_id("<s>") is not None else SPECIALS[1:]
    config = CONFIG_MAPPING[kind.family](
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        bos_token_id=core.token_to_id(begin),
        eos_token_id=core.token_to_id(end),
        tie_word_embeddings=True,
        **({"sliding_window": None} if kind.family == "mistral" else {}),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=1.0 if "embed" in name else 0.4 * weight.shape[1] ** -0.5)
    original = path.with_name(f"{path.name}-original")
    model.save_pretrained(original)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=begin, eos_token=end)
    if kind.chat is not None:
        tokenizer.chat_template = kind.chat
    tokenizer.save_pretrained(original)
    (original / "LICENSE").write_text("The licence of the tiny model.\n")
    options = {"rank": 4, "max_depth": 4, "depth": 2, "norm_init": "ones", **kind.convert}
    convert(str(original), path, **options)
    converted, _ = load_checkpoint(path)
    randomise(converted)
    if kind.halter:
        converted = give_halter(converted, kind.halter, depth=3, threshold=0.02)
    save_checkpoint(
        converted,
        AutoTokenizer.from_pretrained(original),
        path,
        keep=("LICENSE", "ATTRIBUTION"),
    )


def export(checkpoint: Path, path: Path, kind: Kind) -> None:
    """Writes the bundle of a checkpoint, depths 1..3."""
    from export import export_bundle

    export_bundle(checkpoint, path, max_depth=3, **kind.export)


def change_tokenizer(bundle: Path, path: Path, tokenizer: str) -> None:
    """Writes the bundle with another tokenizer of the same size, and without a chat template."""
    shutil.copytree(bundle, path)
    core = TOKENIZERS[tokenizer]()
    core.save(str(path / "tokenizer.json"))
    for stale in ("chat_template.jinja", "tokenizer_config.json"):
        (path / stale).unlink(missing_ok=True)
    fields = read_manifest(path).to_json()
    begin = core.token_to_id("<s>")
    fields["tokenizer"] |= {
        "prefix_token_ids": [] if begin is None else [begin],
        "chat_template": None,
        "chat": None,
    }
    write_manifest(path, **fields)
