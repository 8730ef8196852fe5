"""ONNX Runtime, as every backend on it loads it."""

from __future__ import annotations

import os
from typing import Any


def load_onnxruntime() -> Any:
    """Returns the package onnxruntime, which reports nothing.

    Microsoft's own builds from 1.29 on report what they run, and keep a number of the device below
    the home directory for that, unless a variable is set before they are loaded. A program that has
    loaded it before has its events turned off from now on.

    Source: onnxruntime's Privacy.md, "Disabling Telemetry".
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime
