"""Reads safetensors files without torch: what they hold, and whether every value is a number.

Source: the safetensors format: 8 bytes of length, a JSON header, then the tensors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from ouroboros.errors import CheckpointError

# An integer as wide as each float type, and its exponent's bits: all set in NaN and infinity.
EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
CHUNK = 1 << 22  # values looked at in one go


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        dtype: as safetensors names it, F32 for instance.
        shape: its dimensions.
        start: where its bytes start in the file.
        end: where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Reads the header of a safetensors file, which safetensors itself has checked.

    Args:
        file: the file.

    Returns:
        Its tensors by name.

    Raises:
        CheckpointError: it is truncated or no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np"):
            pass
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} is damaged: {reason}", "copy it again") from error
    header.pop("__metadata__", None)
    return {
        name: TensorEntry(
            entry["dtype"],
            tuple(entry["shape"]),
            *(8 + size + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
    }


def require_finite(file: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Looks for NaN and infinity, reading the file once.

    Args:
        file: a safetensors file.
        entries: its tensors, from `read_header`.

    Raises:
        CheckpointError: a tensor holds one.
    """
    import numpy as np

    for name, entry in entries.items():
        if entry.dtype not in EXPONENTS or entry.start == entry.end:
            continue
        kind, exponent = EXPONENTS[entry.dtype]
        count = (entry.end - entry.start) // np.dtype(kind).itemsize
        values = np.memmap(file, kind, "r", entry.start, (count,))
        mask = values.dtype.type(exponent)
        for first in range(0, count, CHUNK):
            if ((values[first : first + CHUNK] & mask) == mask).any():
                raise CheckpointError(
                    f"{file} is damaged: {name} holds NaN or infinity", "copy or make it again"
                )
