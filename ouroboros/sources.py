"""Original models: a hub id, a local Hugging Face directory or a .gguf file."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from ouroboros.attribution import Papers, papers_of_folder, papers_of_hub
from ouroboros.base_config import check_architecture
from ouroboros.errors import CheckpointError, ConfigError
from ouroboros.gguf_config import check_model
from ouroboros.gguf_header import GgufHeader, read_header
from ouroboros.gguf_tokenizer import build_tokenizer, check_tokenizer, special_ids

_PIECE = 1 << 24
FLOATS = ("F64", "F32", "F16", "BF16")  # types of weights, as safetensors calls them
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class Location:
    """Where an original model is, and its config, before any weight is read.

    Attributes:
        source: the hub id or path as it was given.
        name: the name it is known by.
        config: its Hugging Face config.
        path: the local directory or .gguf file, None for a hub id.
        gguf: the metadata of a .gguf file, without its vocabulary.
    """

    source: str
    name: str
    config: Any
    path: Path | None = None
    gguf: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """An original model in float32 and what must travel with its weights.

    Attributes:
        model: the Hugging Face causal LM, float32, eval mode.
        tokenizer: its tokenizer, or None where it has none.
        name: the name it is known by.
        sha256: of its weight files, or of the hub id where they are not local.
        papers: its licence and whose weights these are.
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    papers: Papers


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


def locate(source: str) -> Location:
    """Finds an original model and reads its config; no code that comes with it is ever run.

    Raises:
        CheckpointError: there is none, or its config can't be read.
        ConfigError: its architecture does not convert.
    """
    path = _local_path(source)
    header = _read_gguf(path) if path is not None and path.is_file() else None
    gguf = _without_vocabulary(header.metadata) if header else {}
    where, extra = _arguments(source, path)
    with quiet_transformers():
        try:
            values, _ = PreTrainedConfig.get_config_dict(where, **extra)
            model_type = values.get("model_type")
        except Exception as error:  # every loader raises its own kind for a file it can't read
            raise CheckpointError(
                f"{source}: can't read the model's config: {one_line(error)}"
            ) from error
        _require_architecture(source, model_type)
        if header:
            values |= check_model(header, header.metadata["general.architecture"])
            values |= special_ids(header)
        try:
            config = CONFIG_MAPPING[model_type].from_dict(values)
        except Exception as error:
            raise ConfigError(f"{source}: bad value in its config: {one_line(error)}") from error
    name = source if path is None else (path.stem if gguf else path.resolve().name)
    return Location(source, name, config, path, gguf)


def _local_path(source: str) -> Path | None:
    """Returns the directory or .gguf file that `source` names, None where it is a hub id."""
    path = Path(source)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"{source}: no such file; check the path of the .gguf")
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            if found := sorted(p for p in path.iterdir() if p.suffix.lower() == ".gguf"):
                raise CheckpointError(
                    f"{source}: no config.json in this directory but a .gguf file; give the file: "
                    f"{found[0]}"
                )
            raise CheckpointError(
                f"{source}: no config.json in this directory; give a Hugging Face model "
                "directory, a .gguf file or a hub id"
            )
        return path
    if path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CheckpointError(
            f"{source}: neither a model directory nor a .gguf file; give one of these or a hub id"
        )
    return None


def _arguments(source: str, path: Path | None) -> tuple[str, dict[str, Any]]:
    """Returns what transformers' loaders take: a place and keyword arguments."""
    if path is None:
        return source, {}
    if path.is_file():
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    return source, {"local_files_only": True}


def _without_vocabulary(metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in metadata.items()
        if not name.startswith("tokenizer.") or name == "tokenizer.ggml.model"
    }


def _require_architecture(source: str, model_type: Any) -> None:
    try:
        check_architecture(model_type)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _read_gguf(path: Path) -> GgufHeader:
    """Returns the checked header of a .gguf file.

    Raises:
        CheckpointError: it is truncated, damaged or incomplete.
        ConfigError: its architecture does not convert, or not from a .gguf file.
    """
    header = read_header(path)
    architecture = header.metadata.get("general.architecture")
    _require_architecture(str(path), architecture)
    check_model(header, str(architecture))
    check_tokenizer(header)
    return header


