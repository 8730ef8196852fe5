"""An original model whose weights are read when they are needed, not all at once.

A directory of safetensors, or a hub id, is read tensor by tensor and never held whole. A .gguf
file, a pickled or a quantised model is loaded by transformers, whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from ouroboros.errors import SourceError
from ouroboros.source.agreement import (
    EMBEDDING,
    HEAD,
    check_names,
    check_shapes,
    find_silent,
    require_one_head,
)
from ouroboros.source.locate import (
    FLOATS,
    Location,
    drop_foreign_pad,
    get_weights,
    hash_read_files,
    hash_weights,
    load_source,
    load_tokenizer,
    quiet_transformers,
    read_papers,
    require_finite_tensor,
)
from ouroboros.source.papers import Papers
from ouroboros.source.sampling_defaults import read_generation_config
from ouroboros.source.weight_files import INDEX as INDEX
from ouroboros.source.weight_files import WeightFiles
from runtime.errors import one_line

_ROWS = 4096  # of a matrix, read at a time where two are compared


@dataclass(frozen=True)
class Original:
    """An original model, by the names that transformers gives its weights.

    Attributes:
        name: the name it is known by.
        config: its Hugging Face config.
        generation_config: its sampling defaults, None where it has none.
        tokenizer: its tokenizer, or None where it has none.
        sha256: of its weight files.
        files: the sha256 of each file that was read, by its name.
        commit: of the hub that they are of, empty where they are not known to be.
        papers: its licence and whose weights these are.
        parameters: how many numbers it holds, a tied LM head counted once.
        names: of its weights; a tied LM head may be missing.
        read: returns the weight of a name, float32 and finite. Raises SourceError.
        notes: what was found beside the model and is not used, a line each.
    """

    name: str
    config: Any
    generation_config: Any
    tokenizer: Any
    sha256: str
    files: dict[str, str]
    commit: str
    papers: Papers
    parameters: int
    names: Collection[str]
    read: Callable[[str], torch.Tensor]
    notes: tuple[str, ...] = ()

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


def open_original(place: Location, files: dict[str, str] | None = None) -> Original:
    """Opens an original model; its weights are still to be read where its format lets them.

    Args:
        place: where it lies.
        files: as `hash_read_files` gives them; None hashes them.

    Raises:
        SourceError: it is missing, damaged or incomplete.
        ConfigError: its architecture does not convert.
    """
    weights = get_weights(place.place)
    tensors = _open_tensors(place, weights)
    if tensors is None or EMBEDDING not in tensors.files:
        # Perhaps names that transformers knows how to read; if not, it says what is missing.
        return _load_whole(place, weights, files)
    with quiet_transformers():
        skeleton = _skeleton(place)
        expected = {name: list(value.shape) for name, value in skeleton.state_dict().items()}
        _check_tensors(place, tensors, expected)
        if not {tensors.kinds[name] for name in expected if name in tensors.kinds} <= set(FLOATS):
            return _load_whole(place, weights, files)
        if place.config.tie_word_embeddings:
            expected.pop(HEAD, None)
        generation, notes = read_generation_config(place.source, place.path, place.config)
        files = files or hash_read_files(place.path, weights)
        tokenizer = load_tokenizer(place)
        foreign = _name_foreign_tokens(tokenizer, place.config)
        return Original(
            place.name,
            place.config,
            generation,
            tokenizer,
            hash_weights(weights, files),
            files,
            place.place.commit,
            read_papers(place),
            sum(parameter.numel() for parameter in skeleton.parameters()),
            tuple(expected),
            tensors.read,
            (*_name_unread(weights), *notes, *foreign),
        )


def _check_tensors(place: Location, tensors: TensorFiles, expected: dict[str, list[int]]) -> None:
    """Refuses files that hold more or less than the config says, or something else."""
    held = set(tensors.files)

    def is_zero(name: str) -> bool:
        return tensors.shapes[name] != [] and not bool(tensors.read(name).any())

    held -= set(find_silent(place.config, held, expected, is_zero))
    check_names(place.source, place.config, held, expected)
    check_shapes(place.source, tensors.shapes, expected)
    for name, shape in expected.items():
        kind = tensors.kinds.get(name, FLOATS[0])
        # Of a vector they are what they say; of a matrix they mean nothing without their scales.
        if kind not in FLOATS and len(shape) > 1:
            raise SourceError(
                f"{place.source}: {name} is {kind}, allowed: {', '.join(FLOATS)}; the weights are "
                "quantised, though config.json has no quantization_config",
                "give the unquantised original",
            )
    if place.config.tie_word_embeddings and HEAD in held:
        require_one_head(place.source, tensors.rows(HEAD), tensors.rows(EMBEDDING))


def _name_unread(weights: WeightFiles) -> tuple[str, ...]:
    if not weights.unread:
        return ()
    first = weights.files[0].name
    more = f" and {len(weights.files) - 1} more" if len(weights.files) > 1 else ""
    return (f"reading {first}{more}; not read: {', '.join(weights.unread)}",)


def _name_papers(place: Location, papers: Papers) -> tuple[str, ...]:
    """Says which papers beside a .gguf file are taken along: they may be another model's."""
    if not place.path.is_file() or not papers.read:
        return ()
    called = f" (the licence is called {papers.license})" if papers.license else ""
    taken = ", ".join(file.name for file in papers.read)
    line = (
        f"taking along what lies beside {place.path.name}: {taken}{called}; where that is another "
        "model's, move the file into a folder of its own"
    )
    return (line,)


