"""The folder of one model in a Triton repository, whose other folders are other people's models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.errors import ExportError
from runtime.files.atomic import check_place, publish
from runtime.files.destinations import TRITON, TRITON_SIGN

CONFIG = "config.pbtxt"
DEFAULT_NAME = "ouroboros"
SIGN = TRITON_SIGN
_STAGING = ".staging"


def check_folder(repository: Path, bundle: Path, name: str = DEFAULT_NAME) -> Path:
    """Refuses a repository that the model may not be written to.

    Args:
        repository: the directory that Triton serves models from; may not exist yet.
        bundle: what the model is made from; may not exist yet.
        name: of the model.

    Returns:
        The model's folder in the repository.

    Raises:
        ExportError: the repository is a file, or it and the bundle lie one in the other, symbolic
            links followed; or it has a folder of that name which was not written by an export.
        OSError: a directory can't be read.
    """
    folder = repository / name
    for place in (repository, folder):
        _check_apart(place, bundle)
    if repository.exists() and not repository.is_dir():
        raise ExportError(f"{repository} is a file", "give --triton a directory")
    if obstacle := check_place(folder, (TRITON,)):
        raise ExportError(f"{folder} {obstacle.problem}", obstacle.cure)
    return folder


def _check_apart(place: Path, bundle: Path) -> None:
    real, other = Path(os.path.realpath(place)), Path(os.path.realpath(bundle))
    if real == other:
        reason = "is the bundle itself"
    elif other.is_relative_to(real):
        reason = f"holds the bundle {bundle}, which Triton would take for a model"
    elif real.is_relative_to(other):
        reason = f"lies in the bundle {bundle}, which an export replaces as a whole"
    else:
        return
    raise ExportError(f"{place} {reason}", "give --triton a directory apart from it")


@contextmanager
def publish_model(folder: Path) -> Iterator[Path]:
    """Yields a staging directory that becomes the model's `folder` when the block ends well.

    Triton takes every directory in a repository for a model, hidden ones too, and one that polls
    could load what is half written. So it is staged beside the repository; where that is another
    file system or may not be written to, two levels deep in the repository: there Triton finds a
    directory with neither a configuration nor a version, says so and loads nothing.

    Args:
        folder: from `check_folder`; what it held is replaced as a whole, atomically.

    Raises:
        OSError: the disk is full or the folder can't be written; it is then as it was.

    Source: Triton's core, ModelRepositoryManager::Poll and LocalFileSystem::GetDirectorySubdirs.
    """
    folder = Path(os.path.realpath(folder))
    repository = folder.parent
    made = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    beside, inside = repository.parent, repository / _STAGING
    one_system = beside.stat().st_dev == repository.stat().st_dev
    place = beside if one_system and os.access(beside, os.R_OK | os.W_OK | os.X_OK) else inside
    if place == inside:
        inside.mkdir(exist_ok=True)
    done = False
    try:
        with publish(folder, staged_in=place, replaces=(TRITON,)) as staging:
            yield staging
        done = True
    finally:
        with suppress(OSError):  # it is not empty while another export is at work there
            if place == inside:
                inside.rmdir()
        with suppress(OSError):
            if made and not done:
                repository.rmdir()
