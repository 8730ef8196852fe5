"""Where an original model lies: a directory, a .gguf file, or a model of the hub, at one commit.

A model of the hub is fetched into the hub's own cache, every file from the commit that its branch
named first, and is then a directory like any other.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.utils._validators import validate_repo_id
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ouroboros.errors import SourceError
from runtime.errors import one_line

HUB_PAGE = "https://huggingface.co/"
# All but the weights: config, tokenizer, templates, licence, card.
_SMALL = ("*.json", "*.model", "*.txt", "*.jinja", "LICEN*", "NOTICE*", "README.md")
_LOG_IN = "`hf auth login`"


@dataclass(frozen=True)
class Place:
    """Where an original model lies.

    Attributes:
        source: what the user gave.
        name: what the model is known by: its hub id, or its directory's or file's name.
        path: the directory or .gguf file.
        repo: its hub id, empty where it is not of the hub.
        commit: of the hub, empty likewise.
        fetched: its weights may still have to be fetched.
    """

    source: str
    name: str
    path: Path
    repo: str = ""
    commit: str = ""
    fetched: bool = False

    @property
    def facts(self) -> dict[str, str]:
        """What the hub id alone says of a model, by the names that `Papers` has for it."""
        if not self.repo:
            return {}
        owner = self.repo.partition("/")[0] if "/" in self.repo else ""
        return {"organization": owner, "url": HUB_PAGE + self.repo}


def find_place(source: str | Path) -> Place:
    """Finds an original model; of one on the hub everything but the weights is fetched.

    Raises:
        SourceError: there is none, or it can't be fetched.
    """
    source = str(source)
    path = _local_path(source)
    if path is None:
        folder = _fetch(source, None, _SMALL)
        _refuse_only_gguf(source, folder)
        _require_model(source, folder)
        return Place(source, source, folder, source, folder.name, fetched=True)
    repo, commit = _cached_as(path)
    if path.is_file():
        return Place(source, path.stem, path, repo, commit)
    _require_model(source, path)
    return Place(source, repo or path.resolve().name or source, path, repo, commit)


def fetch_weights(place: Place, names: Sequence[str]) -> None:
    """Fetches files of a model of the hub, from the commit that its config is of.

    Args:
        place: nothing is done where it was given as a path.
        names: of the files; those that the model does not have are no error.

    Raises:
        SourceError: they can't be fetched.
    """
    missing = [name for name in names if not (place.path / name).is_file()]
    if place.fetched and missing:
        _fetch(place.repo, place.commit, names)


def _local_path(source: str) -> Path | None:
    """Returns the directory or .gguf file that `source` names, None where it may be a hub id."""
    if not source.strip():
        raise SourceError(
            "the source is empty", "give a Hugging Face model directory, a .gguf file or a hub id"
        )
    path = _plain(source)
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        return path
    if path.exists():
        raise SourceError(
            f"{source}: neither a model directory nor a .gguf file", "give one of these or a hub id"
        )
    if path.suffix.lower() == ".gguf" or not _is_repo_id(source):
        what = "file" if path.suffix else "directory"
        raise SourceError(f"{source}: no such {what}", f"{_near(path)}check the path")
    return None


def _is_repo_id(source: str) -> bool:
    try:
        validate_repo_id(source)
    except errors.HFValidationError:
        return False
    return True


def _near(path: Path) -> str:
    """Names what `path` may have meant: the first part that is missing, spelt as one that is not.

    Returns:
        "" or a clause that ends in "; ".
    """
    known = path
    while not known.exists() and known != known.parent:
        missing, known = known.name, known.parent
    if known == path:
        return ""
    try:
        siblings = sorted(entry.name for entry in known.iterdir())
    except OSError:
        return ""
    lower = {name.lower(): name for name in siblings}
    close = difflib.get_close_matches(missing.lower(), lower, n=3, cutoff=0.6)
    rest = path.relative_to(known / missing)
    found = [known / lower[name] / rest for name in close]
    found = [one for one in found if one.exists()] or [known / lower[name] for name in close]
    return f"did you mean {' or '.join(map(str, found))}? If not, " if found else ""


def _cached_as(path: Path) -> tuple[str, str]:
    """Returns hub id and commit where `path` lies in the hub's cache, else empty texts."""
    folder = (path if path.is_dir() else path.parent).resolve()
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith("models--"):
        return "", ""
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/"), folder.name


