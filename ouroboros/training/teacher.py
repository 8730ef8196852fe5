"""The original model as a teacher: the distribution that the folded one is to match."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ouroboros.errors import TrainingError
from ouroboros.model.pooling import describe_sequences
from ouroboros.source.locate import get_weights, hash_read_files, load_source, locate


@dataclass(frozen=True)
class Teacher:
    """A frozen original model that shares its LM head with the student.

    Attributes:
        body: the model without its head.
        sha256: of all its files that are read.
    """

    body: Any
    sha256: str

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves it, and casts it to the type it computes in."""
        self.body.to(device, dtype)

    @torch.no_grad()
    def final_state(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns what enters the LM head, `[batch, seq, hidden]`, documents kept apart.

        The head gives the whole distribution back, which no list of its largest entries does
        (a biased teacher: arXiv 2503.16870).

        Args:
            input_ids: int64 `[batch, seq]`.
            position_ids: int64 `[batch, seq]`; positions that restart at 0 are packed documents.
        """
        batch, length = input_ids.shape
        sequences = describe_sequences(batch, length, 0, None, position_ids, input_ids.device)
        output = self.body(
            input_ids=input_ids,
            attention_mask=sequences.additive_mask(next(self.body.parameters()).dtype),
            position_ids=position_ids,
            use_cache=False,
        )
        state: torch.Tensor = output.last_hidden_state
        return state


def load_teacher(source: str, own: torch.Tensor) -> Teacher:
    """Loads the original model of a student.

    Raises:
        CheckpointError: it can't be loaded.
        TrainingError: it has another LM head than the student, as one of another vocabulary does.
    """
    original = load_source(source)
    head = original.model.get_output_embeddings().weight
    if head.shape != own.shape or not torch.equal(head.to(own.dtype), own.detach().cpu()):
        raise TrainingError(
            f"{source} is not the model that this checkpoint was converted from: its LM head is "
            f"another one ({list(head.shape)}, the checkpoint's {list(own.shape)})",
            "give that model to --teacher",
        )
    body = original.model.base_model.eval()
    body.requires_grad_(False)
    return Teacher(body, _combine(original.files))


def teacher_dtype(precision: str) -> torch.dtype:
    """Returns the type that a teacher computes in where a run trains with `precision`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def hash_teacher(source: str) -> str:
    """Returns the `sha256` of a teacher; nothing is loaded.

    Raises:
        CheckpointError: a file is missing.
    """
    place = locate(source)
    return _combine(hash_read_files(place, get_weights(place)))


def _combine(files: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(sorted(files.values())).encode()).hexdigest()
