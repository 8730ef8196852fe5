"""What TensorRT itself says about a build before there is a graph, which may take minutes."""

from __future__ import annotations

import json
import subprocess
import sys

from export.errors import ExportError
from export.options import TrtOptions
from export.tensorrt.child import refuse_capability
from export.tensorrt.messages import clean, describe_crash
from export.tensorrt.process import child_environment
from export.tensorrt.target import choose_target
from runtime.backends.trt_flavours import Installed

_ASK_CAPABILITIES = """
import importlib, json, sys
from export.tensorrt.child import known_capabilities
print(json.dumps(known_capabilities(importlib.import_module(sys.argv[1]))))
"""


def require_buildable(options: TrtOptions) -> None:
    """Refuses plans that can't be built on this machine, whatever their graph: takes a moment.

    Args:
        options: the user's.

    Raises:
        ExportError: as `choose_target`, or TensorRT can't be loaded or lacks a compute capability.
    """
    target = choose_target(options)
    known = find_capabilities(target.installed)
    refused = [one for one in target.capabilities if known and one not in known]
    if refused:
        raise refuse_capability(target.installed.flavour.title, refused[0], known)


def find_capabilities(installed: Installed) -> list[str]:
    """The compute capabilities that a TensorRT builds for ahead of time; none: its own GPU only.

    A process of its own asks it, as one builds: a crash of TensorRT's libraries ends that one.

    Raises:
        ExportError: it can't be loaded.
    """
    asked = subprocess.run(
        [sys.executable, "-P", "-c", _ASK_CAPABILITIES, installed.module],
        capture_output=True,
        text=True,
        errors="replace",
        env=child_environment(),
    )
    title, install = installed.flavour.title, installed.flavour.install
    if asked.returncode < 0:
        raise describe_crash(title, asked.returncode, "")
    if asked.returncode > 0:
        reason = clean((asked.stderr.strip().splitlines() or ["no reason given"])[-1])
        raise ExportError(f"{title} can't be loaded: {reason}", f"install it again: {install}")
    # Its libraries print to stdout themselves; the answer comes last.
    return list(json.loads(asked.stdout.strip().splitlines()[-1]))