def _require_model(source: str, folder: Path) -> None:
    """Refuses a directory that holds no model, or more than one."""
    if (folder / "adapter_config.json").is_file():
        raise SourceError(
            f"{source}: holds a PEFT adapter (adapter_config.json), which would be left out",
            "merge "
            "it into its base model (peft: merge_and_unload, save_pretrained) and give the result",
        )
    if (folder / "config.json").is_file():
        return
    if files := sorted(p.name for p in folder.iterdir() if p.suffix.lower() == ".gguf"):
        raise SourceError(
            f"{source}: no config.json in this directory but a .gguf file",
            f"give the file: {folder / files[0]}",
        )
    for parent in (folder, folder / "snapshots"):
        if parent.name == "snapshots" and parent.is_dir():
            inside = sorted(p for p in parent.iterdir() if (p / "config.json").is_file())
            if inside:
                raise SourceError(
                    f"{source}: a folder of the hub's cache", f"give the model in it: {inside[-1]}"
                )
    raise SourceError(
        f"{source}: no config.json {'in this directory' if folder == _plain(source) else 'in it'}",
        "give a Hugging Face model directory, a .gguf file or a hub id",
    )


def _plain(source: str) -> Path:
    return Path(source).expanduser()


def _refuse_only_gguf(repo: str, folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    try:
        files = HfApi().list_repo_files(repo, revision=folder.name)
    except Exception:  # without a connection: what is missing is said without it
        return
    if found := sorted(name for name in files if name.lower().endswith(".gguf")):
        raise SourceError(
            f"{repo}: holds .gguf files and no config.json",
            f"fetch one of them, `hf download {repo} {found[0]}`, and give the path that prints",
        )


def _fetch(repo: str, commit: str | None, patterns: Sequence[str]) -> Path:
    """Fetches the files of a model that match, all from one commit; returns their folder."""
    try:
        with _quiet_hub():
            found = snapshot_download(repo, revision=commit, allow_patterns=list(patterns))
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{repo}: a gated model", f"accept its terms at {HUB_PAGE}{repo} and log in: {_LOG_IN}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(*_explain_unknown(repo)) from error
    except errors.LocalEntryNotFoundError as error:
        if getattr(error, "snapshot_path", None):  # of IncompleteSnapshotError, which is newer
            raise SourceError(
                f"{repo}: only part of it lies in the hub's cache and the hub can't be reached",
                "run this again with a connection",
            ) from error
        raise SourceError(*_explain_unreachable(repo)) from error
    except Exception as error:  # of the connection, the server, the disk: each raises its own kind
        raise SourceError(
            f"{repo}: can't be fetched from the hub: {one_line(error)}",
            f"run this again; where it goes on failing, `hf download {repo}` says more",
        ) from error
    return Path(found)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            enable_progress_bars()


def _explain_unknown(repo: str) -> tuple[str, str]:
    """The problem and the cure."""
    try:
        dataset = HfApi().repo_exists(repo, repo_type="dataset")
    except Exception:  # the question is an extra; unanswered, the plain line stands
        dataset = False
    if dataset:
        return f"{repo}: a data set, not a model", "give a model's hub id, directory or .gguf file"
    return (
        f"{repo}: no directory of that name, nor a model on the hub",
        f"{_near(Path(repo))}check the name, and if the model is private, log in: {_LOG_IN}",
    )


def _explain_unreachable(repo: str) -> tuple[str, str]:
    """The problem and the cure."""
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub can't be reached"
    return (
        f"{repo}: no directory of that name, and no model in the hub's cache ({why})",
        f"{_near(Path(repo))}check the path or the name, and the connection for a model of the hub",
    )
