"""A small model, its tokenizer and a short run, for the tests of training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ouroboros.checkpoint import load_checkpoint, save_checkpoint
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.text.windows import PackedWindows, pack_documents
from ouroboros.training.recipe import TrainOptions

LETTERS = "abcdefghijklmnopqrstuvwxyz "
VOCABULARY = 40


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; id 0 is end-of-text."""
    vocab = {"<|endoftext|>": 0, "?": 1}
    vocab |= {letter: number for number, letter in enumerate(LETTERS, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def tiny_model(
    vocabulary: int = VOCABULARY, tied: bool = True, **changes: Any
) -> OuroborosForCausalLM:
    """A random Llama of 6 layers, 2 | 1 | 2, large enough weights that every part matters."""
    torch.manual_seed(0)
    base = {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": tied,
    }  # fmt: skip
    fields = {"prelude": 2, "coda": 2, "recurrent": 3, "rank": 4, "style_size": 8}
    config = OuroborosConfig(base_config=base, **{**fields, "max_depth": 6, "depth": 3, **changes})
    model = OuroborosForCausalLM(config).eval()
    with torch.no_grad():
        for name, tensor in model.recurrent.state_dict().items():
            if "lora" in name or "controller" in name or "gate.proj.weight" in name:
                tensor.normal_(std=0.3)
        model.embed_tokens.weight.normal_()
    return model


def packed(seq_len: int = 24) -> PackedWindows:
    documents = ["the cat sat", "on a mat and ran", "a", "the mat sat on the cat and ran away"]
    return pack_documents(documents, tiny_tokenizer(), seq_len)


def options(corpus: Path, **changes: Any) -> TrainOptions:
    fields = {"train_steps": 4, "batch_size": 2, "seq_len": 16, "depth": "1-3", "warmup": 1}
    return TrainOptions(data=(corpus,), **{**fields, "learning_rate": 1e-2, **changes})


def write_corpus(folder: Path) -> Path:
    """Writes twelve short files to train on."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    for number in range(12):
        words = rng.choice(["the cat ", "sat on ", "a mat ", "and ran "], size=rng.integers(3, 30))
        (folder / f"{number:02}.txt").write_text("".join(words))
    return folder


def write_checkpoint(path: Path) -> Path:
    """Writes `tiny_model`, as if it had been trained at depth 2."""
    save_checkpoint(tiny_model(trained_depths=[2]), tiny_tokenizer(), path, {"LICENSE": b"free"})
    return path


def write_teacher(checkpoint: Path, path: Path, head: float = 1.0) -> Path:
    """Writes an original model with the checkpoint's embedding and head, times `head`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    student, tokenizer = load_checkpoint(checkpoint)
    torch.manual_seed(5)
    teacher = LlamaForCausalLM(LlamaConfig(**student.config.base_config))
    with torch.no_grad():
        teacher.model.embed_tokens.weight.copy_(student.embed_tokens.weight * head)
    teacher.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


class PulledPlug(BaseException):
    """Stands for the power failing."""


def same_bits(one: Path, other: Path) -> bool:
    first, second = load_checkpoint(one)[0].state_dict(), load_checkpoint(other)[0].state_dict()
    equal = all(torch.equal(value, second[name]) for name, value in first.items())
    return equal and first.keys() == second.keys()
