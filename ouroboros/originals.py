"""An original model whose weights are read when they are needed, not all at once.

A directory of safetensors, or a hub id, is read tensor by tensor and never held whole. A .gguf
file, a pickled or a quantised model is loaded by transformers, whole.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from ouroboros.attribution import Papers
from ouroboros.errors import CheckpointError
from ouroboros.sources import (
    FLOATS,
    Location,
    hash_weights,
    load_source,
    load_tokenizer,
    one_line,
    quiet_transformers,
    read_papers,
    require_finite_tensor,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Original:
    """An original model, by the names that transformers gives its weights.

    Attributes:
        name: the name it is known by.
        config: its Hugging Face config.
        generation_config: its sampling defaults, None where it has none.
        tokenizer: its tokenizer, or None where it has none.
        sha256: of its weight files, or of the hub id where they are not local.
        papers: its licence and whose weights these are.
        parameters: how many numbers it holds, a tied LM head counted once.
        names: of its weights; a tied LM head may be missing.
        read: returns the weight of a name, float32 and finite. Raises CheckpointError.
    """

    name: str
    config: Any
    generation_config: Any
    tokenizer: Any
    sha256: str
    papers: Papers
    parameters: int
    names: Collection[str]
    read: Callable[[str], torch.Tensor]

    def state(self, prefix: str) -> dict[str, torch.Tensor]:
        """Reads every weight whose name starts with `prefix`, which is cut off."""
        names = [name for name in self.names if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.read(name) for name in names}

    def layer(self, index: int) -> dict[str, torch.Tensor]:
        """Reads the weights of one decoder layer."""
        return self.state(f"model.layers.{index}.")

    def projection(self, index: int, name: str) -> torch.Tensor:
        """Reads the weight `[out, in]` of one of the seven projections of a decoder layer."""
        (found,) = (
            full
            for full in self.names
            if full.startswith(f"model.layers.{index}.") and full.endswith(f".{name}.weight")
        )
        return self.read(found)


def open_original(place: Location) -> Original:
    """Opens an original model; its weights are still to be read where its format lets them.

    Raises:
        CheckpointError: it is missing, damaged or incomplete.
        ConfigError: its architecture does not convert.
    """
    tensors = _open_tensors(place)
    if tensors is None:
        return _load_whole(place)
    with quiet_transformers():
        skeleton = _skeleton(place)
        expected = skeleton.state_dict()
        if place.config.tie_word_embeddings:
            expected.pop("lm_head.weight", None)
        if not tensors.files.keys() >= expected.keys():
            # Perhaps names that transformers knows how to read; if not, it says what is missing.
            return _load_whole(place)
        for name, value in expected.items():
            if (found := tensors.shapes[name]) != list(value.shape):
                raise CheckpointError(
                    f"{place.source}: can't load the weights: {name} is {found}, by its config "
                    f"{list(value.shape)}; config.json and the weights are not of one model"
                )
        return Original(
            place.name,
            place.config,
            _generation_config(place),
            load_tokenizer(place),
            hash_weights(place),
            read_papers(place),
            sum(parameter.numel() for parameter in skeleton.parameters()),
            tuple(expected),
            tensors.read,
        )


@dataclass(frozen=True)
class TensorFiles:
    """Tensors in safetensors files, read one at a time; no file stays open in between.

    An open file stays mapped, and what was read of it would count as this process's memory.

    Attributes:
        source: what errors call the model.
        files: where each tensor is.
        shapes: of each tensor.
    """

    source: str
    files: dict[str, Path]
    shapes: dict[str, list[int]]

    def read(self, name: str) -> torch.Tensor:
        """Returns a tensor in float32.

        Raises:
            CheckpointError: it can't be read, or holds NaN or infinity.
        """
        try:
            with safe_open(self.files[name], framework="pt") as file:
                value: torch.Tensor = file.get_tensor(name).to(torch.float32)
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.source, error) from error
        require_finite_tensor(name, value, self.source)
        return value


def _open_tensors(place: Location) -> TensorFiles | None:
    """Reads the headers of safetensors files; None where the weights come in another form."""
    if place.gguf or getattr(place.config, "quantization_config", None) is not None:
        return None
    files: dict[str, Path] = {}
    shapes: dict[str, list[int]] = {}
    try:
        paths = _hub_files(place.source) if place.path is None else _local_files(place.path)
        for path in paths:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict)
                    part = file.get_slice(name)
                    if part.get_dtype() not in FLOATS:
                        return None
                    files[name], shapes[name] = path, part.get_shape()
    except (SafetensorError, OSError) as error:
        raise _unreadable(place.source, error) from error
    return TensorFiles(place.source, files, shapes) if paths else None


def _unreadable(source: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{source}: can't load the weights: {one_line(error)}")


def _local_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return [folder / name for name in _shards(folder / INDEX)]
    return []


def _hub_files(source: str) -> list[Path]:
    """Returns the safetensors files of a hub id, fetched where they are not at hand."""
    for name in (SINGLE, INDEX):
        try:
            found = Path(hf_hub_download(source, name))
            if name == SINGLE:
                return [found]
            return [Path(hf_hub_download(source, shard)) for shard in _shards(found)]
        except CheckpointError:
            raise
        except Exception:  # not there, no connection, no access: transformers' loader says which
            continue
    return []


def _shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a safetensors index: {one_line(error)}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: names {name!r:.80}, no file beside it")
    return sorted(names)


def _skeleton(place: Location) -> Any:
    """Returns the model without memory for its weights: their names and shapes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(place.config))
    model.tie_weights()
    return model


def _generation_config(place: Location) -> Any:
    local = {"local_files_only": True} if place.path is not None else {}
    try:
        return GenerationConfig.from_pretrained(place.source, **local)
    except OSError:
        return GenerationConfig.from_model_config(place.config)


def _load_whole(place: Location) -> Original:
    source = load_source(place)
    weights = source.model.state_dict()
    return Original(
        source.name,
        source.model.config,
        source.model.generation_config,
        source.tokenizer,
        source.sha256,
        source.papers,
        sum(parameter.numel() for parameter in source.model.parameters()),
        tuple(weights),
        weights.__getitem__,
    )
