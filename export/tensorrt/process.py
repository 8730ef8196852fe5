"""Runs `export.tensorrt.child` and follows what it says, one JSON event a line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from export.errors import ExportError
from export.tensorrt.messages import describe_crash


def build_in_child(request: dict[str, Any], title: str, folder: Path) -> dict[str, Any]:
    """Runs export.tensorrt.child and waits for it; it is ended with this call, whatever ends it.

    Args:
        request: as export.tensorrt.child reads it.
        title: the flavour, for messages.
        folder: where it runs; paths in the request start there.

    Returns:
        The child's `done`.

    Raises:
        ExportError: TensorRT refused or crashed; its log is a note of the exception.
        OSError: the plan can't be written.
    """
    with tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "export.tensorrt.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=child_environment(),
            cwd=folder,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
        )
        try:
            return _follow(child, request, title, noise)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def child_environment() -> dict[str, str]:
    """The environment of a child that imports what this process can."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _follow(
    child: subprocess.Popen[bytes], request: dict[str, Any], title: str, noise: IO[bytes]
) -> dict[str, Any]:
    if child.stdin is None or child.stdout is None:
        raise ExportError(f"the builder of {title} has no pipes", "this is a bug in ouroboros")
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once: its exit status says how
    last = ""
    for line in child.stdout:
        event = json.loads(line)
        if "at" in event:
            last = str(event["at"])
        elif "done" in event:
            return dict(event["done"])
        elif "errno" in event:
            raise OSError(event["errno"], event["strerror"], request["plan"])
        elif "failed" in event:
            raise _with_log(ExportError(event["failed"], event["cure"]), event["log"])
    status = child.wait()
    noise.seek(0)
    log = noise.read().decode(errors="replace").splitlines()
    raise _with_log(describe_crash(title, status, last), log)


def _with_log(error: ExportError, log: Sequence[str]) -> ExportError:
    """Keeps TensorRT's own words for `--debug`, outside the one line."""
    if log:
        error.add_note("TensorRT said:\n" + "\n".join(log[-50:]))
    return error
