"""Original models: a hub id, a local Hugging Face directory or a .gguf file."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from ouroboros.errors import CheckpointError, ConfigError, SourceError
from ouroboros.model.base_config import check_architecture, check_lengths, refuse_quantized
from ouroboros.source.agreement import check_names, lines_of, require_one_head
from ouroboros.source.gguf_config import check_model
from ouroboros.source.gguf_header import GgufHeader, read_header
from ouroboros.source.gguf_tokenizer import build_tokenizer, check_tokenizer, special_ids
from ouroboros.source.papers import LICENSE_NAMES, NOTICE_NAMES, Papers, papers_of_folder
from ouroboros.source.places import Place, fetch_weights, find_place
from ouroboros.source.templates import check_templates
from ouroboros.source.weight_files import WeightFiles, find_weights, hash_files
from runtime.errors import errors_as, one_line

_PIECE = 1 << 24
FLOATS = ("F64", "F32", "F16", "BF16")  # types of weights, as safetensors calls them
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_READ_FILES = (
    "config.json",
    "generation_config.json",
    *_TOKENIZER_FILES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
    *LICENSE_NAMES,
    *NOTICE_NAMES,
)


@dataclass(frozen=True)
class Location:
    """Where an original model is, and its config, before any weight is read.

    Attributes:
        place: the directory or .gguf file, and the hub id and commit it comes from.
        config: its Hugging Face config.
        gguf: the header of a .gguf file, checked; None for a directory.
    """

    place: Place
    config: Any
    gguf: GgufHeader | None = None

    @property
    def source(self) -> str:
        """The hub id or path as it was given."""
        return self.place.source

    @property
    def name(self) -> str:
        """The name the model is known by."""
        return self.place.name

    @property
    def path(self) -> Path:
        """The local directory or .gguf file."""
        return self.place.path


@dataclass(frozen=True)
class Source:
    """An original model in float32 and what must travel with its weights.

    Attributes:
        model: the Hugging Face causal LM, float32, eval mode.
        tokenizer: its tokenizer, or None where it has none.
        name: the name it is known by.
        papers: its licence and whose weights these are.
        path: its directory or .gguf file.
        weights: its weight files.
        hashes: as `hash_read_files` gives them, where they are known.
    """

    model: Any
    tokenizer: Any
    name: str
    papers: Papers
    path: Path
    weights: WeightFiles
    hashes: dict[str, str] | None

    @cached_property
    def files(self) -> dict[str, str]:
        """The sha256 of each file that was read, by its name; read again where it is not known."""
        return self.hashes or hash_read_files(self.path, self.weights)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of its weight files."""
        return hash_weights(self.weights, self.files)


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


def locate(source: str | Path | Place) -> Location:
    """Finds an original model and reads its config; no code that comes with it is ever run.

    Args:
        source: hub id, directory or .gguf file, or the place of one that was found.

    Raises:
        SourceError: there is none, or its config can't be read.
        ConfigError: its architecture does not convert, or its weights are quantised.
    """
    place = source if isinstance(source, Place) else find_place(source)
    source, path = place.source, place.path
    header = _read_gguf(path) if path.is_file() else None
    where, extra = _arguments(path)
    with quiet_transformers():
        try:
            values, _ = PreTrainedConfig.get_config_dict(where, **extra)
            model_type = values.get("model_type")
        except Exception as error:  # every loader raises its own kind for a file it can't read
            raise SourceError(
                f"{source}: can't read the model's config: {one_line(error)}", "download it again"
            ) from error
        _require_architecture(place.source, model_type)
        refuse_quantized(place.source, values)
        check_lengths(values, place.source)
        if "transformers_weights" in values:
            raise ConfigError(
                f"{place.source}: transformers_weights in config.json names other weights than "
                "those that are read and hashed",
                "take it out",
            )
        if header:
            values |= check_model(header, header.metadata["general.architecture"])
            values |= special_ids(header)
        try:
            config = CONFIG_MAPPING[model_type].from_dict(values)
        except Exception as error:
            raise ConfigError(
                f"{source}: bad value in its config: {one_line(error)}",
                "correct it, or download the model again",
            ) from error
        # A name here may be a kernel of the hub's, which transformers would fetch and run.
        config._attn_implementation = config._experts_implementation = None
    return Location(place, config, header)


def _arguments(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns what transformers' loaders take: a place and keyword arguments."""
    if path.is_file():
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    return str(path), {"local_files_only": True}


def _require_architecture(source: str, model_type: Any) -> None:
    try:
        check_architecture(model_type)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error.problem}", error.cure) from error


def _read_gguf(path: Path) -> GgufHeader:
    """Returns the checked header of a .gguf file.

    Raises:
        SourceError: it is truncated, damaged or incomplete.
        ConfigError: its architecture does not convert, or not from a .gguf file.
    """
    header = read_header(path)
    architecture = header.metadata.get("general.architecture")
    _require_architecture(str(path), architecture)
    check_model(header, str(architecture))
    check_tokenizer(header)
    return header


