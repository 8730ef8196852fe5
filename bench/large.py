"""Time and memory of a large model: convert, export and check, each in a process of its own.

python -m bench.large SCRATCH                      Qwen2.5-3B's shape, random weights: 20 GB of disk
python -m bench.large SCRATCH --layers 8 --hidden 512 --intermediate 1024      a quick try
python -m bench.large SCRATCH --precision int4

SCRATCH is where the model, its checkpoint and its bundle are made; --keep leaves them there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cli.errors import one_line_errors

OURO = (sys.executable, "-c", "from cli.main import main; main()")
KEPT = 8  # layers of prelude and of coda, as for Qwen2.5-3B
FACTOR, EXTRA_BYTES = 1.3, 1e9
LIMIT_S = 15 * 60


@dataclass(frozen=True)
class Stage:
    """One command's run.

    Attributes:
        name: of the command.
        seconds: wall time.
        peak_bytes: most memory it held, mapped files included.
        written_bytes: what it wrote, 0 where nothing.
        held_bytes: what the checkpoint's weights take in float32, in which it works on them; 0
            where it has no bound.
    """

    name: str
    seconds: float
    peak_bytes: int
    written_bytes: int
    held_bytes: int = 0


def write_model(folder: Path, layers: int, hidden: int, intermediate: int, vocab: int) -> None:
    """Writes a random model of Qwen2.5-3B's config in bfloat16, a file a layer.

    Args:
        folder: a new directory.
        layers: decoder layers; 36 in the real one.
        hidden: size of the hidden state, a multiple of 128; 2048.
        intermediate: size inside the MLP; 11008.
        vocab: tokens; 151936.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=min(2, hidden // 128),
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        dtype="bfloat16",
        bos_token_id=0,
        eos_token_id=0,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    shapes.pop("lm_head.weight")
    files: dict[str, list[str]] = {}
    for name in shapes:
        part = name.split(".")[2] if name.startswith("model.layers.") else "outer"
        files.setdefault(f"model-{part}.safetensors", []).append(name)
    generator = torch.Generator().manual_seed(0)
    for file, names in files.items():
        tensors = {}
        for name in names:
            value = torch.empty(shapes[name].shape)
            if name.endswith("norm.weight"):
                value.uniform_(0.5, 1.5, generator=generator)
            else:
                value.normal_(std=0.02, generator=generator)
            tensors[name] = value.to(torch.bfloat16)
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: file for file, ns in files.items() for n in ns}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={one: i for i, one in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(letters[:1])
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token=letters[0]).save_pretrained(folder)


def run_stage(name: str, command: list[str], out: Path | None) -> Stage:
    """Runs a command to its end.

    Args:
        name: of the stage.
        command: program and arguments.
        out: the directory it writes, None where it writes nothing.

    Raises:
        SystemExit: the command failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command)
    # Not communicate(): only wait4 says what this one child used.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed with status {process.returncode}")
    seconds = time.perf_counter() - started
    return Stage(name, seconds, used.ru_maxrss * 1024, 0 if out is None else _size(out))


def _count_bytes(checkpoint: Path) -> int:
    """What the weights of a checkpoint take in float32, whatever they are stored in."""
    from safetensors import safe_open

    numbers = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        numbers += sum(math.prod(shape) for shape in shapes)
    return 4 * numbers


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def run_stages(scratch: Path, arguments: argparse.Namespace) -> list[Stage]:
    """Makes the model, then converts, exports and checks it; one stage each."""
    original, checkpoint, bundle = (scratch / name for name in ("original", "checkpoint", "bundle"))
    sizes = [arguments.layers, arguments.hidden, arguments.intermediate, arguments.vocab]
    make = "import sys; from pathlib import Path; from bench.large import write_model; "
    make += "write_model(Path(sys.argv[1]), *map(int, sys.argv[2:]))"
    depth, last = str(arguments.max_depth), arguments.layers
    convert = ["convert", str(original), str(checkpoint), "--recurrent", str(last // 2)]
    # Fitting a bridge takes as long as the original takes to read the text.
    convert += ["--norm-init", arguments.norm_init, "--bridge", arguments.bridge]
    convert += ["--prelude", str(min(KEPT, last // 3)), "--coda", str(min(KEPT, last // 3))]
    export = ["export", str(checkpoint), str(bundle), "--max-depth", depth]
    export += ["--precision", arguments.precision]
    stages = [
        run_stage("make", [sys.executable, "-c", make, str(original), *map(str, sizes)], original),
        run_stage("convert", [*OURO, *convert], checkpoint),
        run_stage("export", [*OURO, *export], bundle),
    ]
    held = _count_bytes(checkpoint)
    stages[1:] = [replace(stage, held_bytes=held) for stage in stages[1:]]
    if arguments.check:
        stages.append(run_stage("check", [*OURO, "check", str(bundle)], None))
    return stages


def print_stages(stages: list[Stage]) -> None:
    """Prints a line a stage, and how the two that have bounds keep them."""
    print(f"{'':8} {'seconds':>8} {'peak GB':>8} {'bound GB':>9} {'written GB':>11}")
    for stage in stages:
        limit = FACTOR * stage.held_bytes + EXTRA_BYTES
        bound = f"{limit / 1e9:9.2f}" if stage.held_bytes else ""
        print(
            f"{stage.name:8} {stage.seconds:8.1f} {stage.peak_bytes / 1e9:8.2f} {bound:>9} "
            f"{stage.written_bytes / 1e9:11.2f}"
        )
    together = sum(stage.seconds for stage in stages if stage.name in ("convert", "export"))
    print(f"convert and export together {together:.0f} s, bound {LIMIT_S} s")


def main() -> None:
    """Measures, prints and, with --json, writes the figures with their machine."""
    from bench.measure import PACKAGES
    from cli.output import require_writable, write_json
    from runtime.measure.speed import describe_machine

    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("scratch", type=Path)
    for name, value in (
        ("layers", 36),
        ("hidden", 2048),
        ("intermediate", 11008),
        ("vocab", 151936),
        ("max-depth", 8),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--norm-init", default="ones")
    parser.add_argument("--bridge", default="none")
    parser.add_argument("--no-check", dest="check", action="store_false")
    parser.add_argument("--keep", action="store_true", help="leave what was made")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    require_writable(arguments.json, [])
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="large-", dir=arguments.scratch))
    try:
        stages = run_stages(scratch, arguments)
    finally:
        if arguments.keep:
            print(f"kept in {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    print_stages(stages)
    if arguments.json is not None:
        figures: dict[str, Any] = {
            "machine": describe_machine(PACKAGES),
            "stages": [asdict(stage) for stage in stages],
        }
        write_json(arguments.json, figures)


if __name__ == "__main__":
    with one_line_errors():
        main()
