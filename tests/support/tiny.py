"""Builds a tiny random model, its checkpoint and its bundle, for the tests and the wheel check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_DEPTH = 5
# Of the smallest configs that are built in a test, and of what is made of them.
DIMENSIONS: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SMALL: dict[str, Any] = {
    "prelude": 2, "coda": 2, "rank": 4, "max_depth": 6, "depth": 3, "bridge": "none"
}  # fmt: skip
SPLIT: dict[str, Any] = {"prelude": 2, "coda": 2, "recurrent": 3}
# Of conversions that measure nothing: the layer is named, the norms are ones.
OPTIONS: dict[str, Any] = {
    "prelude": 1, "coda": 2, "rank": 4, "max_depth": 6, "depth": 3, "recurrent": 2,
    "norm_init": "ones", "bridge": "none",
}  # fmt: skip
EMBEDDING = "model.embed_tokens.weight"  # as originals name it
MASSIVE, MASSIVE_CHANNEL, MASSIVE_RMS = 500.0, 5, 500.0 / 64**0.5


def build_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=specials[1], eos_token=specials[2], pad_token=specials[2]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return tokenizer


def build_original(path: Path) -> None:
    """Writes a random Llama of 6 layers with a byte-level tokenizer and a chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _save_random(path, LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True)


def build_massive(path: Path) -> None:
    """Writes a random Qwen2 that has what real ones have and random ones lack.

    One channel of the hidden state is 500 times the others, and biases of queries and keys, in
    the rotary dimensions that hardly turn, make attention scores of about a thousand.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    def change(model: Any) -> None:
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(MASSIVE_RMS)
                weight[MASSIVE_CHANNEL] = 0.1
            elif name.endswith(("q_proj.bias", "k_proj.bias")):
                turning = weight.view(-1, 2, 8)  # heads, halves, frequencies
                turning.zero_()
                std = 100.0 if "k_proj" in name else 10.0
                turning[..., 6:] = torch.randn(turning[..., 6:].shape) * std
        model.model.embed_tokens.weight[:, MASSIVE_CHANNEL] = MASSIVE

    rope = {"rope_type": "default", "rope_theta": 1e6}
    _save_random(
        path,
        Qwen2Config,
        Qwen2ForCausalLM,
        change,
        tie_word_embeddings=False,
        rope_parameters=rope,
    )


def _save_random(
    path: Path,
    config_class: Any,
    model_class: Any,
    change: Callable[[Any], None] | None = None,
    **more: Any,
) -> None:
    import torch

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )
    model = model_class(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=1.0 if "embed" in name else 0.4 * weight.shape[1] ** -0.5)
        if change is not None:
            change(model)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "LICENSE").write_text("The licence of the tiny model.\n")


def build_checkpoint(
    original: Path, path: Path, massive: bool = False, block: bool = False
) -> None:
    """Writes its conversion, 2 | 1 | 2, every trained part random, so that each one matters.

    A `block` of two layers is looped, 1 | 2 | 1. The bridge stands at the loop's entry, or, where
    `massive`, at its exit. Trained parts of a `massive` original are scaled as training would: no
    step is lost in one channel.
    """
    import torch

    from ouroboros import convert, load_checkpoint, save_checkpoint

    options: dict[str, Any] = {
        "rank": 4,
        "alpha": 1.0,
        "max_depth": 8,
        "depth": 3,
        "norm_init": "ones",
        "bridge": "exit" if massive else "entry",
    }
    split = {"prelude": 1, "coda": 1, "recurrent": "2-3"} if block else SPLIT
    convert(str(original), path, **split, **options)
    model, tokenizer = load_checkpoint(path)
    randomise(model)
    if massive:
        with torch.no_grad():
            model.recurrent.norm.weight.mul_(MASSIVE_RMS)
            model.recurrent.controller.style.weight[:, MASSIVE_CHANNEL].div_(MASSIVE)
            for part in model.recurrent.gate.proj.weight.chunk(2, dim=-1):
                part[:, MASSIVE_CHANNEL].div_(MASSIVE)
            model.bridge.weight[:, MASSIVE_CHANNEL].div_(MASSIVE)
    model.config.trained_depths = [1, 2, 3, 4]
    save_checkpoint(model, tokenizer, path, keep=("LICENSE", "ATTRIBUTION"))


def randomise(model: Any) -> None:
    """Makes every trained part of a converted model random."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.recurrent.named_parameters():
            if name == "norm.weight":
                weight.uniform_(0.5, 2.0)
            elif weight.requires_grad:
                weight.add_(torch.randn(weight.shape) * 0.1)
        if model.bridge is not None:
            # As large as the identity beside it.
            for weight in model.bridge.parameters():
                weight.copy_(torch.randn(weight.shape) * weight.shape[-1] ** -0.5)


def name_as_before(weights: Path) -> None:
    """Gives the tensors of a file the names they had while one layer alone could be looped."""
    from safetensors.torch import load_file, save_file

    tensors = {
        name.replace("recurrent.layers.0.", "recurrent.layer."): tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})


def build_bundle(checkpoint: Path, path: Path) -> None:
    """Writes the bundle of a tiny checkpoint, depths 1..MAX_DEPTH."""
    from export import export_bundle

    export_bundle(checkpoint, path, max_depth=MAX_DEPTH)
