"""What a checkpoint's directory holds and whether it is whole, read without torch.

Where torch is installed, all is checked that loading checks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouroboros.errors import CheckpointError, OuroborosError
from runtime.errors import one_line
from runtime.files.destinations import ADAPTERS, DELTA, kind_of

# An integer as wide as each float type, and its exponent's bits: all set in NaN and infinity.
EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
CHUNK = 1 << 22  # values looked at in one go


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        name: by which it is found.
        dtype: as safetensors names it, F32 for instance.
        shape: its dimensions.
        start: where its bytes start in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class WeightFile:
    """One file of weights, and whether it is whole.

    Attributes:
        name: of the file.
        bytes: its size.
        tensors: what its header lists; none where that can't be read.
        problem: what is wrong with it; None where every value is a number.
    """

    name: str
    bytes: int
    tensors: tuple[TensorEntry, ...]
    problem: CheckpointError | None

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(entry.count for entry in self.tensors)


@dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint holds.

    Attributes:
        config: the plain JSON of its config.json.
        files: its safetensors files, by name.
        problem: the first thing that is wrong with it; None where it is whole.
        unread: the package whose absence left the configuration unread; empty where it was read.
    """

    config: Mapping[str, Any]
    files: tuple[WeightFile, ...]
    problem: OuroborosError | None
    unread: str = ""


def inspect_checkpoint(path: Path) -> CheckpointReport:
    """Reads a checkpoint: its configuration and, once, every value of its weights.

    Args:
        path: its directory.

    Raises:
        CheckpointError: its config.json can't be read, or it is a delta or an original model. What
            else is wrong is in the report, beside all that could be read.
    """
    config = read_plain_config(path)
    # Adapters are in the weights already.
    found = (file for file in sorted(path.glob("*.safetensors")) if file.is_file())
    names = (file for file in found if file.name != ADAPTERS)
    files = tuple(inspect_weights(file) for file in names)
    if not files:
        problem = CheckpointError(f"{path} holds no .safetensors file", "convert it again")
        return CheckpointReport(config, files, problem)
    if damage := [one.problem for one in files if one.problem is not None]:
        return CheckpointReport(config, files, damage[0])
    try:
        from ouroboros.checkpoint import check_checkpoint  # imports torch

        check_checkpoint(path)
    except OuroborosError as error:
        return CheckpointReport(config, files, error)
    except ModuleNotFoundError as error:
        return CheckpointReport(config, files, None, unread=str(error.name))
    return CheckpointReport(config, files, None)


def read_plain_config(path: Path) -> dict[str, Any]:
    """Returns the plain JSON of a checkpoint's config.json.

    Args:
        path: the checkpoint's directory.

    Raises:
        CheckpointError: it can't be read, or is another model's.
    """
    if kind_of(path) == DELTA:
        raise CheckpointError(
            f"{path} is a delta, which lacks what its original model holds",
            f"make the whole checkpoint: `ouro restore {path} OUT --source SOURCE`",
        )
    file = path / "config.json"
    if not file.exists():
        raise CheckpointError(
            f"{path} is neither a bundle nor a checkpoint: it has no config.json, and no "
            "manifest.json of a bundle",
            "give a directory that `ouro convert`, `ouro train` or `ouro export` wrote",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} can't be read: {one_line(error)}", "copy it again"
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or kind != "ouroboros":
        raise CheckpointError(
            f"{path} is an original model ({kind}), not a checkpoint of Ouroboros",
            f"convert it first: ouro convert {path} OUT",
        )
    return config


def inspect_weights(file: Path) -> WeightFile:
    """Reads a safetensors file: what it lists, and whether every value of it is a number.

    Args:
        file: the file.
    """
    entries: tuple[TensorEntry, ...] = ()
    problem = None
    try:
        entries = read_entries(file)
        require_finite(file, entries)
    except CheckpointError as error:
        problem = error
    return WeightFile(file.name, file.stat().st_size, entries, problem)


def read_entries(file: Path) -> tuple[TensorEntry, ...]:
    """Lists the tensors of a safetensors file, in the order in which they lie in it.

    Args:
        file: the file.

    Raises:
        CheckpointError: it is truncated or no such file, or holds what no checkpoint does.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    found: list[tuple[str, str, tuple[int, ...], int]] = []
    try:
        with safe_open(str(file), framework="np") as tensors:
            for name in tensors.offset_keys():
                part = tensors.get_slice(name)
                kind, shape = part.get_dtype(), tuple(part.get_shape())
                if kind not in EXPONENTS:
                    raise CheckpointError(
                        f"{file}: {name} is {kind}, allowed: {', '.join(EXPONENTS)}",
                        "convert or train again",
                    )
                size = math.prod(shape) * np.dtype(EXPONENTS[kind][0]).itemsize
                found.append((name, kind, shape, size))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {one_line(error)}", "copy it again") from error
    # safetensors has made sure that they lie one behind the other, from the header to the end.
    start = file.stat().st_size - sum(size for *_, size in found)
    entries = []
    for name, kind, shape, size in found:
        entries.append(TensorEntry(name, kind, shape, start))
        start += size
    return tuple(entries)


def require_finite(file: Path, entries: Sequence[TensorEntry]) -> None:
    """Looks for NaN and infinity, reading the file once.

    Args:
        file: a safetensors file.
        entries: its tensors, from `read_entries`.

    Raises:
        CheckpointError: a tensor holds one.
    """
    import numpy as np

    for entry in entries:
        if not entry.count:
            continue
        kind, exponent = EXPONENTS[entry.dtype]
        values = np.memmap(file, kind, "r", entry.start, (entry.count,))
        mask = values.dtype.type(exponent)
        for first in range(0, entry.count, CHUNK):
            if ((values[first : first + CHUNK] & mask) == mask).any():
                raise CheckpointError(
                    f"{file} is damaged: {entry.name} holds NaN or infinity",
                    "copy or make it again",
                )
