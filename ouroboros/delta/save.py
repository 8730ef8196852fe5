"""Makes a delta of a checkpoint: whatever its original model does not hold bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ouroboros.checkpoint import (
    check_weight_files,
    combine_hashes,
    hash_file,
    read_config,
    weight_files,
)
from ouroboros.delta.assemble import check_weights, open_pieces, stored_tensors
from ouroboros.delta.comparison import Comparison
from ouroboros.delta.options import LOSSLESS, DeltaOptions
from ouroboros.delta.record import (
    TEMPLATES,
    DeltaRecord,
    FileRecord,
    SourceRecord,
    TensorRecord,
    WeightsRecord,
    is_plain,
    read_record,
    write_record,
)
from ouroboros.delta.shards import write_shards
from ouroboros.delta.source import open_source
from ouroboros.errors import CheckpointError
from ouroboros.model.auto_map import MODULE
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.source.locate import get_weights
from ouroboros.source.places import Place, find_place
from ouroboros.source.weights import Original
from ouroboros.storage.tensors import write_tensors
from runtime.errors import one_line
from runtime.files.atomic import check_place, publish
from runtime.files.destinations import ADAPTERS, DELTA, DELTA_NAME, RUN, find_strangers, list_files

# The large files of a tokenizer. Others are held even where the source has them: a licence must
# travel along, and a small change beside the source's weights is no reason to restore nothing.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")


@dataclass(frozen=True)
class DeltaReport:
    """What a delta holds, and what it leaves to its source.

    Attributes:
        tensors: names of the tensors it holds.
        copied: names of those that are the source's bit for bit.
        updated: names of those that are the source's and low-rank updates, whose factors it holds.
        numbers: how many numbers it holds.
        bytes: of all its files.
        files: how many these are.
        checkpoint_bytes: of the checkpoint's weights.
        left_out: files beside the checkpoint that are not of it.
    """

    tensors: tuple[str, ...]
    copied: tuple[str, ...]
    updated: tuple[str, ...]
    numbers: int
    bytes: int
    files: int
    checkpoint_bytes: int
    left_out: tuple[str, ...]


class _Nothing:
    """Takes bytes and keeps none."""

    def write(self, data: Any, /) -> None:
        """Takes the next bytes."""


def save_delta(
    checkpoint: str | Path,
    out: str | Path,
    source: str,
    options: DeltaOptions | None = None,
    *,
    report: Callable[[str], None] | None = None,
    **changes: Any,
) -> DeltaReport:
    """Writes a delta of a checkpoint, from which `restore_delta` makes the checkpoint again.

    It is put together with its source once, into nothing, before it is published: without rounding,
    what comes out has the hashes of the checkpoint's own files, or nothing is written.

    Args:
        checkpoint: the checkpoint, or a training run; its state and logs are left out.
        out: the directory to write.
        source: the original model it was converted from: hub id, directory or .gguf file.
        options: how; None for the defaults.
        report: called with a line of progress now and then.
        changes: options by name, in place of those of `options`.

    Raises:
        CheckpointError: the checkpoint or the source can't be read, the source is another model
            than the checkpoint was converted from, or `out` can't be written.
        ConfigError: an option is not allowed.
        TypeError: there is no such option.
    """
    chosen = replace(options or DeltaOptions(), **changes)
    folder, out, say = Path(checkpoint), Path(out), report or (lambda line: None)
    read = [folder, *([Path(source)] if Path(source).exists() else [])]
    if obstacle := check_place(out, (DELTA,), read):
        raise CheckpointError(f"{out} {obstacle.problem}", obstacle.cure)
    config = read_config(folder)
    check_weight_files(folder)
    say(f"opening {source}")
    place = find_place(source)
    original = open_source(place, _converted_from(config), str(folder))
    say("looking for what the source does not hold")
    made = Comparison(folder, config, original, chosen)
    weights = {file.name: made.compare(file) for file in weight_files(folder)}
    try:
        with publish(out, replaces=(DELTA,)) as staging:
            say(f"writing {len(made.own)} tensors")
            held = [*made.own.values(), *made.factors.values()]
            own, names = write_shards(staging, held, chosen.max_file_bytes)
            weights = {name: _fill(file, names) for name, file in weights.items()}
            copied, files = _take_files(folder, original, staging, chosen.max_file_bytes, weights)
            sizes = _hash_own(staging, own)
            say("putting it together again")
            weights = _rehearse(staging, weights, sizes, original, made.shapes)
            hashes = {file.name: hash_file(file) for file in weight_files(folder)}
            if chosen.dtype == LOSSLESS:
                _require_identical(folder, weights, hashes)
            record = DeltaRecord(
                chosen.dtype,
                combine_hashes(hash_file(folder / "config.json"), hashes),
                _describe_source(original, place),
                weights,
                copied,
                files,
                sizes,
            )
            write_record(staging, record)
            _require_readable(staging, record, folder)
            size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{out}: can't write the delta: {one_line(error)}", "what was there is untouched"
        ) from error
    return DeltaReport(
        tuple(made.own),
        tuple(made.copied),
        tuple(made.updated),
        sum(math.prod(tensor.shape) for tensor in held),
        size,
        len(sizes) + 1,
        sum(file.stat().st_size for file in weight_files(folder)),
        tuple(_strangers(folder)),
    )


def _converted_from(config: OuroborosConfig) -> SourceRecord:
    facts = {name: str(config.source.get(name, "")) for name in ("name", "sha256", "url", "commit")}
    if not facts["sha256"]:
        raise CheckpointError(
            "the checkpoint's config.json does not say by hash what it was converted from",
            "convert the model again",
        )
    files = config.source.get("files")
    weights = {
        name: digest
        for name, digest in (files if isinstance(files, dict) else {}).items()
        if name.endswith((".safetensors", ".bin", ".gguf"))
    }
    return SourceRecord(files=weights, **facts)


def _describe_source(original: Original, place: Place) -> SourceRecord:
    names = [path.name for path in get_weights(place).files]
    files = {name: original.files[name] for name in names}
    return SourceRecord(original.name, original.sha256, files, original.papers.url, original.commit)


def _fill(file: WeightsRecord, pieces: Mapping[str, list[str]]) -> WeightsRecord:
    """Returns a weight file's record with the pieces of the delta's own tensors."""

    def cut(whole: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(piece for name in whole for piece in pieces[name])

    def cut_all(one: TensorRecord) -> TensorRecord:
        updates = (replace(u, a=cut(u.a), b=cut(u.b)) for u in one.updates)
        return replace(one, pieces=cut(one.pieces), updates=tuple(updates))

    return replace(file, tensors={name: cut_all(one) for name, one in file.tensors.items()})


def _take_files(
    folder: Path,
    original: Original,
    staging: Path,
    limit: int,
    weights: Mapping[str, WeightsRecord],
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Takes over what a checkpoint holds beside its weights, but for a vocabulary of the source."""
    copied: dict[str, str] = {}
    files: dict[str, tuple[str, ...]] = {}
    left_out = {*_strangers(folder), *weights, f"{MODULE}.py", ADAPTERS}
    inner = folder / TEMPLATES
    for file in [*list_files(folder), *(list_files(inner) if inner.is_dir() else [])]:
        name = file.relative_to(folder).as_posix()
        if name in left_out:
            continue
        if not is_plain(name):
            raise CheckpointError(
                f"{file}: a delta holds files of plain names only, of letters, digits, _, . and -",
                "rename it, or the chat template of that name",
            )
        if name in _VOCABULARIES and original.files.get(name) == (digest := hash_file(file)):
            copied[name] = digest
        else:
            files[name] = _split(file, name, staging, limit)
    return copied, files


