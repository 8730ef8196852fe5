"""A teacher: the distribution that a folded model is to match.

The original, or a folded model: a float one teaches what is trained for integers what it lacks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ouroboros.checkpoint import checkpoint_sha256, load_checkpoint, read_config
from ouroboros.errors import TrainingError
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.pooling import describe_sequences
from ouroboros.model.rounding import Rounding
from ouroboros.source.locate import Location, get_weights, hash_read_files, load_source, locate
from ouroboros.training.qat import round_model
from runtime.files.destinations import CHECKPOINT, RUN, kind_of

FEW_TOKENS = 0.01  # share of tokens that may be other ones
LIKE = 0.75  # cosine of two rows of one token; of two tokens it is 0.5 at the most, in the median


@dataclass(frozen=True)
class Teacher:
    """A frozen model.

    Attributes:
        body: an original without its head, or an `OuroborosForCausalLM`, which is run at the depth
            that its config names.
        head: its LM head `[vocab, hidden]` in the student's type; None where it is the student's.
        sha256: of all its files that are read.
    """

    body: Any
    head: torch.Tensor | None
    sha256: str

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves it, and casts it to the type it computes in; rotary frequencies stay as they are.

        Rounded to bfloat16 they turn a late position by whole radians, and the student's are not.
        """
        kept = [(module, module.inv_freq) for module in self.body.modules() if _turns(module)]
        self.body.to(device, dtype)
        for module, frequencies in kept:
            module.inv_freq = frequencies.to(device)

    @property
    def layers(self) -> list[Any]:
        """The layers that it runs once."""
        if isinstance(self.body, OuroborosForCausalLM):
            return [*self.body.prelude, *self.body.coda]
        return list(self.body.layers)

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
        if isinstance(self.body, OuroborosForCausalLM):
            folded = self.body(
                input_ids,
                position_ids=position_ids,
                use_cache=False,
                logits_to_keep=1,
                output_hidden_states=True,
            )
            last: torch.Tensor = folded.hidden_states[-1]
            return last
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


def _turns(module: nn.Module) -> bool:
    return isinstance(getattr(module, "inv_freq", None), torch.Tensor)


@dataclass(frozen=True)
class FoundTeacher:
    """Where a teacher is, before anything but its config is read.

    Attributes:
        source: as it was given.
        original: where an original is; None of a folded model.
    """

    source: str
    original: Location | None

    @cached_property
    def sha256(self) -> str:
        """Of all its files that are read; they are read for it when it is first asked for."""
        if self.original is None:
            return checkpoint_sha256(self.source)
        files = hash_read_files(self.original.path, get_weights(self.original.place))
        return hashlib.sha256("".join(sorted(files.values())).encode()).hexdigest()

    def load(self) -> tuple[Any, torch.Tensor, Any]:
        """Returns an original without its head, or a folded model; the LM head; the tokenizer.

        Raises:
            CheckpointError: it can't be loaded.
        """
        if self.original is not None:
            found = load_source(self.original)
            head = found.model.get_output_embeddings().weight
            return found.model.base_model, head, found.tokenizer
        body: Any
        body, tokenizer = load_checkpoint(self.source)
        body.requires_grad_(False)
        if body.config.qat:  # it is what its integers stand for
            round_model(body, Rounding(**body.config.qat))
        return body, body.lm_head.weight, tokenizer


def find_teacher(source: str) -> FoundTeacher:
    """Finds a teacher.

    Args:
        source: the original by hub id, folder or .gguf, or the folder of an Ouroboros checkpoint.

    Raises:
        CheckpointError: there is none.
        ConfigError: its config holds what this version does not know, or of an original what does
            not convert.
    """
    if is_folded(source):
        read_config(Path(source))
        return FoundTeacher(source, None)
    return FoundTeacher(source, locate(source))


def load_teacher(source: str | FoundTeacher, own: torch.Tensor, tokenizer: Any = None) -> Teacher:
    """Loads the teacher of a student.

    Args:
        source: as for `find_teacher`, or what that found: so its files are hashed once.
        own: the student's LM head `[vocab, hidden]`, as it was or trained further.
        tokenizer: the student's; where both have one, the teacher's must number tokens as it does.

    Raises:
        CheckpointError: it can't be loaded.
        TrainingError: its tokenizer or its LM head knows other tokens than the student's.
    """
    found = find_teacher(source) if isinstance(source, str) else source
    body, head, theirs = found.load()
    check_tokenizer(found.source, theirs, tokenizer)
    head = head.detach().to(own.dtype)
    own = own.detach().cpu()
    shared = torch.equal(head, own)
    if not shared and (head.shape != own.shape or not _same_tokens(head, own)):
        raise TrainingError(
            f"{found.source} is not the model that this checkpoint was converted from: its LM head "
            f"is another one ({list(head.shape)}, the checkpoint's {list(own.shape)})",
            "give that model to --teacher",
        )
    body.eval().requires_grad_(False)
    return Teacher(body, None if shared else head, found.sha256)


def check_tokenizer(source: str, theirs: Any, own: Any) -> None:
    """Refuses a teacher that reads the student's token ids as other tokens.

    A few may differ: added ones are named anew where a model is tuned.

    Args:
        source: the teacher, as it was given.
        theirs: its tokenizer; None where it has none.
        own: the student's, likewise.

    Raises:
        TrainingError: more than a few differ; it names one.
    """
    if theirs is None or own is None:
        return
    tables = ({number: token for token, number in one.get_vocab().items()} for one in (theirs, own))
    there, here = tables
    shared = sorted(there.keys() & here.keys())
    other = [number for number in shared if there[number] != here[number]]
    if len(other) > FEW_TOKENS * len(shared):
        first = other[0]
        raise TrainingError(
            f"{source} has another tokenizer than this checkpoint: {len(other):,} of "
            f"{len(shared):,} tokens differ, token {first} is {there[first]!r:.40} there and "
            f"{here[first]!r:.40} here",
            "give the model that the checkpoint was converted from to --teacher",
        )


def head_to_learn_of(
    teacher: Teacher | None, floats: torch.Tensor, used: torch.Tensor
) -> torch.Tensor | None:
    """The LM head of a teacher `[vocab, hidden]`; None where it is the one that the student uses.

    Args:
        teacher: None: there is none, or its states are read from disk.
        floats: of the student's head, unrounded.
        used: what the student computes with.
    """
    if teacher is not None and teacher.head is not None:
        return teacher.head
    if used.requires_grad:
        return None if teacher is None else floats.detach().clone()
    return None if used is floats else floats


def is_folded(source: str) -> bool:
    """Whether a teacher is a folded model's checkpoint."""
    return kind_of(Path(source)) in (CHECKPOINT, RUN)


def _same_tokens(head: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether most rows point where their like do: training turns them little."""
    return float(functional.cosine_similarity(head, own, dim=-1).median()) > LIKE


def teacher_dtype(precision: str) -> torch.dtype:
    """Returns the type that a teacher computes in where a run trains with `precision`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
