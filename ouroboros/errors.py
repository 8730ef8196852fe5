"""The exceptions of the training core: one class a concern, one line a message."""

from __future__ import annotations


class OuroborosError(Exception):
    """Base of every error the training core raises on purpose."""


class ConfigError(OuroborosError, ValueError):
    """A dimension, option or argument is outside what the model allows."""


class CheckpointError(OuroborosError):
    """A checkpoint or source model is missing, damaged or of the wrong kind."""


class DataError(OuroborosError):
    """A text file can't be used: empty, binary, too short or malformed."""


class TrainingError(OuroborosError):
    """A training run can't start, resume or go on."""