def _name_foreign_tokens(tokenizer: Any, config: Any) -> tuple[str, ...]:
    """Says which tokens the model has no embedding for; the other way round is padding."""
    if tokenizer is None:
        return ()
    foreign = {i: text for text, i in tokenizer.get_vocab().items() if i >= config.vocab_size}
    if not foreign:
        return ()
    named = ", ".join(f"{foreign[i]!r:.40} ({i})" for i in sorted(foreign)[:3])
    more = ", ..." if len(foreign) > 3 else ""
    line = f"its tokenizer has {len(foreign)} tokens beyond the model's {config.vocab_size}"
    return (f"{line}: {named}{more}; text that holds one can't be read",)


@dataclass(frozen=True)
class TensorFiles:
    """Tensors in safetensors files, read one at a time; no file stays open in between.

    An open file stays mapped, and what was read of it would count as this process's memory.

    Attributes:
        source: what errors call the model.
        files: where each tensor is.
        shapes: of each tensor.
        kinds: the type of each tensor, as safetensors calls it.
    """

    source: str
    files: dict[str, Path]
    shapes: dict[str, list[int]]
    kinds: dict[str, str]

    def read(self, name: str) -> torch.Tensor:
        """Returns a tensor in float32.

        Raises:
            SourceError: it can't be read, or holds NaN or infinity.
        """
        try:
            with safe_open(self.files[name], framework="pt") as file:
                value: torch.Tensor = file.get_tensor(name).to(torch.float32)
        except (SafetensorError, OSError) as error:
            raise _unreadable(self.source, error) from error
        require_finite_tensor(name, value, self.source)
        return value

    def rows(self, name: str) -> Iterator[torch.Tensor]:
        """Returns a matrix in float32, some rows at a time.

        Raises:
            SourceError: it can't be read.
        """
        for start in range(0, self.shapes[name][0], _ROWS):
            try:
                with safe_open(self.files[name], framework="pt") as file:
                    piece = file.get_slice(name)[start : start + _ROWS].to(torch.float32)
            except (SafetensorError, OSError) as error:
                raise _unreadable(self.source, error) from error
            yield piece


def _open_tensors(place: Location, weights: WeightFiles) -> TensorFiles | None:
    """Reads the headers of safetensors files; None where the weights come in another form."""
    if place.gguf or weights.pickled:
        return None
    files: dict[str, Path] = {}
    shapes: dict[str, list[int]] = {}
    kinds: dict[str, str] = {}
    try:
        for path in weights.files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict)
                    if name in files:
                        raise SourceError(
                            f"{place.source}: {name} is in {files[name].name} and in {path.name}",
                            "they may differ, so download it again",
                        )
                    part = file.get_slice(name)
                    files[name], shapes[name] = path, list(part.get_shape())
                    kinds[name] = part.get_dtype()
    except (SafetensorError, OSError) as error:
        raise _unreadable(place.source, error) from error
    return TensorFiles(place.source, files, shapes, kinds)


def _unreadable(source: str, error: Exception) -> SourceError:
    return SourceError(f"{source}: can't load the weights: {one_line(error)}", "download it again")


def _skeleton(place: Location) -> Any:
    """Returns the model without memory for its weights: their names and shapes."""
    config = copy.deepcopy(place.config)
    drop_foreign_pad(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def _load_whole(place: Location, weights: WeightFiles, files: dict[str, str] | None) -> Original:
    source = load_source(place, files)
    state = source.model.state_dict()
    generation: Any = source.model.generation_config
    notes: tuple[str, ...] = ()
    if place.path.is_dir():
        generation, notes = read_generation_config(place.source, place.path, place.config)
    return Original(
        source.name,
        source.model.config,
        generation,
        source.tokenizer,
        source.sha256,
        source.files,
        place.place.commit,
        source.papers,
        sum(parameter.numel() for parameter in source.model.parameters()),
        tuple(state),
        state.__getitem__,
        (
            *_name_unread(weights),
            *notes,
            *_name_papers(place, source.papers),
            *_name_foreign_tokens(source.tokenizer, place.config),
        ),
    )