def load_source(source: str | Path | Location, files: dict[str, str] | None = None) -> Source:
    """Loads the original model from a hub id, a local directory or a .gguf file.

    Args:
        source: it, or where it was found.
        files: as `hash_read_files` gives them, where they are known.

    Raises:
        SourceError: it is missing, damaged, incomplete or holds NaN.
        ConfigError: its architecture does not convert.
    """
    place = source if isinstance(source, Location) else locate(source)
    weights = get_weights(place.place)
    with quiet_transformers():
        model = _load_model(place)
        tokenizer = load_tokenizer(place)
    return Source(model, tokenizer, place.name, read_papers(place), place.path, weights, files)


def get_weights(place: Place) -> WeightFiles:
    """Returns the weight files of a model, fetched where they are not at hand.

    Raises:
        SourceError: there are none, or it is not clear which are meant.
    """
    return find_weights(place.source, place.path, lambda *names: fetch_weights(place, names))


def _load_model(place: Location) -> Any:
    source, config = place.source, copy.deepcopy(place.config)
    where, extra = _arguments(place.path)
    pad = drop_foreign_pad(config)
    # transformers draws a progress bar of its own for a GGUF, which nothing else switches off.
    hidden = redirect_stderr(io.StringIO()) if place.gguf else nullcontext()
    try:
        with hidden:
            model, info = AutoModelForCausalLM.from_pretrained(
                where,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **extra,
            )
    except Exception as error:
        raise SourceError(
            f"{source}: can't load the weights: {one_line(error)}",
            "download it again, or give it as safetensors",
        ) from error
    # A GGUF comes out dense, yet transformers would refuse to save it as "quantized with gguf".
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if getattr(holder, name, None) is not None:
            delattr(holder, name)
    wanted = set(model.state_dict())
    held = (wanted - set(info["missing_keys"])) | set(info["unexpected_keys"])
    check_names(source, place.config, held, wanted)
    if place.config.tie_word_embeddings:
        require_one_head(
            source, lines_of(model.lm_head.weight), lines_of(model.model.embed_tokens.weight)
        )
    model.config.pad_token_id = pad
    require_finite(model, source)
    return model.eval()


def drop_foreign_pad(config: Any) -> Any:
    """Takes a padding id that the vocabulary lacks out of a config, and returns what it held.

    Finetuners add such ids; nothing here pads, yet transformers builds no embedding with one.
    """
    pad = config.pad_token_id
    if pad is not None and not 0 <= pad < config.vocab_size:
        config.pad_token_id = None
    return pad


def load_tokenizer(place: Location) -> Any:
    """Returns the tokenizer, None where the model comes without one.

    Raises:
        SourceError: it can't be read.
    """
    if not place.gguf and not _tokenizer_files(place):
        return None
    with errors_as(SourceError, f"{place.source}: can't load its tokenizer", "get it again"):
        if place.gguf:
            kind = place.gguf.metadata.get("tokenizer.ggml.model", "none")
            return None if kind in ("none", "no_vocab") else build_tokenizer(place.gguf)
        where, extra = _arguments(place.path)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **extra)
    check_templates(tokenizer, place.source)
    return tokenizer


def _tokenizer_files(place: Location) -> list[str]:
    """Returns the tokenizer's files that a directory holds."""
    return [name for name in _TOKENIZER_FILES if (place.path / name).is_file()]


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
            raise CheckpointError(f"{name}: {key} holds NaN or infinity", "get an intact copy")


def read_papers(place: Location) -> Papers:
    """Returns the licence of a model and whose weights these are."""
    folder = place.path if place.path.is_dir() else place.path.parent
    metadata = place.gguf.metadata if place.gguf else None
    return papers_of_folder(place.name, folder, metadata, place.place.facts)


def hash_read_files(path: Path, weights: WeightFiles) -> dict[str, str]:
    """Returns the sha256 of every file of a model that is read, by its name."""
    if path.is_file():
        return hash_files([path])
    beside = (path / name for name in _READ_FILES)
    return hash_files([*(path for path in beside if path.is_file()), *weights.files])


def hash_weights(weights: WeightFiles, files: dict[str, str]) -> str:
    """Returns one sha256 of a model's weight files: of theirs, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(weights.files):
        digest.update(bytes.fromhex(files[path.name]))
    return digest.hexdigest()


def drop_middle(model: Any, prelude: int, coda: int, looped: Iterable[int]) -> Any:
    """Returns the plain shortened model: prelude, each layer of `looped` once, coda.

    The layers are shared with `model`, not copied. The paper loops layer `num_layers // 2`.
    """
    layers = list(model.model.layers)
    between = [layers[index] for index in looped]
    kept = [*layers[:prelude], *between, *layers[len(layers) - coda :]]
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
