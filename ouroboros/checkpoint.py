"""Published checkpoints: safetensors, config.json and tokenizer, whole or not there.

Nothing is pickled, and a checkpoint loads alone, with no base model at hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from ouroboros.errors import CheckpointError, ConfigError
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.model.names import current_name
from ouroboros.source.locate import FLOATS, quiet_transformers, require_finite
from ouroboros.source.sampling_defaults import read_generation_config
from ouroboros.source.templates import check_templates
from ouroboros.storage.weights import INDEX as INDEX
from ouroboros.storage.weights import SINGLE, shapes_of, write_weights
from runtime.errors import OuroError, errors_as, one_line
from runtime.files.atomic import check_place, publish
from runtime.files.destinations import (
    BUNDLE,
    CHECKPOINT,
    DAMAGED,
    DELTA,
    DELTA_NAME,
    FILE,
    NAMES,
    RUN,
    TRITON,
    kind_of,
)
from runtime.files.hashing import hash_file as hash_file

PAPERS = ("LICENSE", "ATTRIBUTION")
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_ROWS = 4096  # of head and embedding, compared at a time
_INSTEAD = {
    FILE: "give the directory of a checkpoint",
    BUNDLE: "give the checkpoint that it was exported from",
    DAMAGED: "give the checkpoint that it was exported from",
    TRITON: "give the checkpoint that it was exported from",
    DELTA: "make the whole checkpoint: `ouro restore DELTA OUT --source SOURCE`",
    RUN: "it holds no weights yet: let `ouro train` go on with --resume to its end",
}
"""What to do where something else stands in the place of a checkpoint."""


def load_checkpoint(path: str | Path) -> tuple[OuroborosForCausalLM, Any]:
    """Loads a checkpoint in float32 eval mode, with its tokenizer (None where it has none).

    Raises:
        CheckpointError: a file is missing, truncated or damaged, a weight is missing or NaN.
        ConfigError: config.json holds unknown keys or values outside what is allowed.
    """
    path = Path(path)
    config, tokenizer = check_checkpoint(path)
    with (
        quiet_transformers(),
        errors_as(
            CheckpointError, f"{path}: can't load the weights", "copy the whole folder again"
        ),
    ):
        model = OuroborosForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
    require_finite(model, str(path))
    return model.eval(), tokenizer


def check_checkpoint(path: Path) -> tuple[OuroborosConfig, Any]:
    """Checks all of a checkpoint but whether each value of its weights is a number.

    Of the weights only headers are read, and a tied LM head that is stored all the same.

    Returns:
        Its config and its tokenizer, None where it has none.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or a weight is missing, left over
            or of another shape.
        ConfigError: config.json holds unknown keys or values outside what is allowed.
    """
    config = read_config(path)
    # Before transformers makes room for all that config.json asks for.
    _require_complete(path, config, check_weight_files(path))
    _require_one_head(path, config)
    with quiet_transformers():
        # In the place of a file that it can't read transformers takes defaults, without a word.
        read_generation_config(str(path), path, config)
        return config, _load_tokenizer(path)


def load_with_tokenizer(path: str | Path) -> tuple[OuroborosForCausalLM, Any]:
    """As `load_checkpoint`, of a checkpoint that must be able to read text.

    Raises:
        CheckpointError: it has no tokenizer, or as `load_checkpoint`.
        ConfigError: as `load_checkpoint`.
    """
    model, tokenizer = load_checkpoint(path)
    if tokenizer is None:
        raise CheckpointError(f"{path}: has no tokenizer.json", "convert the model again")
    return model, tokenizer


def papers_of(path: Path) -> dict[str, Path | bytes]:
    """Returns the licence and attribution of a checkpoint's origin, which travel with its weights.

    By their names, as `save_checkpoint` takes files; those that it has.
    """
    return {name: path / name for name in PAPERS if (path / name).is_file()}


def read_config(path: Path) -> OuroborosConfig:
    """Reads and validates a checkpoint's config.json.

    Raises:
        CheckpointError: it is missing, no JSON, or not an Ouroboros checkpoint's.
        ConfigError: a key is unknown or a value outside what is allowed.
    """
    file = path / "config.json"
    if not file.is_file():
        raise _no_checkpoint(path)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: can't be read as JSON: {one_line(error)}", "copy it again"
        ) from error
    if not isinstance(fields, dict) or fields.get("model_type") != "ouroboros":
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        raise CheckpointError(
            f"{path}: a {kind!r} model, not an Ouroboros checkpoint",
            f"convert it first with `ouro convert {path} OUT`",
        )
    try:
        config: OuroborosConfig = OuroborosConfig.from_dict(fields)
    except OuroError as error:
        raise ConfigError(f"{file}: {error.problem}", error.cure) from error
    except Exception as error:  # the kinds of transformers' validators
        raise ConfigError(f"{file}: {one_line(error)}", "correct it, or copy it again") from error
    if not config.base_config:
        raise ConfigError(f"{file}: has no base_config", "convert the model again")
    return config


def _no_checkpoint(path: Path) -> CheckpointError:
    kind = kind_of(path)
    if cure := _INSTEAD.get(kind):
        return CheckpointError(f"{path} is {NAMES.get(kind, 'a file')}, not a checkpoint", cure)
    return CheckpointError(
        f"{path}: no checkpoint here (config.json is missing)",
        "make one with `ouro convert SOURCE OUT`",
    )


def weight_files(path: Path) -> list[Path]:
    """Returns the safetensors files of a checkpoint.

    Raises:
        CheckpointError: one is missing, or the index names a file outside the checkpoint.
    """
    index = path / INDEX
    if not index.is_file():
        file = path / SINGLE
        if not file.is_file() and (path / DELTA_NAME).is_file():
            raise CheckpointError(
                f"{path}: a delta, which lacks what its original model holds",
                f"make the whole checkpoint: `ouro restore {path} OUT --source SOURCE`",
            )
        if not file.is_file():
            raise CheckpointError(f"{path}: {SINGLE} is missing", "copy the whole folder")
        return [file]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: not a safetensors index: {one_line(error)}", "copy it again"
        ) from error
    if not names:
        raise CheckpointError(f"{index}: names no file", "copy it again")
    files = [path / str(name) for name in names]
    for file in files:
        if file.parent != path or not file.is_file():
            raise CheckpointError(
                f"{file}: named by {INDEX} but not in the checkpoint", "copy the whole folder"
            )
    if (path / SINGLE).is_file() and path / SINGLE not in files:
        raise CheckpointError(
            f"{path}: holds {SINGLE} beside {INDEX}, which does not name it, so it is not clear "
            "which weights are meant",
            "take one of the two away",
        )
    return files


def check_weight_files(path: Path) -> dict[str, tuple[int, ...]]:
    """Opens every safetensors header, so that a damaged file is named before anything loads.

    Returns:
        The shape of each tensor, by the name that it has now.

    Raises:
        CheckpointError: a file is missing, truncated or no safetensors file, or holds integers, or
            two tensors have one name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no dict)
                    part = tensors.get_slice(name)
                    if (kind := part.get_dtype()) not in FLOATS:
                        raise CheckpointError(
                            f"{file}: {name} is {kind}, allowed: {', '.join(FLOATS)}",
                            "convert or train again",
                        )
                    if (now := current_name(name)) in shapes:
                        raise CheckpointError(
                            f"{file}: holds {name}, which the checkpoint holds elsewhere too",
                            "take away the one that is not meant",
                        )
                    shapes[now] = tuple(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: truncated or not a safetensors file ({one_line(error)})", "copy it again"
            ) from error
    return shapes


