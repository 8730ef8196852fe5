"""Reads, verifies and runs a bundle with the standard library, numpy and onnxruntime alone.

Written from docs/bundle.md; it imports nothing of ours, and prints any other engine's tokens.

    python examples/read_bundle.py BUNDLE DEPTH TOKENS ID [ID ...]
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Microsoft's builds report what they run
import onnxruntime

KEYS = {"format_version", "model", "depth", "precision", "quantization", "graphs", "tokenizer"}
KEYS |= {"sampling", "parity", "files", "plans", "checkpoint", "tools"}
TYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64}


def open_bundle(folder: Path) -> dict:
    """Returns the manifest once it and every file it lists are what they were."""
    manifest = json.loads(text := (folder / "manifest.json").read_bytes())
    if manifest.get("format_version") != 4:
        sys.exit(f"format_version {manifest.get('format_version')} is not 4")
    if manifest.keys() != KEYS:
        sys.exit(f"manifest.json lacks or adds {sorted(manifest.keys() ^ KEYS)}")
    said = (folder / "manifest.sha256").read_text().split()
    if said != [hashlib.sha256(text).hexdigest(), "manifest.json"]:
        sys.exit("manifest.json is not the one that manifest.sha256 was made of")
    for name, entry in manifest["files"].items():
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()) or not file.is_file():
            sys.exit(f"{name} is missing, or lies elsewhere")
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if (file.stat().st_size, found) != (entry["bytes"], entry["sha256"]):
            sys.exit(f"{name} is damaged")
    return manifest


def empty_cache(graph: dict, layers: int, depth: int) -> dict:
    """The cache before the first call: no slots, sums of zero."""
    sizes = {"batch": 1, "slots": depth, f"{layers} * slots": layers * depth, "past_sequence": 0}
    return {
        one["name"]: np.zeros([sizes.get(size, size) for size in one["shape"]], TYPES[one["dtype"]])
        for one in graph["inputs"]
        if one["name"].startswith("past_")
    }


def generate(folder: Path, prompt: list, depth: int, count: int) -> list:
    """Returns `count` greedy tokens at a depth, fewer where a text ends before."""
    manifest = open_bundle(folder)
    model, graph = manifest["model"], manifest["graphs"]["onnx"]
    if not 1 <= depth <= manifest["depth"]["max"]:
        sys.exit(f"depth {depth} is outside 1..{manifest['depth']['max']}")
    if unlisted := {graph["file"], *graph["data"]} - manifest["files"].keys():
        sys.exit(f"files without a hash: {sorted(unlisted)}")
    if manifest["precision"] == "bf16":
        sys.exit("a bundle in bf16 is for GPUs, and numpy has no such type")
    level = (manifest["quantization"] or {}).get("accuracy_level", 1)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    session = onnxruntime.InferenceSession(str(folder / graph["file"]), options)
    names = [one["name"] for one in graph["outputs"]]
    cache, tokens, fed = empty_cache(graph, model["recurrent_layers"], depth), [], 0
    new = [*manifest["tokenizer"]["prefix_token_ids"], *prompt]
    if not new or min(new) < 0 or max(new) >= model["vocab_size"]:
        sys.exit(f"token ids must be in 0..{model['vocab_size'] - 1}")
    while len(tokens) < count:
        inputs = {
            "input_ids": np.array([new]),
            "position_ids": np.arange(fed, fed + len(new))[None],
            "attention_mask": np.ones((1, fed + len(new)), np.int64),
            "depth": np.array([depth]),
            "row_depth": np.array([depth]),
            "logit_index": np.array([[len(new) - 1]]),
        }
        if model["halting"]:  # 0: it chooses no depth of its own
            inputs["halt_threshold"] = np.zeros(1, np.float32)
        outputs = dict(zip(names, session.run(names, inputs | cache), strict=True))
        fed += len(new)
        # New keys and values go behind the old ones; the sums are those of the last position.
        for name in cache.keys() - {"past_pool_sum"}:
            cache[name] = np.concatenate([cache[name], outputs["new" + name[4:]]], axis=-2)
        cache["past_pool_sum"] = outputs["pool_sum"][:, :, -1]
        new = [int(outputs["logits"][0, -1].argmax())]
        tokens += new
        if new[0] in manifest["tokenizer"]["eos_token_ids"]:
            break
    return tokens


if __name__ == "__main__":
    bundle, depth, count, *ids = sys.argv[1:]
    print(*generate(Path(bundle), [int(one) for one in ids], int(depth), int(count)))
