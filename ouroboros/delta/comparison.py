"""Sorts the tensors of a checkpoint into what its source holds and what it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open

from ouroboros.conversion.bases import truncated_svd
from ouroboros.delta.names import candidates
from ouroboros.delta.options import BFLOAT16, DeltaOptions
from ouroboros.delta.record import TensorRecord, UpdateRecord, WeightsRecord
from ouroboros.errors import CheckpointError
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.names import current_name
from ouroboros.source.weights import Original
from ouroboros.storage.adapters import Update, add_updates, factor_names, read_updates
from ouroboros.storage.tensors import KINDS, StoredTensor, pieces_of
from ouroboros.storage.weights import build_empty, narrowest, same_bits, stored_names

NO_HASH = "0" * 64


class Comparison:
    """Sorts the tensors of a checkpoint into the source's and the delta's own."""

    def __init__(
        self, folder: Path, config: OuroborosConfig, original: Original, options: DeltaOptions
    ) -> None:
        """Reads names and shapes alone.

        Args:
            folder: the checkpoint.
            config: its own.
            original: the source.
            options: whether the delta's own tensors are rounded to bfloat16, and what becomes of
                updates.

        Raises:
            CheckpointError: the checkpoint's `adapters.safetensors` is damaged.
        """
        self.config, self.original = config, original
        self.rounded, self.rank = options.dtype == BFLOAT16, options.adapter_rank
        self.folder = folder
        empty = build_empty(config)
        self.added = set(empty.trainable_names())
        state = empty.state_dict()
        self.shapes = {name: tuple(state[name].shape) for name in stored_names(empty)}
        self.updates = read_updates(folder)
        self.own: dict[str, StoredTensor] = {}
        self.factors: dict[str, StoredTensor] = {}
        self.copied: list[str] = []
        self.updated: list[str] = []

    def compare(self, file: Path) -> WeightsRecord:
        """Looks at one weight file; its hash is still to be found.

        In place of the names of pieces it has that of the whole: it is not known yet how they are
        cut.

        Raises:
            CheckpointError: it holds a weight that the model has not.
        """
        tensors: dict[str, TensorRecord] = {}
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, str] = dict(opened.metadata() or {})
            names = list(opened.keys())
        for name in names:
            if current_name(name) not in self.shapes:
                raise CheckpointError(
                    f"{self.folder}: {name:.80} is no weight of this model",
                    "config.json and the weights are not of one checkpoint",
                )
            value = _load(file, name)
            kind, shape = KINDS[value.dtype], tuple(value.shape)
            if source := self._find(name, value):
                self.copied.append(name)
                tensors[name] = TensorRecord(kind, shape, source)
                continue
            if source := self._find_updated(name, value):
                self.updated.append(name)
                kind = KINDS[torch.float32] if self.rounded else kind
                tensors[name] = TensorRecord(kind, shape, source, (), self._take_factors(name))
                continue
            stored = self._kind(value)
            # What trains stays as wide as it is, whatever it was rounded to.
            if self.rounded and current_name(name) not in self.added:
                kind = KINDS[stored]
            tensors[name] = TensorRecord(kind, shape, "", (name,))
            self.own[name] = StoredTensor(name, KINDS[stored], shape, partial(_pieces, file, name))
        return WeightsRecord(NO_HASH, metadata, tensors)

    def _find(self, name: str, value: torch.Tensor) -> str:
        """Returns the name of the source's tensor that a tensor equals, or nothing."""
        for candidate in candidates(name, self.config):
            if candidate not in self.original.names:
                continue
            other = self.original.read(candidate)
            if other.shape == value.shape and all(
                same_bits(theirs.to(ours.dtype), ours)
                for theirs, ours in zip(pieces_of(other), pieces_of(value), strict=True)
            ):
                return candidate
        return ""

    def _find_updated(self, name: str, value: torch.Tensor) -> str:
        """Returns the name of the source's tensor that a tensor is with its updates, or nothing."""
        updates = self.updates.get(name, [])
        if not updates or not all(one.fits(value.shape) for one in updates):
            return ""
        for candidate in candidates(name, self.config):
            if candidate in self.original.names:
                other = self.original.read(candidate)
                if other.shape == value.shape and same_bits(
                    add_updates(other, updates).to(value.dtype), value
                ):
                    return candidate
        return ""

    def _take_factors(self, name: str) -> tuple[UpdateRecord, ...]:
        records, updates = [], self.updates[name]
        if 0 < self.rank < sum(len(one.a) for one in updates):
            updates = [join_updates(updates, self.rank)]
        for number, update in enumerate(updates, start=1):
            sides = factor_names(name, number)
            for side, value in zip(sides, (update.a, update.b), strict=True):
                kind = KINDS[self._kind(value) if self.rounded else value.dtype]
                read = partial(pieces_of, value)
                self.factors[side] = StoredTensor(side, kind, tuple(value.shape), read)
            records.append(UpdateRecord(len(update.a), (sides[0],), (sides[1],)))
        return tuple(records)

    def _kind(self, value: torch.Tensor) -> torch.dtype:
        """Returns the type that a tensor of the delta is stored in."""
        exact = narrowest(value)
        wide = exact.itemsize > torch.bfloat16.itemsize
        if not (self.rounded and wide):
            return exact
        # The largest numbers would become infinite.
        finite = all(bool(torch.isfinite(one.bfloat16()).all()) for one in pieces_of(value))
        return torch.bfloat16 if finite else exact


def join_updates(updates: Sequence[Update], rank: int) -> Update:
    """Returns the update of a rank that is nearest to the sum of several, float32.

    No matrix of the weight's size is made.

    Args:
        updates: at least one, all of one weight.
        rank: at most the sum of theirs.
    """
    left, inner = torch.linalg.qr(torch.cat([one.b.double() for one in updates], 1))
    right, outer = torch.linalg.qr(torch.cat([one.a.double() for one in updates]).T)
    a, b = truncated_svd(inner @ outer.T, rank)
    return Update((a.double() @ right.T).float(), (left @ b.double()).float())


def _load(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        value: torch.Tensor = opened.get_tensor(name)
    return value


def _pieces(file: Path, name: str) -> Iterator[torch.Tensor]:
    yield from pieces_of(_load(file, name))