def _require_complete(
    path: Path, config: OuroborosConfig, held: Mapping[str, tuple[int, ...]]
) -> None:
    wanted = shapes_of(config)
    # A tied head is the embedding and never in the file.
    tied = {HEAD} if config.tie_word_embeddings else set()
    both = wanted.keys() & held.keys()
    for kind, names in (
        ("missing", wanted.keys() - held.keys() - tied),
        ("unexpected", held.keys() - wanted.keys()),
        ("mismatched", {name for name in both if wanted[name] != held[name]}),
    ):
        if names:
            first = min(names)
            if kind == "mismatched":
                first += f": {list(held[first])} instead of {list(wanted[first])},"
            raise CheckpointError(
                f"{path}: {len(names)} {kind} weights, {first} first",
                "config.json and the weights are not of one checkpoint",
            )


def _require_one_head(path: Path, config: OuroborosConfig) -> None:
    """Refuses a stored head that should be the embedding and differs: it would be left untied."""
    if not config.tie_word_embeddings:
        return
    with contextlib.ExitStack() as opened:
        found: dict[str, Any] = {}
        for file in weight_files(path):
            tensors = opened.enter_context(safe_open(file, framework="pt"))
            names = {HEAD, EMBEDDING} & set(tensors.keys())
            found |= {name: tensors.get_slice(name) for name in names}
        if HEAD not in found:
            return
        # In pieces and as they are loaded.
        for first in range(0, found[HEAD].get_shape()[0], _ROWS):
            head, embedding = (found[name][first : first + _ROWS] for name in (HEAD, EMBEDDING))
            if not torch.equal(head.float(), embedding.float()):
                raise CheckpointError(
                    f"{path}: tie_word_embeddings is true, but {HEAD} differs from the embedding",
                    "set tie_word_embeddings to false, in base_config and beside it, to keep the "
                    "head",
                )


