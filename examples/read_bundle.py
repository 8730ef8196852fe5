"""Reads, verifies and runs a bundle with the standard library, numpy and onnxruntime alone.

Written from docs/bundle.md: python examples/read_bundle.py BUNDLE DEPTH TOKENS ID [ID ...]
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Microsoft's builds report what they run
import onnxruntime

KEYS = {"format_version", "model", "depth", "precision", "quantization", "graphs", "tokenizer"}
KEYS |= {"sampling", "parity", "files", "plans", "checkpoint", "tools"}


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def open_bundle(folder: Path) -> dict:
    """Returns the manifest once it and every file it lists are what they were."""
    text, said = ((folder / name).read_bytes() for name in ("manifest.json", "manifest.sha256"))
    line = f"{hashlib.sha256(text).hexdigest()}  manifest.json\n".encode()
    _require(said == line, "manifest.json is not the one that manifest.sha256 was made of")
    try:
        manifest = {**json.loads(text)}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"manifest.json is no object of JSON: {error}") from error
    version = json.dumps(manifest.get("format_version"))  # 4.0 is of another type
    _require(version == "4", f"format_version {version} is not 4")
    odd = manifest.keys() ^ KEYS  # keys further in are left to manifest.schema.json
    _require(not odd, f"manifest.json lacks or adds {sorted(odd)}")
    for name, entry in manifest["files"].items():
        odd = {"", ".", ".."} & {*name.split("/")} or [c for c in name if c in "\\:*" or c < " "]
        file = (folder / name).resolve()
        inside = not odd and file.is_relative_to(folder.resolve()) and file.is_file()
        _require(inside, f"{name!r} is missing, or no path of a file in the bundle")
        with file.open("rb") as stream:
            found = file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()
        _require(found == (entry["bytes"], entry["sha256"]), f"{name} is damaged")
    return manifest


def generate(folder: Path, prompt: list, depth: int, count: int) -> list:
    """Returns `count` greedy tokens at a depth, fewer where a text ends before."""
    manifest = open_bundle(folder)
    model, graph, most = manifest["model"], manifest["graphs"]["onnx"], manifest["depth"]["max"]
    _require(1 <= depth <= most, f"depth {depth} is outside 1..{most}")
    _require(manifest["precision"] != "bf16", "bf16 is for GPUs, and numpy has no such type")
    new, tokens, fed = [*manifest["tokenizer"]["prefix_token_ids"], *prompt], [], 0
    known = new and min(new) >= 0 and max(new) < model["vocab_size"]
    _require(known, f"token ids must be in 0..{model['vocab_size'] - 1}")
    unlisted = {graph["file"], *graph["data"]} - manifest["files"].keys()
    _require(not unlisted, f"files without a hash: {sorted(unlisted)}")
    level = (manifest["quantization"] or {}).get("accuracy_level", 1)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    # The graph names its data files itself, so it is opened where there are none but the listed.
    with tempfile.TemporaryDirectory() as alone:
        for name in (graph["file"], *graph["data"]):  # copies, since links are not opened
            (Path(alone) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, Path(alone) / name)
        session = onnxruntime.InferenceSession(str(Path(alone) / graph["file"]), options)
    names, k = [one["name"] for one in graph["outputs"]], model["recurrent_layers"]
    sizes = {"batch": 1, "slots": depth, f"{k} * slots": k * depth, "past_sequence": 0}
    cache = {  # before the first call: no slots, sums of zero
        one["name"]: np.zeros([sizes.get(size, size) for size in one["shape"]], one["dtype"])
        for one in graph["inputs"]
        if one["name"].startswith("past_")
    }
    while len(tokens) < count and not {*tokens} & {*manifest["tokenizer"]["eos_token_ids"]}:
        end = fed + len(new)
        ids = {"input_ids": [new], "position_ids": [range(fed, end)], "attention_mask": [[1] * end]}
        ids |= {"depth": [depth], "row_depth": [depth], "logit_index": [[len(new) - 1]]}
        inputs = cache | {name: np.array(value, np.int64) for name, value in ids.items()}
        if model["halting"]:  # 0: it chooses no depth of its own
            inputs["halt_threshold"] = np.zeros(1, np.float32)
        outputs = dict(zip(names, session.run(names, inputs), strict=True))
        for name in cache.keys() - {"past_pool_sum"}:  # new keys and values go behind the old
            cache[name] = np.concatenate([cache[name], outputs["new" + name[4:]]], axis=-2)
        cache["past_pool_sum"] = outputs["pool_sum"][:, :, -1]  # at the last position
        new, fed = [int(outputs["logits"][0, -1].argmax())], end
        tokens += new
    return tokens


if __name__ == "__main__":
    bundle, depth, count, *ids = sys.argv[1:]
    try:
        print(*generate(Path(bundle), [int(one) for one in ids], int(depth), int(count)))
    except Exception as error:  # of ONNX Runtime's some have several lines
        sys.exit(f"cannot run {bundle}: {' '.join(str(error).split())}")
