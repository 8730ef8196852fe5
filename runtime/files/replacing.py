"""One file in the place of another, whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = ".ouro-"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a path of the same name to write to, which becomes `target` when the block ends well.

    It is in a new directory beside `target`, so that nobody can have put a link in its place. The
    file gets the mode that the umask gives. Where the block fails, all is as it was.

    Args:
        target: what is there is replaced, a link itself and not what it leads to.

    Raises:
        OSError: the directory of `target` may not be written to.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=target.parent) as folder:
        staged = Path(folder, target.name)
        yield staged
        staged.replace(target)
