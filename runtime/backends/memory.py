"""Where the tensors of a batch lie: in numpy arrays here, on a GPU in `runtime.backends.cuda`.

The cache and the decoder only allocate, copy slots and read through `Memory`, so that they are
written once for every backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Buffer(Protocol):
    """A tensor in some memory; a numpy array is one. Iterating gives its parts on axis 0."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its dimensions."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        ...

    def reshape(self, shape: Any, /) -> Any:
        """The same memory under another shape."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Memory(Protocol):
    """Allocates the buffers of one batch and copies between them. Used from one thread.

    Attributes:
        host_bytes: bytes copied between the host and the device so far, inputs of the graph that
            lie on the host included; 0 where the memory is the host's.
    """

    host_bytes: int

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """A tensor of zeros, without gaps."""
        ...

    def stack(self, count: int, shape: tuple[int, ...], dtype: str) -> Buffer:
        """`count` tensors of zeros, [count, *shape]; each may be bound to a graph by itself."""
        ...

    def copy(self, target: Buffer, at: int, source: Buffer, first: int, count: int) -> None:
        """Sets target[..., at : at + count, :] to source[..., first : first + count, :].

        The two have the same shape but for the last dimension but one, and the same type.
        """
        ...

    def read(self, buffer: Buffer) -> Array:
        """The buffer as a numpy array, which the next `read` of the same buffer overwrites.

        Everything that was started in this memory is complete afterwards.
        """
        ...


class Bound(Protocol):
    """A graph with the buffers it reads and writes."""

    def run(self) -> float:
        """Runs it once; returns the seconds spent inside the library that runs it.

        Raises:
            EngineError: it failed.
        """
        ...


class Backend(Protocol):
    """A graph loaded for one kind of device. Safe to use from several threads.

    It is freed with the last reference to it: a batch in progress keeps it.

    Attributes:
        name: "cpu", "cuda" or "trt".
        max_slots: the most slots a cache can have here; a model's positions, or a plan's limit.
        max_batch: the most rows of a call; None where there is no limit.
        max_new_tokens: the most tokens a row that one call takes; None where there is no limit.
        max_logits: the most positions a row whose logits one call gives; None likewise.
    """

    name: str
    max_slots: int
    max_batch: int | None
    max_new_tokens: int | None
    max_logits: int | None

    def new_memory(self) -> Memory:
        """Memory for one batch."""
        ...

    def bind(self, memory: Memory, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Bound:
        """Binds every input and output by name.

        Args:
            memory: from `new_memory` of this backend.
            inputs: numpy arrays, read anew by every run, or buffers of `memory`.
            outputs: buffers of `memory`.

        Raises:
            EngineError: shapes that this backend does not take.
        """
        ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph on arrays, cast to its types; returns every output by name.

        Raises:
            EngineError: it failed.
        """
        ...


class HostMemory:
    """`Memory` in numpy arrays."""

    host_bytes = 0

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Memory.zeros`."""
        return np.zeros(shape, dtype)

    def stack(self, count: int, shape: tuple[int, ...], dtype: str) -> Array:
        """See `Memory.stack`."""
        return np.zeros((count, *shape), dtype)

    def copy(self, target: Any, at: int, source: Any, first: int, count: int) -> None:
        """See `Memory.copy`."""
        target[..., at : at + count, :] = source[..., first : first + count, :]

    def read(self, buffer: Any) -> Array:
        """The buffer itself: nothing is copied."""
        array: Array = buffer
        return array
