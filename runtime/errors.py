"""The errors of all packages, one tree. Standard library only: every room stands on it.

    OuroError            0   anything a user can be told about in one line
    ├─ ConfigError       1   a dimension, option or argument is outside what the model allows
    ├─ CheckpointError   3   a checkpoint is missing, damaged or of the wrong kind
    │  └─ SourceError    2   an original model is, or is of a kind that is not read
    ├─ DataError         4   a text file can't be used: empty, binary, too short or malformed
    ├─ TrainingError     5   a training run can't start, resume or go on
    ├─ ExportError       6   a checkpoint can't be exported as asked
    ├─ BundleError       7   a bundle is missing, damaged, of an unknown version, or none
    ├─ EngineError       8   a request that an engine can't serve: depth, prompt, options, backend
    └─ CommandError      9   a command line that can't be carried out, for no library's reason

The numbers are the errors' codes. They never change, and the C library returns them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class OuroError(Exception):
    """Anything a user can be told about in one line.

    Attributes:
        problem: what was given, and what is allowed.
        cure: what to do next; empty where the problem says it all.
    """

    code: ClassVar[int] = 0

    def __init__(self, problem: str, cure: str = "") -> None:
        super().__init__(problem, cure)
        self.problem = problem
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.problem}; {self.cure}" if self.cure else self.problem


class ConfigError(OuroError, ValueError):
    """A dimension, option or argument is outside what the model allows."""

    code = 1


class CheckpointError(OuroError):
    """A checkpoint is missing, damaged or of the wrong kind."""

    code = 3


class SourceError(CheckpointError):
    """An original model is missing, damaged or of a kind that is not read."""

    code = 2


class DataError(OuroError):
    """A text file can't be used: empty, binary, too short or malformed."""

    code = 4


class TrainingError(OuroError):
    """A training run can't start, resume or go on."""

    code = 5


class ExportError(OuroError):
    """A checkpoint can't be exported as asked."""

    code = 6


class BundleError(OuroError):
    """A bundle is missing, damaged, of an unknown version, or not a bundle."""

    code = 7


class EngineError(OuroError):
    """A request an engine cannot serve: depth, prompt, sampling options, backend."""

    code = 8


class CommandError(OuroError):
    """A command line that can't be carried out, for a reason no library of ours knows."""

    code = 9


RuntimeFault = OuroError
"""The name that the runtime's users have caught so far."""


def one_line(error: BaseException) -> str:
    """Returns an error's text on one line, or its class where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def errors_as(kind: type[OuroError], problem: str, cure: str = "") -> Iterator[None]:
    """Makes one of our errors of whatever a library raises in the block, a panic of Rust too.

    Args:
        kind: of the error.
        problem: what could not be done; what the library said follows it.
        cure: what to do next.

    Raises:
        OuroError: as the block does, or of `kind`.
    """
    try:
        yield
    except OuroError:
        raise
    except BaseException as error:
        # pyo3's PanicException is no Exception, and another class in every extension module.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{problem}: {one_line(error)}", cure) from error
