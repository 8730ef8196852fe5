"""What of a train step never changes, computed once a corpus: prelude and teacher.

The prelude is frozen and so is the teacher, so what they make of a window is the same at every
train step of every run. A run with `--state-cache` computes it before it trains, for the windows
that it will draw and that no run before it has left there, and reads it back.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ouroboros.errors import TrainingError
from ouroboros.model.prelude import run_prelude
from ouroboros.text.windows import collate
from ouroboros.training.state_store import STRETCH, StateStore, StoreKey, make_room
from ouroboros.training.teacher import FoundTeacher, find_teacher, load_teacher, teacher_dtype
from runtime.files.cache import default_cache

if TYPE_CHECKING:
    from ouroboros.model.modeling import OuroborosForCausalLM
    from ouroboros.text.windows import PackedWindows
    from ouroboros.training.recipe import TrainOptions

PRELUDE, TEACHER = "prelude_state", "teacher_state"
AUTO = "auto"
_OTHERS_WAIT_S = 0.2

Compute = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Final states `[batch, seq, hidden]` of ids and positions, int64 `[batch, seq]`."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class StatedWindows:
    """Windows with their states: a dataset for a torch DataLoader.

    Attributes:
        windows: the tokens.
        stores: of states, by the name that they have in a batch.
        sha256: of all states that the run reads.
        teacher: sha256 of the teacher's files; empty without a teacher.
    """

    windows: PackedWindows
    stores: dict[str, StateStore]
    sha256: str
    teacher: str

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns what `PackedWindows` does, and each state as `[seq, hidden]`."""
        states = {name: store.read(index) for name, store in self.stores.items()}
        return {**self.windows[index], **states}

    def describe(self) -> dict[str, str]:
        """Returns which states are read, and how precise they are: what a run depends on."""
        return {name: store.key.dtype for name, store in self.stores.items()}


def open_states(
    model: OuroborosForCausalLM,
    head: torch.Tensor,
    windows: PackedWindows,
    drawn: Iterable[int],
    options: TrainOptions,
    device: torch.device,
    rank: int,
    say: Say,
    opened: ExitStack,
    tokenizer: Any = None,
) -> StatedWindows:
    """Opens the states of a run, and computes those that are missing.

    Args:
        model: whose prelude is run; it is moved to `device` where anything is missing.
        head: the LM head that the model shares with the teacher.
        windows: of the run.
        drawn: the windows that the run will draw.
        options: of the run, with a `state_cache`.
        device: where to compute.
        rank: of this process among those of the run; each computes a part.
        say: gets a line now and then.
        opened: closes the stores when the run is done.
        tokenizer: the model's, which a teacher's is held against.

    Raises:
        CheckpointError: the teacher can't be loaded.
        TrainingError: it has another LM head, the states need more room than they may have or do
            not fit into their type, or a store is damaged.
    """
    root = state_folder(options.state_cache)
    wanted = sorted(set(drawn))
    key = StoreKey(
        "prelude", _hash_prelude(model), windows.fingerprint(), len(windows), windows.seq_len,
        model.config.hidden_size, options.state_dtype, options.precision,
    )  # fmt: skip
    keys = {PRELUDE: key}
    found = find_teacher(options.teacher) if options.teacher else None
    taught = found.sha256 if found else ""
    if taught:
        # The head is part of it: states are only computed by a teacher that shares it.
        weights = f"{taught}+{_hash_tensors([head])}"
        keys[TEACHER] = replace(key, kind="teacher", weights=weights)
    try:
        stores = {n: opened.enter_context(StateStore(root, one)) for n, one in keys.items()}
        needed = sum(
            one.key.window_bytes * sum(not one.was_written(index) for index in wanted)
            for one in stores.values()
        )
        limit = int(options.state_cache_gb * 1e9)
        for name in make_room(root, needed, limit, {one.folder.name for one in stores.values()}):
            say(f"removed {root / name}, unused for longest, to make room")

        def prelude() -> Compute:
            return _prelude_of(model, options, device)

        def teacher() -> Compute:
            return _teacher_of(found, head, tokenizer, options, device)

        batch = 1 if device.type == "cpu" else options.batch_size
        computes = {PRELUDE: prelude, TEACHER: teacher}
        digest = hashlib.sha256()
        for name, store in stores.items():
            filling = _Filling(store, windows, computes[name], device, batch, say)
            filling.fill(wanted, rank)
            for index in wanted:
                digest.update(store.hash_of(index))
    except OSError as error:
        raise TrainingError(
            f"{root}: can't keep the states ({error})",
            "make room and start again: what was computed stays; or train without --state-cache",
        ) from error
    return StatedWindows(windows, stores, digest.hexdigest(), taught)


def state_folder(named: str) -> Path:
    """Returns where states are kept: the folder that was named, or the one of `auto`."""
    return default_cache() / "states" if named == AUTO else Path(named)