def load_source(source: str | Location) -> Source:
    """Loads the original model from a hub id, a local directory or a .gguf file.

    Raises:
        CheckpointError: it is missing, damaged, incomplete or holds NaN.
        ConfigError: its architecture does not convert.
    """
    place = locate(source) if isinstance(source, str) else source
    with quiet_transformers():
        model = _load_model(place)
        tokenizer = load_tokenizer(place)
        papers = read_papers(place)
    return Source(model, tokenizer, place.name, hash_weights(place), papers)


def _load_model(place: Location) -> Any:
    source = place.source
    where, extra = _arguments(source, place.path)
    # transformers draws a progress bar of its own for a GGUF, which nothing else switches off.
    hidden = redirect_stderr(io.StringIO()) if place.gguf else nullcontext()
    try:
        with hidden:
            model, info = AutoModelForCausalLM.from_pretrained(
                where,
                config=place.config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **extra,
            )
    except Exception as error:
        raise CheckpointError(f"{source}: can't load the weights: {one_line(error)}") from error
    tied = {"lm_head.weight"} if place.config.tie_word_embeddings else set()
    if lost := sorted(set(info["missing_keys"]) - tied):
        raise CheckpointError(
            f"{source}: {len(lost)} weights are missing, {lost[0]} first; download it again"
        )
    # A GGUF comes out dense, yet transformers would refuse to save it as "quantized with gguf".
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if getattr(holder, name, None) is not None:
            delattr(holder, name)
    require_finite(model, source)
    return model.eval()


def load_tokenizer(place: Location) -> Any:
    """Returns the tokenizer, None where the model comes without one.

    Raises:
        CheckpointError: it can't be read.
    """
    if place.gguf and place.gguf.get("tokenizer.ggml.model", "none") in ("none", "no_vocab"):
        return None
    if place.gguf and place.path is not None:
        return build_tokenizer(read_header(place.path))
    if place.path is not None and place.path.is_dir() and not _tokenizer_files(place):
        return None
    where, extra = _arguments(place.source, place.path)
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **extra)
    except Exception as error:
        # Only after the attempt is it known what the hub has.
        if place.path is None and not _tokenizer_files(place):
            return None
        raise CheckpointError(
            f"{place.source}: can't load its tokenizer: {one_line(error)}"
        ) from error


def _tokenizer_files(place: Location) -> list[str]:
    """Returns the tokenizer's files that a directory, or for a hub id the hub's cache, holds."""
    if place.path is not None:
        return [name for name in _TOKENIZER_FILES if (place.path / name).is_file()]
    found = (try_to_load_from_cache(place.source, name) for name in _TOKENIZER_FILES)
    return [path for path in found if isinstance(path, str)]


def one_line(error: BaseException) -> str:
    """Returns an error's text on one line, or its class where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def require_finite(model: nn.Module, name: str) -> None:
    """Raises CheckpointError where a weight is NaN or infinite."""
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            require_finite_tensor(key, value, name)


def require_finite_tensor(key: str, value: torch.Tensor, name: str) -> None:
    """Raises CheckpointError, which names the weight `key` of the model `name`, likewise."""
    # In pieces: the comparison makes copies of what it is given.
    for piece in value.detach().reshape(-1).split(_PIECE):
        if not bool(torch.isfinite(piece).all()):
            raise CheckpointError(f"{name}: {key} holds NaN or infinity; get an intact copy")


def read_papers(place: Location) -> Papers:
    """Returns the licence of a model and whose weights these are."""
    if place.path is None:
        return papers_of_hub(place.source)
    folder = place.path if place.path.is_dir() else place.path.parent
    return papers_of_folder(place.name, folder, place.gguf)


def hash_weights(place: Location) -> str:
    """Returns the sha256 of a model's weight files, or of its hub id where they are not local."""
    digest = hashlib.sha256()
    if place.path is None:
        digest.update(place.source.encode())
        return digest.hexdigest()
    folder = place.path
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    for path in files or sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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
