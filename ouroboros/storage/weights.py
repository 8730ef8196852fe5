"""A model's weights as they are stored: frozen ones in the narrowest type that loses nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from ouroboros.errors import ConfigError
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.storage.tensors import KINDS, StoredTensor, pieces_of, write_files, write_tensors
from runtime.errors import errors_as

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = "model-{number:05}-of-{count:05}.safetensors"
MAX_FILE_BYTES = 50 * 10**9  # transformers' own limit
_NARROW = (torch.bfloat16, torch.float16)
_BITS = {4: torch.int32, 2: torch.int16, 8: torch.int64}


def build_empty(config: OuroborosConfig) -> OuroborosForCausalLM:
    """Returns the model of a config without memory for its weights: their names and shapes.

    Raises:
        ConfigError: there can be no such model.
    """
    # Of sizes whose product no number holds, for one.
    problem = "no model can be built as config.json says"
    with errors_as(ConfigError, problem, "get an intact copy of it"), torch.device("meta"):
        return OuroborosForCausalLM(copy.deepcopy(config))


def shapes_of(config: OuroborosConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each weight of a config's model by name, a tied LM head among them.

    Raises:
        ConfigError: there can be no such model.
    """
    return {name: tuple(one.shape) for name, one in build_empty(config).state_dict().items()}


def stored_names(model: OuroborosForCausalLM) -> list[str]:
    """Returns the names of the tensors that a checkpoint holds, in state-dict order.

    A tied LM head is the embedding and not stored; one that ought to be tied and differs is.
    """
    state = model.state_dict(keep_vars=True)
    tied = model._tied_weights_keys if model.config.tie_word_embeddings else {}
    return [name for name in state if name not in tied or state[name] is not state[tied[name]]]


def plan_weights(model: OuroborosForCausalLM) -> Iterator[StoredTensor]:
    """Yields what is to be written of a model, in state-dict order.

    A float32 tensor becomes bfloat16 where widening that gives back every bit of it, else float16
    where that does, else stays as it is; so what comes from a bfloat16 original is bfloat16. It is
    decided for each tensor by making that round trip, whatever the original was. What conversion
    adds to train (Controller, gate, step norms) stays float32, whatever it holds at the moment.
    So it depends on config and values alone: a checkpoint that is loaded and saved has the same
    bytes.
    """
    added = set(build_empty(model.config).trainable_names())
    state = model.state_dict()
    for name in stored_names(model):
        value = state[name].detach()
        dtype = value.dtype if name in added else narrowest(value)
        yield StoredTensor(name, KINDS[dtype], tuple(value.shape), partial(pieces_of, value))


def narrowest(value: torch.Tensor) -> torch.dtype:
    """Returns the narrowest type that holds every bit of a tensor; its own where none does."""
    if value.dtype != torch.float32:
        return value.dtype
    for dtype in _NARROW:
        if all(same_bits(piece.to(dtype).float(), piece) for piece in pieces_of(value)):
            return dtype
    return value.dtype


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Says whether two tensors of one float type are equal to the bit.

    Not their values: -0 equals 0, NaN nothing, and a processor may take subnormals for 0.
    """
    bits = _BITS[one.dtype.itemsize]
    return one.dtype == other.dtype and torch.equal(one.view(bits), other.view(bits))


def write_weights(
    model: OuroborosForCausalLM, folder: Path, limit: int = MAX_FILE_BYTES
) -> dict[str, str]:
    """Writes a model's weights: `model.safetensors`, or several files and an index.

    Args:
        model: the model.
        folder: the directory to write into.
        limit: bytes of tensors that a file holds at most; one larger tensor has its own.

    Returns:
        The sha256 of each weight file by its name, in the order of the names.

    Raises:
        OSError: the disk is full or can't be written.
    """
    groups = _group(list(plan_weights(model)), limit)
    if len(groups) == 1:
        with (folder / SINGLE).open("wb") as file:
            return {SINGLE: write_tensors(file, groups[0])}
    files = {
        SHARD.format(number=number, count=len(groups)): group
        for number, group in enumerate(groups, start=1)
    }
    return write_files(folder, files, INDEX)


def _group(tensors: Sequence[StoredTensor], limit: int) -> list[list[StoredTensor]]:
    groups: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups
