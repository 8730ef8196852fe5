"""Makes the vectors: what any implementation of the engine must find, as JSON files.

    python -m tests.vectors.make

writes them anew; a test compares what stands here with what would be written. Seeds and other whole
numbers beyond 2**53 are strings. `chat.json` is of `tests.support.chat_vectors`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import MANIFEST_NAME, SamplingSpec
from runtime.decode.generation import Row
from runtime.decode.kv_cache import capacity_for
from runtime.decode.options import Options, check_options
from runtime.decode.philox import philox, uniform
from runtime.decode.request import Request
from runtime.decode.sampling import Sampler, draw, penalise
from runtime.errors import BundleError, OuroError
from runtime.text.codec import load_tokenizer
from tests.support import tokenizer_changes
from tests.support.manifests import FIELDS, WRONG
from tests.support.tokenizer_kinds import KINDS, make_codec

FOLDER = Path(__file__).resolve().parent
DEFAULTS = SamplingSpec(0.0, 0, 1.0, 0.0, 1.0)
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def make_draws() -> dict[str, Any]:
    """Draws by seed and number."""
    seeds = [0, 1, 42, 2**32 - 1, 2**32, 2**53 + 1, 2**64 - 1]
    numbers = [0, 1, 2, 1000, 2**32 - 1, 2**32, 2**40 + 5]
    cases = [
        {
            "seed": str(seed),
            "number": str(number),
            "words": philox((number % 2**32, number >> 32, 0, 0), (seed % 2**32, seed >> 32)),
            "uniform": uniform(seed, number),
        }
        for seed in seeds
        for number in numbers
    ]
    return {"cases": cases}


def make_choices() -> dict[str, Any]:
    """Tokens chosen from given logits, each option alone and several together."""
    chosen: list[dict[str, Any]] = [
        {},
        {"top_k": 1, "temperature": 2.0},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 1.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.05},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.9, "repetition_penalty": 1.5, "top_p": 0.95},
    ]
    generator = np.random.default_rng(2604)
    cases = []
    for number, changes in enumerate(chosen * 2):
        logits = (generator.normal(size=48) * 3).astype(np.float32)
        if number >= len(chosen):  # many ties
            logits = np.round(logits)
        prompt = generator.integers(0, 48, 6).tolist()
        options = {**GREEDY, **changes}
        seed = int(generator.integers(0, 2**63))
        asked = check_options(Options(seed=seed, **options), DEFAULTS)
        sampler = Sampler(asked, prompt)
        tokens = [sampler.choose(logits) for _ in range(12)]
        require_clear(logits, asked, prompt, tokens)
        cases.append(
            {
                "logits": [float(value) for value in logits],
                "prompt": prompt,
                "options": options,
                "seed": str(seed),
                "tokens": tokens,
            }
        )
    return {"cases": cases}


def require_clear(
    logits: Any, options: Options, prompt: list[int], tokens: list[int], margin: float = 1e-9
) -> None:
    """No draw, `top_p` or `min_p` may lie where the last bit of an `exp` decides.

    Args:
        logits: float32 [V], before the repetition penalty.
        options: checked.
        prompt: the tokens before the first that was chosen.
        tokens: those that were chosen, each from these logits.
        margin: how far the draw, `top_p` and `min_p` are moved up and down.
    """
    if not options.temperature or options.top_k == 1:
        return
    penalty = float(options.repetition_penalty or 1.0)
    for number, token in enumerate(tokens):
        given = penalise(logits, np.unique([*prompt, *tokens[:number]]), penalty)
        exact = uniform(int(options.seed or 0), number)
        for shift in (-margin, margin):
            near = min(max(exact + shift, 0.0), 1 - 1e-12)
            top_p, min_p = (
                value + shift if value not in (0.0, 1.0) else value
                for value in (float(options.top_p or 1.0), float(options.min_p or 0.0))
            )
            moved = dataclasses.replace(options, top_p=top_p, min_p=min_p)
            for drawn, chosen in ((near, options), (exact, moved)):
                found = draw(given, int(given.argmax()), chosen, lambda drawn=drawn: drawn)
                assert found == token, "a choice lies on a boundary; take another seed"


def make_streams() -> dict[str, Any]:
    """Token ids to pieces of text, with and without stop strings, for every kind of tokenizer."""
    generator = np.random.default_rng(7)
    tokenizers, cases = {}, []
    for kind, build in KINDS.items():
        core = build()
        codec = make_codec(core)
        tokenizers[kind] = json.loads(core.to_str())
        size = core.get_vocab_size(with_added_tokens=True)
        known = [one for one in range(size) if core.id_to_token(one) is not None]
        for number in range(6):
            tokens = generator.choice(known, int(generator.integers(4, 14))).tolist()
            prompt = generator.choice(known, int(generator.integers(1, 4))).tolist()
            text = codec.decode(tokens, skip_special_tokens=False)
            start = int(generator.integers(0, max(1, len(text) - 2)))
            stop = text[start : start + 2] if number % 2 and "\ufffd" not in text else ""
            options = Options(
                max_new_tokens=len(tokens), stop=(stop,) if stop else (), **GREEDY, seed=0
            )
            row = Row(codec, Request(tuple(prompt), 1, options), [])
            pieces = []
            for token in tokens:
                logits = np.zeros(size, np.float32)
                logits[token] = 1.0
                pieces.append(row.take(logits).text)
                if row.finish_reason:
                    break
            cases.append(
                {
                    "tokenizer": kind,
                    "prompt": prompt,
                    "tokens": tokens,
                    "stop": list(options.stop),
                    "pieces": pieces,
                    "finish_reason": row.finish_reason,
                }
            )
    return {"tokenizers": tokenizers, "cases": cases}


def make_buckets() -> dict[str, Any]:
    """Slots needed, the model's positions, and the capacity of the cache."""
    slots = [0, 1, 63, 64, 65, 128, 500, 512, 513, 577, 1000, 1024, 2048, 4000, 8191, 8192, 8200]
    return {
        "cases": [
            {"slots": one, "positions": most, "capacity": capacity_for(one, most)}
            for most in (100, 2048, 8192, 131072)
            for one in slots
        ]
    }


