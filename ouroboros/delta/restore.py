"""A delta and its source become the whole checkpoint again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from ouroboros.checkpoint import (
    check_weight_files,
    combine_hashes,
    hash_file,
    read_config,
    weight_files,
)
from ouroboros.delta.assemble import (
    ANEW,
    check_weights,
    open_pieces,
    stored_factors,
    stored_tensors,
)
from ouroboros.delta.record import WEIGHTS, DeltaRecord, WeightsRecord, read_record
from ouroboros.delta.source import open_source
from ouroboros.errors import CheckpointError
from ouroboros.model.auto_map import MODULE, write_module
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.source.places import find_place
from ouroboros.storage.tensors import StoredTensor, write_tensors
from ouroboros.storage.weights import build_empty, stored_names
from runtime.errors import one_line
from runtime.files.atomic import check_place, publish
from runtime.files.destinations import ADAPTERS, CHECKPOINT, DELTA_NAME, find_strangers

_MODULE_FILE = f"{MODULE}.py"


@dataclass(frozen=True)
class RestoreReport:
    """What a restored checkpoint is.

    Attributes:
        sha256: its hash, as `checkpoint_sha256` gives it.
        identical: it is that of the checkpoint the delta was made from; else its tensors were
            rounded, or lay in another order.
        bytes: of its weights.
    """

    sha256: str
    identical: bool
    bytes: int


def restore_delta(
    delta: str | Path, out: str | Path, source: str, report: Callable[[str], None] | None = None
) -> RestoreReport:
    """Writes the checkpoint that a delta was made from.

    Args:
        delta: the delta's directory.
        out: the checkpoint directory to write.
        source: the original model that it stands on: hub id, directory or .gguf file.
        report: called with a line of progress now and then.

    Raises:
        CheckpointError: the delta is damaged, or no delta; the source is another model; what comes
            out is not what went in; or `out` can't be written. Nothing is written then.
        ConfigError: the delta's config.json holds what this version does not know.
    """
    folder, out, say = Path(delta), Path(out), report or (lambda line: None)
    record = read_record(folder)
    read = [folder, *([Path(source)] if Path(source).exists() else [])]
    if obstacle := check_place(out, (CHECKPOINT,), read):
        raise CheckpointError(f"{out} {obstacle.problem}", obstacle.cure)
    place = find_place(source)
    say(f"checking {folder}")
    check_own(folder, record)
    config = _read_config(folder, record)
    pieces = open_pieces(folder, record.own)
    empty = build_empty(config)
    state = empty.state_dict()
    expected = {name: tuple(state[name].shape) for name in stored_names(empty)}
    say(f"opening {source}")
    original = open_source(place, record.source, str(folder))
    check_weights(folder, record.weights, pieces, original, expected)
    hashes: dict[str, str] = {}
    try:
        with publish(out, replaces=(CHECKPOINT,)) as staging:
            for name, weights in record.weights.items():
                say(f"writing {name}")
                tensors = stored_tensors(weights, pieces, original)
                hashes[name] = _write(staging / name, tensors, weights, folder)
            if factors := stored_factors(record.weights, pieces):
                with (staging / ADAPTERS).open("wb") as file:
                    write_tensors(file, factors)
            _copy_files(folder, record, place.path, staging)
            write_module(staging)
            if strangers := find_strangers(staging, CHECKPOINT):
                raise CheckpointError(
                    f"{folder}: names the file {strangers[0]!r:.80}, which no checkpoint has", ANEW
                )
            check_weight_files(staging)
            if {file.name for file in weight_files(staging)} != set(hashes):
                raise CheckpointError(
                    f"{folder}: its index of weights names others than {', '.join(sorted(hashes))}",
                    ANEW,
                )
            digest = combine_hashes(hash_file(staging / "config.json"), hashes)
            size = sum((staging / name).stat().st_size for name in hashes)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{out}: can't write the checkpoint: {one_line(error)}", "what was there is untouched"
        ) from error
    return RestoreReport(digest, digest == record.checkpoint_sha256, size)


def _write(
    path: Path, tensors: Sequence[StoredTensor], weights: WeightsRecord, folder: Path
) -> str:
    """Writes one weight file and returns its hash, which must be the recorded one."""
    with path.open("wb") as file:
        found = write_tensors(file, tensors, weights.metadata)
    if found != weights.sha256:
        raise CheckpointError(
            f"{folder}: {path.name} comes out with sha256 {found[:12]} instead of "
            f"{weights.sha256[:12]}",
            "get an intact copy of the delta; if this one is, report it with the versions that "
            "`ouro doctor` prints",
        )
    return found


def check_own(folder: Path, record: DeltaRecord) -> None:
    """Holds a delta's own files against their hashes.

    Raises:
        CheckpointError: one is missing or damaged, or a part of a file has no hash.
    """
    for name, listed in record.own.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing", "copy the whole folder")
        if (size := file.stat().st_size) != listed.bytes:
            raise CheckpointError(
                f"{file}: {size:,} bytes instead of {listed.bytes:,}: truncated or changed",
                "copy it again",
            )
        if hash_file(file) != listed.sha256:
            raise CheckpointError(f"{file}: damaged or changed since it was written", ANEW)
    named = {part for parts in record.files.values() for part in parts}
    if gone := sorted(named - record.own.keys()):
        raise CheckpointError(f"{folder / DELTA_NAME}: {gone[0]} has no hash", ANEW)


def _read_config(folder: Path, record: DeltaRecord) -> OuroborosConfig:
    if record.files.get("config.json") != ("config.json",):
        raise CheckpointError(f"{folder / DELTA_NAME}: names no config.json", ANEW)
    twice = sorted(record.files.keys() & (record.copied.keys() | record.weights.keys()))
    beside = record.files.keys() | record.copied.keys()
    made = sorted(n for n in beside if n in (_MODULE_FILE, ADAPTERS) or WEIGHTS.fullmatch(n))
    if twice or made:
        name = (twice or made)[0]
        raise CheckpointError(f"{folder / DELTA_NAME}: {name} is not one of a delta's files", ANEW)
    config = read_config(folder)
    held = sum(len(file.tensors) for file in record.weights.values())
    layers = config.num_layers + config.recurrent_layers
    if layers > held:  # or else a number in config.json decides how long this takes
        raise CheckpointError(f"{folder}: {layers:,} layers by config.json, {held:,} tensors", ANEW)
    return config


def _copy_files(folder: Path, record: DeltaRecord, source: Path, staging: Path) -> None:
    for name, parts in record.files.items():
        target = staging / name
        target.parent.mkdir(exist_ok=True)
        with target.open("wb") as file:
            for part in parts:
                with (folder / part).open("rb") as stream:
                    shutil.copyfileobj(stream, file)
    for name, digest in record.copied.items():
        target = staging / name
        if (source / name).is_file():
            shutil.copyfile(source / name, target)
        if not target.is_file() or hash_file(target) != digest:
            raise CheckpointError(
                f"{source}: its {name} is not the one that {folder} takes over",
                f"give {record.source.name} with the {name} of sha256 {digest[:12]}",
            )
