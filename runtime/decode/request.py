"""Checks what a caller asks of an engine, before anything runs."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runtime.decode.options import Changes, Options, check_stops
from runtime.errors import EngineError

if TYPE_CHECKING:
    from runtime.backends.memory import Backend
    from runtime.bundle.manifest import DepthSpec, Manifest
    from runtime.text.codec import Codec

Cancel = threading.Event | Callable[[], bool] | None
AUTO: Literal["auto"] = "auto"
"""A depth that the graph chooses on the prompt."""
Depth = int | Literal["auto"] | None


@dataclasses.dataclass(frozen=True)
class Request:
    """One sequence to generate, checked.

    Attributes:
        ids: tokens to feed, at least one.
        depth: recurrences.
        options: with nothing left open.
        before: tokens of the conversation that it goes on with.
        halt_threshold: above 0, the prompt chooses its depth, at most `depth`.
    """

    ids: tuple[int, ...]
    depth: int
    options: Options
    before: tuple[int, ...] = ()
    halt_threshold: float = 0.0

    @property
    def prompt(self) -> tuple[int, ...]:
        """Every token before the first new one."""
        return (*self.before, *self.ids)


def make_options(options: Options | None, changes: Changes, rows: int) -> list[Options]:
    """The options of every row, as given; `check_options` fills and checks them.

    Args:
        options: for all rows; None for the defaults.
        changes: in place of those; a seed may be one a row, stop strings may be one text.
        rows: how many there are.

    Raises:
        EngineError: an option that there is not, a wrong number of seeds, or no stop strings.
    """
    if options is not None and not isinstance(options, Options):
        raise EngineError(
            f"options={options!r:.60} is not allowed",
            "give Options(...), or each option by its name, such as max_new_tokens=64",
        )
    given: dict[str, Any] = dict(changes)
    names = [field.name for field in dataclasses.fields(Options)]
    if unknown := [name for name in given if name not in names]:
        raise EngineError(f"there is no option {unknown[0]!r}", f"allowed: {', '.join(names)}")
    if "stop" in given:
        given["stop"] = check_stops(given["stop"])
    base = dataclasses.replace(options or Options(), **given)
    return [dataclasses.replace(base, seed=seed) for seed in check_seeds(base.seed, rows)]


def is_batch(prompt: object) -> bool:
    """Whether a prompt is a batch: a list of texts or of lists of ids, or a 2-D array.

    Raises:
        EngineError: an empty list, or one that mixes kinds.
    """
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, np.ndarray):
        if prompt.ndim not in (1, 2):
            raise EngineError(f"a prompt array has {prompt.ndim} dimensions", "allowed: 1 or 2")
        if len(prompt) == 0:
            raise EngineError("empty prompt", "give at least one token")
        return prompt.ndim == 2
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise EngineError(
            f"a prompt of type {type(prompt).__name__} is not allowed",
            "give a text, a list of token ids, or a list of those",
        )
    if len(prompt) == 0:
        raise EngineError("empty prompt", "give at least one token")
    plain = [isinstance(item, int | np.integer) for item in prompt]
    if any(plain) and not all(plain):
        raise EngineError(
            "a prompt mixes token ids with other things", "give only ids or only texts"
        )
    return not plain[0]


def encode_prompt(
    prompt: object, codec: Codec, manifest: Manifest, first: bool = True
) -> list[int]:
    """Token ids of one prompt.

    Args:
        prompt: a text or token ids.
        codec: the bundle's tokenizer.
        manifest: knows the vocabulary.
        first: the prompt begins a sequence.

    Raises:
        EngineError: empty, of a wrong type, or an id outside the vocabulary.
    """
    if isinstance(prompt, str):
        ids = codec.encode(prompt, first) if prompt else []
    else:
        if is_batch(prompt):
            raise EngineError(
                "one prompt is expected here, a batch was given", "give one at a time"
            )
        ids = check_ids(prompt, manifest)
    if not ids:
        raise EngineError("empty prompt", "give at least one token")
    # The tokenizer may know added tokens that the model has no row for.
    for token in ids:
        _check_id(token, manifest)
    return ids


def check_ids(ids: object, manifest: Manifest) -> list[int]:
    """Token ids as plain integers, possibly none.

    Raises:
        EngineError: not a sequence of ids of the vocabulary.
    """
    if not isinstance(ids, Sequence | np.ndarray) or isinstance(ids, str | bytes | bytearray):
        raise EngineError(f"{ids!r:.60} is not a list of token ids", "give one like [1, 2, 3]")
    return [int(token) for token in ids if _check_id(token, manifest)]


def check_length(prompt: int, new: int, manifest: Manifest, backend: Backend | None = None) -> None:
    """Refuses what does not fit in the model's positions or in the backend's cache.

    Args:
        prompt: tokens before generation starts.
        new: tokens to generate, 0 for none.
        manifest: knows the model's limit.
        backend: knows its own, which a TensorRT plan sets when it is built; None: only the model's
            counts.

    Raises:
        EngineError: naming both numbers and the limit.
    """
    positions = manifest.model.max_position_embeddings
    most = positions if backend is None else min(positions, backend.max_slots)
    whose, cure = f"the model's {positions} positions", ""
    if most < positions:
        whose = f"the {most} that this bundle's plan holds (the model has {positions} positions)"
        cure = ", or export again with a larger --max-seq"
    if prompt > most:
        raise EngineError(
            f"a prompt of {prompt} tokens is longer than {whose}", f"shorten it{cure}"
        )
    if prompt + new > most:
        left = f"allowed here: max_new_tokens up to {most - prompt}"
        raise EngineError(
            f"{prompt} tokens and max_new_tokens={new} pass {whose}",
            f"{left if prompt < most else 'shorten the prompt'}{cure}",
        )


def check_batch(rows: int, backend: Backend) -> None:
    """Refuses more sequences at once than the backend takes.

    Args:
        rows: of the batch.
        backend: knows the most, which a TensorRT plan sets when it is built.

    Raises:
        EngineError: naming both.
    """
    if backend.max_batch is not None and rows > backend.max_batch:
        raise EngineError(
            f"{rows} sequences at once, this bundle's plan takes up to {backend.max_batch}",
            f"give fewer at a time, or export again with --max-batch {rows}",
        )


def check_depths(depth: object, rows: int, spec: DepthSpec) -> list[int]:
    """The depth of every row.

    Args:
        depth: one number for all rows, one a row, or None for the bundle's default.
        rows: how many rows there are.
        spec: the bundle's range.

    Raises:
        EngineError: a depth outside the bundle's range, or a wrong number of them.
    """
    depths = _one_a_row(spec.default if depth is None else depth, rows, "depths")
    for value in depths:
        if isinstance(value, str) and value == AUTO:
            raise EngineError(
                'depth="auto" is for prompts to generate from, and for all of a batch alike',
                f"allowed here: {spec.min}..{spec.max}",
            )
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise EngineError(
                f"depth={value!r} is not a whole number", f"allowed: {spec.min}..{spec.max}"
            )
        if not spec.min <= value <= spec.max:
            raise EngineError(
                f"depth={value} is outside this bundle's range {spec.min}..{spec.max}",
                f"re-export with --max-depth {value}" if value > spec.max else "give one in it",
            )
    return [int(value) for value in depths]


def choose_depths(
    depth: object, threshold: object, rows: int, spec: DepthSpec
) -> tuple[list[int], float]:
    """The depth of every row, and the threshold of the halting score.

    Args:
        depth: as for `check_depths`, or "auto": chosen on the prompts.
        threshold: of "auto"; None takes the bundle's.
        rows: how many rows there are.
        spec: the bundle's range.

    Returns:
        Depths, the most that may be chosen where it is "auto"; and the threshold, 0 where not.

    Raises:
        EngineError: as `check_depths`; the bundle has no halter; or a threshold that is not
            allowed, or has no effect.
    """
    if not (isinstance(depth, str) and depth == AUTO):
        if threshold is not None:
            raise EngineError(
                f"halt_threshold={threshold!r:.60} has no effect at a fixed depth",
                'give depth="auto" with it, or leave it out',
            )
        return check_depths(depth, rows, spec), 0.0
    halting = spec.halting
    if halting is None:
        raise EngineError(
            'this bundle has no halter, so depth="auto" can\'t choose',
            f"give a depth of {spec.min}..{spec.max}, or put a halter into its checkpoint with "
            "`ouro halter` and export that",
        )
    given = halting.threshold if threshold is None else threshold
    number = isinstance(given, Real) and not isinstance(given, bool)
    if not number or not 0 < given <= 1:  # type: ignore[operator]
        raise EngineError(
            f"halt_threshold={given!r:.60} is not allowed",
            "above 0 and at most 1: the lower, the fewer steps",
        )
    return [halting.max] * rows, float(given)  # type: ignore[arg-type]


def check_seeds(seed: object, rows: int) -> list[Any]:
    """One seed a row: a single number seeds each row alike, so that a row equals itself alone.

    Raises:
        EngineError: a wrong number of seeds.
    """
    return _one_a_row(seed, rows, "seeds")


def _one_a_row(value: object, rows: int, name: str) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
        return [value] * rows
    if len(value) != rows:
        raise EngineError(f"{len(value)} {name} were given for {rows} prompts", "one a prompt")
    return list(value)


def make_cancelled(cancel: object) -> Callable[[], bool]:
    """A function that tells whether to stop, from an event, a function or None.

    Raises:
        EngineError: something else.
    """
    if cancel is None:
        return _never
    if isinstance(cancel, threading.Event):
        return cancel.is_set
    if callable(cancel):
        return cancel
    raise EngineError(
        "cancel is neither a threading.Event nor a function that returns a bool",
        "give one of the two, or None",
    )


def _never() -> bool:
    return False


def _check_id(token: object, manifest: Manifest) -> bool:
    size = manifest.model.vocab_size
    if isinstance(token, bool) or not isinstance(token, int | np.integer):
        raise EngineError(f"{token!r:.60} is not a token id", f"allowed: 0..{size - 1}")
    if not 0 <= token < size:
        raise EngineError(
            f"token id {token} is outside the vocabulary 0..{size - 1}",
            "give ids of the bundle's own tokenizer",
        )
    return True


def is_conversation(prompt: object) -> bool:
    """Whether a prompt is a conversation: a list of messages."""
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(message, Mapping) for message in prompt)
    )
