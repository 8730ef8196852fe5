"""What a folder holds, to tell whether anything in it changed."""

from __future__ import annotations

import os
from pathlib import Path


def snapshot(folder: Path) -> dict[str, str]:
    """Every entry below a folder and what it holds, links as where they lead."""
    return {
        str(path.relative_to(folder)): f"-> {os.readlink(path)}"
        if path.is_symlink()
        else "folder"
        if path.is_dir()
        else f"{path.stat().st_size} {path.read_bytes()[:64].hex()}"
        for path in sorted(folder.rglob("*"))
    }
