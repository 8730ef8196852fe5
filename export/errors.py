"""The exception of the export stage."""

from __future__ import annotations


class ExportError(Exception):
    """A checkpoint can't be exported as asked; the message is one line."""
