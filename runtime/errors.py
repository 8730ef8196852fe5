"""The runtime's errors. A message is one line: what was given, what is allowed, what to do."""

from __future__ import annotations


class RuntimeFault(Exception):  # noqa: N818 (RuntimeError is Python's)
    """Anything a user of the runtime can be told about in one line."""


class BundleError(RuntimeFault):
    """A bundle is missing, damaged, of an unknown version, or not a bundle."""


class EngineError(RuntimeFault):
    """A request an engine cannot serve: depth, prompt, sampling options, backend."""
