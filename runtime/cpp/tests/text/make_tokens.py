"""Writes tokens.json: small tokenizers of each family, and the tokens that texts have with them.

    python runtime/cpp/tests/text/make_tokens.py [--check]

The tokens are Hugging Face's, those of continued texts the Python engine's. `--check` encodes the
texts of the file again, with the tokenizers of the file, and writes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT))

from compare_tokenizers import FAMILIES, LANGUAGES, OTHERS, make_texts, train  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from runtime.text.codec import Codec  # noqa: E402
from tests.support.tokenizer_kinds import make_codec, sentence_piece  # noqa: E402

FILE = Path(__file__).with_name("tokens.json")
CONTINUED = ["cat", " the", "\nHi", "é", "日本", "<|im_end|>", " ", "1", "'ll"]
BEFORE = ["12", "All human", "e", "<s>", "x "]
# Nearly the same as others.
LEFT_OUT = ("gpt2", "metaspace, words", "metaspace, each unknown")


def main() -> int:
    """Writes or checks; returns the exit status."""
    if sys.argv[1:] == ["--check"]:
        known = json.loads(FILE.read_text("utf-8"))
        found = {
            name: describe(entry["tokenizer"], texts_of(entry)) for name, entry in known.items()
        }
        if wrong := [name for name in known if known[name] != found[name]]:
            print(f"{FILE} is not what Hugging Face gives: {', '.join(wrong)}")
        return 1 if wrong else 0
    texts = [text[:80] for text in make_texts(50, 5)]
    training = [
        *LANGUAGES,
        OTHERS,
        *(text.decode("utf-8", "replace") for text in make_texts(200, 4)),
    ]
    cores = {name: train(name, training, 420) for name in FAMILIES if name not in LEFT_OUT}
    cores["tiny"] = sentence_piece("first")()
    made = {name: describe(json.loads(core.to_str()), texts) for name, core in cores.items()}
    lines = []
    for name, entry in made.items():
        parts = [f'"{key}": {json.dumps(value)}' for key, value in entry.items()]
        lines.append(f"{json.dumps(name)}: {{{', '.join(parts)}}}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "ascii")
    return 0


def texts_of(entry: dict[str, Any]) -> list[bytes]:
    """The texts of an entry."""
    return [bytes.fromhex(one["bytes"]) for one in entry["texts"]]


def describe(tokenizer: dict[str, Any], texts: list[bytes]) -> dict[str, Any]:
    """A tokenizer, and what it makes of texts."""
    core: Any = Tokenizer.from_str(json.dumps(tokenizer))
    asked = []
    for text in texts:
        ids = core.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids
        whole = core.decode(ids, skip_special_tokens=False)
        asked.append({"bytes": text.hex(), "ids": ids, "plain": core.decode(ids), "whole": whole})
    return {"tokenizer": tokenizer, "texts": asked, "continued": list(continued(make_codec(core)))}


def continued(codec: Codec) -> Iterator[dict[str, Any]]:
    """Texts that continue others, some of which end in the middle of a word."""
    for before in BEFORE:
        ids = codec.encode(before)
        for start in (ids, ids[:-1]):
            for text in CONTINUED if start else []:
                yield {"before": start, "text": text, "ids": codec.encode_after(start, text)}


if __name__ == "__main__":
    raise SystemExit(main())