def _load_tokenizer(path: Path) -> Any:
    if not (path / "tokenizer.json").is_file():
        return None
    with errors_as(CheckpointError, f"{path}: can't load the tokenizer", "copy it again"):
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    check_templates(tokenizer, str(path))
    return tokenizer


def save_checkpoint(
    model: OuroborosForCausalLM,
    tokenizer: Any,
    out: str | Path,
    files: dict[str, Path | bytes] | None = None,
    keep: Collection[str] = (),
) -> str:
    """Writes a checkpoint atomically, in the place of one that `out` held.

    Weights that conversion does not train are stored in the narrowest type that loses nothing
    (see `ouroboros.storage.weights`); `load_checkpoint` and `from_pretrained` widen them again.

    Args:
        model: the model; its config is saved with it.
        tokenizer: its tokenizer, or None.
        out: the destination directory.
        files: further files by name, as content or as a path to copy.
        keep: names of entries of an existing `out` that stay (a training run's state and logs).

    Returns:
        What `checkpoint_sha256` gives for it, computed while it was written.

    Raises:
        CheckpointError: `out` holds anything but a checkpoint (or a run, where `keep` names its
            state and logs), the disk is full, or `out` can't be written; it is then as it was.
    """
    out = Path(out)
    # The state of a run is only replaced by who keeps it.
    replaces = (CHECKPOINT, RUN) if {"state", "logs"} <= set(keep) else (CHECKPOINT,)
    if obstacle := check_place(out, replaces):
        raise CheckpointError(f"{out} {obstacle.problem}", obstacle.cure)
    try:
        with publish(out, keep, replaces=replaces) as staging, quiet_transformers():
            _write_config(model, staging)
            hashes = write_weights(model, staging)
            if tokenizer is not None:
                tokenizer.save_pretrained(staging)
            for name, content in (files or {}).items():
                if isinstance(content, bytes):
                    (staging / name).write_bytes(content)
                else:
                    shutil.copyfile(content, staging / name)
            return combine_hashes(hash_file(staging / "config.json"), hashes)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{out}: can't write the checkpoint: {one_line(error)}", "what was there is untouched"
        ) from error


def _write_config(model: OuroborosForCausalLM, folder: Path) -> None:
    """Writes what `save_pretrained` does beside the weights."""
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def checkpoint_sha256(path: str | Path) -> str:
    """Returns the hash of a checkpoint: of config.json and of its weight files, in order."""
    path = Path(path)
    hashes = {file.name: hash_file(file) for file in weight_files(path)}
    return combine_hashes(hash_file(path / "config.json"), hashes)


def combine_hashes(config: str, weights: Mapping[str, str]) -> str:
    """Returns the hash of a checkpoint from those of its files.

    Args:
        config: sha256 of config.json.
        weights: sha256 of each weight file by its name.
    """
    digest = hashlib.sha256(bytes.fromhex(config))
    for name in sorted(weights):
        digest.update(bytes.fromhex(weights[name]))
    return digest.hexdigest()
