"""Original models: a hub id, a local Hugging Face directory or a .gguf file."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ouroboros.base_config import ARCHITECTURES
from ouroboros.errors import CheckpointError, ConfigError

LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")


@dataclass(frozen=True)
class Source:
    """An original model in float32 and what must travel with its weights.

    Attributes:
        model: the Hugging Face causal LM, float32, eval mode.
        tokenizer: its tokenizer, or None where it has none.
        name: the name it is known by.
        sha256: of its weight files, or of the hub id where they are not local.
        license_text: the licence, or a line that says none came with it.
        attribution: whose weights these are and that they were changed.
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    license_text: str
    attribution: str


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' progress bars and notes while its loaders run."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def load_source(source: str) -> Source:
    """Loads the original model from a hub id, a local directory or a .gguf file.

    Raises:
        CheckpointError: it is missing, damaged, incomplete or holds NaN.
        ConfigError: its architecture does not convert.
    """
    path = Path(source)
    where = source
    extra: dict[str, Any] = {}
    files: list[Path] = []
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError(f"{source}: no such file; check the path of the .gguf")
        where, extra = str(path.parent), {"gguf_file": path.name}
        files = [path]
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{source}: no config.json in this directory; give a Hugging Face model "
                "directory, a .gguf file or a hub id"
            )
        extra = {"local_files_only": True}
        files = sorted(path.glob("*.safetensors"))
    elif path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CheckpointError(
            f"{source}: neither a model directory nor a .gguf file; give one of these or a hub id"
        )
    with quiet_transformers():
        config = _load_config(source, where, extra)
        model = _load_model(source, where, extra, config)
        tokenizer = _load_tokenizer(where, extra)
    name = path.stem if files and path.suffix == ".gguf" else (path.name if files else source)
    text, attribution = _papers(name, path.parent if path.suffix == ".gguf" else path)
    return Source(model, tokenizer, name, _hash(files, source), text, attribution)


def _load_config(source: str, where: str, extra: dict[str, Any]) -> Any:
    try:
        config = AutoConfig.from_pretrained(where, **extra)
    except Exception as error:  # every loader raises its own kind for a file it can't read
        raise CheckpointError(
            f"{source}: can't read the model's config: {one_line(error)}"
        ) from error
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"{source}: architecture {config.model_type!r} can't be converted; allowed are "
            f"{', '.join(ARCHITECTURES)} (SmolLM2 is a llama, Qwen2.5 a qwen2)"
        )
    return config


def _load_model(source: str, where: str, extra: dict[str, Any], config: Any) -> Any:
    # transformers draws a progress bar of its own for a GGUF, which nothing else switches off.
    hidden = redirect_stderr(io.StringIO()) if "gguf_file" in extra else nullcontext()
    try:
        with hidden:
            model, info = AutoModelForCausalLM.from_pretrained(
                where, dtype=torch.float32, output_loading_info=True, **extra
            )
    except Exception as error:
        raise CheckpointError(f"{source}: can't load the weights: {one_line(error)}") from error
    missing = sorted(info["missing_keys"])
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    if lost := [key for key in missing if key not in tied]:
        raise CheckpointError(
            f"{source}: {len(lost)} weights are missing, {lost[0]} first; download it again"
        )
    # A GGUF comes out dense, yet transformers would refuse to save it as "quantized with gguf".
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if getattr(holder, name, None) is not None:
            delattr(holder, name)
    require_finite(model, source)
    return model.eval()


def _load_tokenizer(where: str, extra: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(where, **extra)
    except Exception:  # a model without a tokenizer still converts
        return None


def one_line(error: BaseException) -> str:
    """Returns an error's text on one line, or its class where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def require_finite(model: nn.Module, name: str) -> None:
    """Raises CheckpointError where a weight is NaN or infinite."""
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{name}: {key} holds NaN or infinity; get an intact copy")


def _hash(files: list[Path], source: str) -> str:
    digest = hashlib.sha256()
    if not files:
        digest.update(source.encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _papers(name: str, folder: Path) -> tuple[str, str]:
    found = next((folder / n for n in LICENSE_NAMES if (folder / n).is_file()), None)
    text = (
        found.read_text(encoding="utf-8", errors="replace")
        if found
        else f"No licence file came with {name}; the terms of its publisher apply.\n"
    )
    attribution = (
        f"The weights derive from {name}; its licence stands in the file LICENSE.\n"
        "Changed by Ouroboros: first and last layers kept, the layers between replaced by one\n"
        "looped layer with a Controller, low-rank bases, per-step norms and a gate.\n"
    )
    return text, attribution


def drop_middle(model: Any, prelude: int, coda: int, middle: int | None = None) -> Any:
    """Returns the plain shortened model: prelude, the middle layer once, coda.

    The layers are shared with `model`, not copied. The paper's middle is layer `num_layers // 2`.
    """
    layers = list(model.model.layers)
    middle = len(layers) // 2 if middle is None else middle
    kept = [*layers[:prelude], layers[middle], *layers[len(layers) - coda :]]
    short = _shallow(model)
    short.model = _shallow(model.model)
    short.model.layers = nn.ModuleList(kept)
    short.config = copy.copy(model.config)
    short.config.num_hidden_layers = len(kept)
    short.model.config = short.config
    return short


def _shallow(module: Any) -> Any:
    twin = copy.copy(module)
    for registry in ("_modules", "_parameters", "_buffers"):
        setattr(twin, registry, dict(getattr(module, registry)))
    return twin