def make_manifests() -> dict[str, Any]:
    """A manifest, and changes that make it one to refuse, with the same code everywhere."""
    cases = []
    for keys, value, _ in WRONG:
        # A JSON number has no infinity, and not every reader holds a thousand digits.
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if isinstance(value, int) and abs(value) >= 2**63:
            continue
        if _has_huge(value):
            continue
        cases.append({"keys": list(keys), "value": value})
    files = {
        name: {"sha256": "0" * 64, "bytes": 1}
        for name in ("model.onnx", "model.onnx.data", "tokenizer.json")
    }
    base = {"format_version": 4, **FIELDS, "files": files}
    return {"file": MANIFEST_NAME, "code": BundleError.code, "manifest": base, "cases": cases}


def make_tokenizers() -> dict[str, Any]:
    """Tokenizers, changes of them, and what each makes of texts and of tokens: or the code of its
    error."""
    texts, ids = tokenizer_changes.TEXTS, tokenizer_changes.IDS
    tokenizers, cases = {}, []
    for name, build in tokenizer_changes.BASES.items():
        tokenizers[name] = json.loads(build().to_str())
        for change in tokenizer_changes.changes():
            text = json.dumps(tokenizer_changes.changed(tokenizers[name], change))
            case = {"tokenizer": name, "keys": list(change[0])}
            case |= {} if change[1] is ... else {"value": change[1]}
            cases.append({**case, **use_tokenizer(text, texts, ids)})
    return {"texts": texts, "ids": ids, "tokenizers": tokenizers, "cases": cases}


def use_tokenizer(text: str, texts: list[str], ids: list[list[int]]) -> dict[str, Any]:
    """What a tokenizer.json makes of texts and of tokens, or the code of its error."""

    def of(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except OuroError as error:
            return {"code": error.code}

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(text, encoding="utf-8")
        core = of(lambda: load_tokenizer(file))
    if isinstance(core, dict):
        return core
    codec = make_codec(core)
    whole = functools.partial(codec.decode, skip_special_tokens=False)
    return {
        "tokens": [of(functools.partial(codec.encode, text)) for text in texts],
        "decoded": [of(functools.partial(_both, codec.decode, whole, one)) for one in ids],
    }


def _both(first: Callable[[Any], Any], second: Callable[[Any], Any], given: Any) -> list[Any]:
    return [first(given), second(given)]


def _has_huge(value: Any) -> bool:
    if isinstance(value, list):
        return any(_has_huge(one) for one in value)
    return isinstance(value, int) and abs(value) >= 2**63


MAKERS = {
    "draws.json": make_draws,
    "choices.json": make_choices,
    "streams.json": make_streams,
    "buckets.json": make_buckets,
    "manifests.json": make_manifests,
    "tokenizers.json": make_tokenizers,
}


def render(name: str) -> str:
    """The text of a file of vectors."""
    return json.dumps(MAKERS[name](), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    for file in MAKERS:
        (FOLDER / file).write_text(render(file), encoding="utf-8")
