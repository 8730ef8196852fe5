"""One side of `bench.trees`: run by path, so that `runtime` is that of the tree in PYTHONPATH.

It asks an engine only for what has been the same since format 3, and imports nothing else of the
tree's. Each line that it reads is a number of tokens to feed; each that it writes is JSON.
"""

from __future__ import annotations

import json
import sys
import time

from runtime import Engine

TOKENS = 6
"""Timed after the fed ones; one more comes first and does not count."""


def main() -> None:
    """Opens the bundle that is named and measures until its input ends."""
    bundle, depth = sys.argv[1:]
    with Engine.open(bundle, backend="cpu") as engine:
        print(json.dumps({"open": bundle}), flush=True)
        size = engine.manifest.model.vocab_size
        for line in sys.stdin:
            prompt = [(7 * place + 11) % size for place in range(int(line))]
            decoder = engine.new_decoder([int(depth)])
            start = time.perf_counter()
            decoder.prefill([prompt])
            prefill_s = time.perf_counter() - start
            seconds = []
            for token in range(TOKENS + 1):
                start = time.perf_counter()
                decoder.step([token])
                seconds.append(time.perf_counter() - start)
            print(json.dumps({"prefill_s": prefill_s, "token_s": seconds[1:]}), flush=True)


if __name__ == "__main__":
    main()
