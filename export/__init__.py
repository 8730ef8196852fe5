"""Export: checkpoint to ONNX graph to bundle, with the cases that prove it.

Importing this package is cheap; torch and onnx are imported with the first name used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.bundle import export_bundle
    from export.cases import record_cases
    from export.options import ExportOptions, TrtOptions
    from export.triton.config import write_triton

__all__ = ["ExportOptions", "TrtOptions", "export_bundle", "record_cases", "write_triton"]

_HOMES = {
    "ExportOptions": "export.options",
    "TrtOptions": "export.options",
    "export_bundle": "export.bundle",
    "record_cases": "export.cases",
    "write_triton": "export.triton.config",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    return getattr(import_module(home), name)