class _Filling:
    """Computes what a store lacks."""

    def __init__(
        self,
        store: StateStore,
        windows: PackedWindows,
        prepare: Callable[[], Compute],
        device: torch.device,
        batch: int,
        say: Say,
    ) -> None:
        """Computes `batch` windows at a time: one, so that no other has a say in the last bits."""
        self.store, self.windows, self.prepare = store, windows, prepare
        self.device, self.batch, self.say = device, batch, say
        self.compute: Compute | None = None
        self.computed = self.damaged = 0
        self.told_s = time.monotonic()

    def fill(self, wanted: Sequence[int], rank: int) -> None:
        """Returns once every wanted window is there, whoever computed it."""
        stretches: dict[int, list[int]] = {}
        for index in wanted:
            stretches.setdefault(index // STRETCH, []).append(index)
        # Processes of one run begin at places apart.
        left = list(stretches)
        left = left[rank % len(left) :] + left[: rank % len(left)]
        while left:
            others = [one for one in left if not self._fill_stretch(one, stretches[one], wanted)]
            if others:
                time.sleep(_OTHERS_WAIT_S)
            left = others
        if self.damaged:
            self.say(
                f"{self.damaged} states in {self.store.folder} were damaged and are computed anew"
            )
        if self.computed:
            self.say(f"{self._title()}: computed {self.computed:,} of {len(wanted):,} windows")

    def _fill_stretch(self, stretch: int, indexes: list[int], wanted: Sequence[int]) -> bool:
        """Returns False where another process is at it."""
        missing = self._missing(indexes)
        if not missing:
            return True
        with self.store.claiming(stretch) as own:
            if not own:
                return False
            missing = self._missing(missing)
            self.damaged += sum(self.store.was_written(index) for index in missing)
            for first in range(0, len(missing), self.batch):
                self._compute(missing[first : first + self.batch])
                self._report(len(wanted))
        return True

    def _missing(self, indexes: list[int]) -> list[int]:
        return [index for index in indexes if not self.store.holds(index)]

    def _compute(self, indexes: list[int]) -> None:
        if self.compute is None:
            self.compute = self.prepare()
        batch = collate([self.windows[index] for index in indexes])
        ids, positions = (batch[name].to(self.device) for name in ("input_ids", "position_ids"))
        states = self.compute(ids, positions)
        kept = states.to(getattr(torch, self.store.key.dtype))
        if not bool(torch.isfinite(kept).all()):
            largest = float(states.abs().max())
            raise TrainingError(
                f"{self._title()}: a state of window {indexes[0]} reaches {largest:.3g}, which "
                f"{self.store.key.dtype} does not hold",
                "give --state-dtype float32"
                if self.store.key.dtype == "float16"
                else "the model is damaged",
            )
        for index, array in zip(indexes, kept.cpu().numpy(), strict=True):
            self.store.write(index, array)
        self.computed += len(indexes)

    def _title(self) -> str:
        return f"{self.store.key.kind} states"

    def _report(self, total: int) -> None:
        if time.monotonic() - self.told_s > 10:
            self.told_s = time.monotonic()
            self.say(f"{self._title()}: {self.computed:,} computed, of {total:,} windows")


def _prelude_of(
    model: OuroborosForCausalLM, options: TrainOptions, device: torch.device
) -> Compute:
    model.to(device)
    half = options.precision == "bf16"

    def compute(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # As the Trainer runs the model, so that a run without the cache differs by no more than
        # how the states are kept.
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return run_prelude(model, ids, positions)

    return compute


def _teacher_of(
    found: FoundTeacher | None,
    head: torch.Tensor,
    tokenizer: Any,
    options: TrainOptions,
    device: torch.device,
) -> Compute:
    teacher = load_teacher(found or options.teacher, head, tokenizer)
    if teacher.head is not None:
        raise TrainingError(
            f"{options.teacher} has another LM head than the checkpoint, and states of it are kept "
            "for the head that both share",
            "leave --state-cache out",
        )
    teacher.to(device, teacher_dtype(options.precision))
    return teacher.final_state


def _hash_prelude(model: OuroborosForCausalLM) -> str:
    """The sha256 of all that the prelude's state depends on beside the text."""
    config = json.dumps([model.config.base_config, model.config.prelude], sort_keys=True)
    tensors = [*model.embed_tokens.parameters(), *model.prelude.parameters()]
    if any(tensor.requires_grad for tensor in tensors):
        raise TrainingError("the prelude trains, so its states change", "leave --state-cache out")
    return _hash_tensors(tensors, config)


def _hash_tensors(tensors: Sequence[torch.Tensor], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        array: Any = tensor.detach().cpu().float().contiguous().numpy()
        digest.update(str(array.shape).encode())
        digest.update(array)
    return digest.hexdigest()
