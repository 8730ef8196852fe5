"""Answers requests with `runtime.Engine`: what is recorded, and what is held against it.

python -m tests.conformance.recorder BUNDLE FILE
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from runtime.decode.generation import Generation, Piece
from runtime.decode.sampling import TokenLogprob
from runtime.engine import Engine
from runtime.errors import OuroError
from tests.conformance.requests import Asked, Request

Answer = Any


def record(bundle: Path, file: Path) -> None:
    """Writes requests to a bundle, each with its answer, as one JSON file."""
    with Engine.open(bundle, backend="cpu", threads=1) as engine, depths_unannounced():
        asked = Asked(engine).make()
        answers = [answer(engine, bundle, one) for one in asked]
    recorded = [{**one, "answer": found} for one, found in zip(asked, answers, strict=True)]
    text = json.dumps({"bundle": str(bundle.resolve()), "requests": recorded}, allow_nan=False)
    file.write_text(text)


def answer(engine: Engine, bundle: Path, request: Request) -> Answer:
    """What an engine on a bundle answers, as JSON values; an error too is an answer."""
    try:
        with depths_unannounced():
            return CALLS[request["call"]](engine, bundle, request)
    except OuroError as error:
        return describe_error(error, request)


@contextmanager
def depths_unannounced() -> Iterator[None]:
    """Lets depths that were never trained be asked for without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*never trained", UserWarning)
        yield


def describe_error(error: OuroError, request: Request) -> Answer:
    """An error's code, and what it says unless the request leaves that open."""
    said = {} if request.get("code") else {"problem": error.problem, "cure": error.cure}
    return {"error": {"code": error.code, **said}}


def _generate(engine: Engine, bundle: Path, request: Request) -> Answer:
    found = engine.generate(request["prompt"], **_arguments(request))
    return [_plain(one) for one in found] if isinstance(found, list) else _plain(found)


def _stream(engine: Engine, bundle: Path, request: Request) -> Answer:
    return _pieces(engine.stream(request["prompt"], **_arguments(request)))


def _logits(engine: Engine, bundle: Path, request: Request) -> Answer:
    found = engine.logits(request["ids"], request.get("depth"))
    return [_floats(one) for one in found] if isinstance(found, list) else _floats(found)


def _tokenize(engine: Engine, bundle: Path, request: Request) -> Answer:
    if "bytes" in request:
        return engine.tokenize(bytes.fromhex(request["bytes"]).decode("utf-8", "replace"))
    return engine.tokenize(request["text"])


def _detokenize(engine: Engine, bundle: Path, request: Request) -> Answer:
    return engine.detokenize(request["ids"])


def _session(engine: Engine, bundle: Path, request: Request) -> Answer:
    session = engine.session(request.get("depth"), request.get("halt_threshold"))
    answers = []
    for turn in request["turns"]:
        said: Answer = None
        if turn.get("reset"):
            session.reset()
        else:
            try:
                stream = session.stream(turn["prompt"], **_arguments(turn))
                said = _pieces(itertools.islice(stream, turn.get("take")))
                stream.close()
            except OuroError as error:
                said = describe_error(error, turn)
        answers.append({"said": said, "tokens": list(session.tokens), "depth": session.depth})
    return answers


def _open(engine: Engine, bundle: Path, request: Request) -> Answer:
    given = {name: request[name] for name in OPENING if name in request}
    with Engine.open(bundle / request.get("folder", ""), **{"backend": "cpu", **given}) as opened:
        return opened.backend


def _closed(engine: Engine, bundle: Path, request: Request) -> Answer:
    opened = Engine.open(bundle, backend="cpu", threads=1)
    opened.close()
    return _generate(opened, bundle, request)


OPENING = ("backend", "threads", "accuracy_level")
CALLS: dict[str, Callable[[Engine, Path, Request], Answer]] = {
    "generate": _generate,
    "stream": _stream,
    "logits": _logits,
    "tokenize": _tokenize,
    "detokenize": _detokenize,
    "session": _session,
    "open": _open,
    "closed": _closed,
}


def _arguments(request: Request) -> dict[str, Any]:
    names = ("depth", "halt_threshold", "chat")
    given = {name: request[name] for name in names if name in request}
    if "cancel" in request:
        left = itertools.count(request["cancel"], -1)
        given["cancel"] = lambda: next(left) <= 0
    return {**given, **request.get("options", {})}


def _plain(one: Generation) -> Answer:
    return {
        "text": one.text,
        "tokens": one.tokens,
        "prompt_tokens": one.prompt_tokens,
        "finish_reason": one.finish_reason,
        "depth": one.depth,
        "logprobs": [_logprob(each) for each in one.logprobs],
    }


def _pieces(pieces: Iterable[Piece]) -> Answer:
    return [
        {
            "text": piece.text,
            "token": piece.token,
            "finish_reason": piece.finish_reason,
            "depth": piece.depth,
            "logprob": None if piece.logprob is None else _logprob(piece.logprob),
        }
        for piece in pieces
    ]


def _logprob(one: TokenLogprob) -> Answer:
    return {"token": one.token, "logprob": one.logprob, "best": [list(best) for best in one.best]}


def _floats(logits: Any) -> Answer:
    flat = np.ascontiguousarray(logits, "<f4")
    return {"shape": list(flat.shape), "float32": base64.b64encode(flat.tobytes()).decode()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("file", type=Path)
    record(**vars(parser.parse_args()))
