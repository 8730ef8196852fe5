"""The tree of errors: codes that never change, and a cure that stands apart."""

from __future__ import annotations

import pickle

import pytest

import export.errors
import ouroboros.errors
import runtime
from runtime import errors
from runtime.errors import OuroError

CODES = {
    "OuroError": 0,
    "ConfigError": 1,
    "SourceError": 2,
    "CheckpointError": 3,
    "DataError": 4,
    "TrainingError": 5,
    "ExportError": 6,
    "BundleError": 7,
    "EngineError": 8,
    "CommandError": 9,
}


def test_codes_are_those_of_the_c_library() -> None:
    found = {
        name: kind.code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, OuroError) and kind.__name__ == name
    }
    assert found == CODES
    for name, code in CODES.items():
        assert f"{name} {code}" in " ".join(str(errors.__doc__).split())


def test_packages_share_the_tree() -> None:
    assert ouroboros.errors.ConfigError is errors.ConfigError
    assert export.errors.ExportError is errors.ExportError
    assert runtime.EngineError is errors.EngineError
    assert ouroboros.errors.OuroborosError is runtime.RuntimeFault is OuroError


@pytest.mark.parametrize("cure", ["", "give 1 or more"])
def test_problem_and_cure_are_joined_when_shown(cure: str) -> None:
    error = errors.EngineError("depth=0 is none", cure)
    assert (error.problem, error.cure) == ("depth=0 is none", cure)
    assert str(error) == ("depth=0 is none; give 1 or more" if cure else "depth=0 is none")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.cure) == (errors.EngineError, str(error), cure)


def test_what_a_library_raises_becomes_ours_a_panic_too() -> None:
    class PanicException(BaseException):
        """As pyo3 has it."""

    for said in (ValueError("a\n b"), PanicException("a b")):
        with (
            pytest.raises(errors.DataError, match=r"^no text: a b; write one$") as caught,
            errors.errors_as(errors.DataError, "no text", "write one"),
        ):
            raise said
        assert caught.value.__cause__ is said
    for other in (errors.BundleError("ours"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(other)), errors.errors_as(errors.DataError, "no text"):
            raise other
