"""The original model that a delta stands on, held against its recorded hashes."""

from __future__ import annotations

from ouroboros.delta.record import SourceRecord
from ouroboros.errors import CheckpointError
from ouroboros.source.locate import get_weights, hash_read_files, hash_weights, locate
from ouroboros.source.places import Place
from ouroboros.source.weights import Original, open_original


def open_source(place: Place, wanted: SourceRecord, user: str) -> Original:
    """Opens an original model that must be a certain one, once its hash has proven to be that.

    Args:
        place: where it lies.
        wanted: which one it must be.
        user: what stands on it, for the message.

    Raises:
        CheckpointError: it is another one, or it can't be read.
    """
    weights = get_weights(place)
    files = hash_read_files(place.path, weights)
    if hash_weights(weights, files) != wanted.sha256:
        where = ", ".join(one for one in (wanted.url, wanted.commit[:12]) if one)
        raise CheckpointError(
            f"{place.source}: not the model that {user} stands on; "
            f"{_difference(wanted.files, files)}",
            f"give {wanted.name}{f' ({where})' if where else ''} as the source, with the weight "
            f"files {_list(wanted.files)}",
        )
    return open_original(locate(place), files)


def _difference(wanted: dict[str, str], found: dict[str, str]) -> str:
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name] != found[name]:
            return f"its {name} has sha256 {found[name][:12]}"
    return f"it has {', '.join(sorted(found)[:3])}"


def _list(files: dict[str, str]) -> str:
    shown = [f"{name} (sha256 {files[name][:12]})" for name in sorted(files)[:3]]
    return ", ".join([*shown, *(["..."] if len(files) > 3 else [])]) or "that it was made with"
