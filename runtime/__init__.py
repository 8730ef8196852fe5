"""Ouroboros runtime: open an exported bundle and generate with it, without torch.

    from runtime import Engine

    with Engine.open("bundle") as engine:
        print(engine.generate("Hello", depth=8).text)

Names are loaded when they are first asked for, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.bundle.reader import Bundle, open_bundle
    from runtime.decode.options import Options
    from runtime.engine import Engine, Generation, Piece
    from runtime.errors import BundleError, EngineError, RuntimeFault
    from runtime.session import Session

__all__ = [
    "Bundle",
    "BundleError",
    "Engine",
    "EngineError",
    "Generation",
    "Options",
    "Piece",
    "RuntimeFault",
    "Session",
    "open_bundle",
]


def __getattr__(name: str) -> object:
    import importlib

    if name in ("Engine", "Generation", "Options", "Piece"):
        module = "runtime.engine"
    elif name == "Session":
        module = "runtime.session"
    elif name in ("Bundle", "open_bundle"):
        module = "runtime.bundle.reader"
    elif name in ("RuntimeFault", "BundleError", "EngineError"):
        module = "runtime.errors"
    else:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