def _split(file: Path, name: str, staging: Path, limit: int) -> tuple[str, ...]:
    size = file.stat().st_size
    count = max(1, math.ceil(size / limit))
    names = [name] if count == 1 else [f"{name}.part{number}" for number in range(1, count + 1)]
    with file.open("rb") as stream:
        for part in names:
            (staging / part).parent.mkdir(exist_ok=True)
            (staging / part).write_bytes(stream.read(limit))
    return tuple(names)


def _strangers(folder: Path) -> list[str]:
    return find_strangers(folder, RUN)


def _hash_own(staging: Path, known: Mapping[str, str]) -> dict[str, FileRecord]:
    """Returns hash and size of every file of a delta; those of `known` were hashed meanwhile."""
    paths = [path for path in sorted(staging.rglob("*")) if path.is_file()]
    names = {path.relative_to(staging).as_posix(): path for path in paths}
    return {
        name: FileRecord(known.get(name) or hash_file(path), path.stat().st_size)
        for name, path in names.items()
    }


def _rehearse(
    staging: Path,
    weights: Mapping[str, WeightsRecord],
    own: Mapping[str, FileRecord],
    original: Original,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, WeightsRecord]:
    """Puts the weights together without writing them; returns them with their hashes."""
    pieces = open_pieces(staging, own)
    check_weights(staging, weights, pieces, original, shapes)
    made = {}
    for name, file in weights.items():
        tensors = stored_tensors(file, pieces, original)
        made[name] = replace(file, sha256=write_tensors(_Nothing(), tensors, file.metadata))
    return made


def _require_readable(staging: Path, record: DeltaRecord, folder: Path) -> None:
    try:
        same, reason = read_record(staging) == record, "it comes back as another"
    except CheckpointError as error:
        same, reason = False, error.problem.removeprefix(f"{staging / DELTA_NAME}: ")
    if not same:
        raise CheckpointError(
            f"{folder}: what it holds can't stand in a delta: {reason}",
            "write it anew: save_checkpoint(*load_checkpoint(PATH), OUT)",
        )


def _require_identical(
    folder: Path, weights: Mapping[str, WeightsRecord], hashes: Mapping[str, str]
) -> None:
    for name, file in weights.items():
        if file.sha256 != hashes[name]:
            raise CheckpointError(
                f"{folder / name}: laid out otherwise than safetensors does, so that it can't be "
                "restored to the bit",
                "write it anew: save_checkpoint(*load_checkpoint(PATH), OUT)",
            )
