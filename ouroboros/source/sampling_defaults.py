"""The sampling defaults that come with an original model: generation_config.json."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ouroboros.errors import CheckpointError
from ouroboros.model.base_config import is_whole
from runtime.errors import one_line

FILE = "generation_config.json"
# Without effect where `do_sample` is not true; transformers may then refuse to write them.
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)


def read_generation_config(source: str, folder: Path, config: Any) -> tuple[Any, tuple[str, ...]]:
    """Reads a model's sampling defaults.

    Args:
        source: the model, for messages.
        folder: its directory.
        config: its config, which says where a text ends when no file does.

    Returns:
        A GenerationConfig that can be written again, and a line for each thing left out of it.

    Raises:
        CheckpointError: the file is there and can't be read or holds what can't be meant.
    """
    file = folder / FILE
    try:
        if file.is_file():
            values = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError(f"it holds a {type(values).__name__}, not an object")
            found = GenerationConfig.from_pretrained(folder, local_files_only=True)
        else:
            found = GenerationConfig.from_model_config(config)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: {one_line(error)}", "correct it or take it away") from error
    _check_ids(source, found)
    return _writable(source, found)


def _check_ids(source: str, found: Any) -> None:
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = getattr(found, name, None)
        many = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if not all(one is None or is_whole(one) for one in many):
            raise CheckpointError(
                f"{source}: {FILE}: {name}={value!r:.80} must be a token id"
                f"{', a list of them' if name == 'eos_token_id' else ''} or null",
                "correct it",
            )


def _writable(source: str, found: Any) -> tuple[Any, tuple[str, ...]]:
    # Tried now, since it is only written at the very end of a conversion.
    reason = _why_unwritable(found)
    if reason is None:
        return found, ()
    left_out = []
    if found.do_sample is not True:
        for name in _SAMPLING:
            if getattr(found, name, None) is not None:
                left_out.append(f"{name}={getattr(found, name)}")
                setattr(found, name, None)
        reason = _why_unwritable(found)
    if reason is not None:
        raise CheckpointError(f"{source}: {FILE}: {reason}", "correct it or take it away")
    why = "without effect since do_sample is not true"
    return found, (f"left out of the sampling defaults, {why}: {', '.join(left_out)}",)


def _why_unwritable(found: Any) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            found.save_pretrained(folder)
        except (ValueError, TypeError) as error:
            return one_line(error)
    return None
