"""Quality of bundles on held-out text: loss, perplexity and KL to the PyTorch model, by depth.

python -m bench.quality CHECKPOINT BUNDLE... --text FILE... [--depth N...] [--level N]

A quantised bundle has a row at each accuracy level. The first row is the checkpoint itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.measure import PACKAGES, make_parser
from cli.errors import CommandError, one_line_errors
from cli.output import require_writable, write_json
from runtime import Engine
from runtime.bundle.manifest import ACCURACY_LEVELS
from runtime.bundle.reader import read_manifest
from runtime.measure.speed import describe_machine
from runtime.parity.comparison import measure_text
from runtime.parity.metrics import log_softmax

Logits = Callable[[NDArray[Any], int], NDArray[Any]]


@dataclass(frozen=True)
class Quality:
    """One subject at one depth.

    Attributes:
        subject: the checkpoint's or the bundle's name, with its accuracy level.
        depth: recurrences.
        loss: mean next-token loss, nats a token.
        perplexity: its exponential.
        kl: mean over all positions, nats, of the checkpoint's distribution to the subject's.
        agreement: share of positions whose best token is the checkpoint's.
    """

    subject: str
    depth: int
    loss: float
    perplexity: float
    kl: float
    agreement: float


def measure_quality(
    reference: Logits,
    subjects: dict[str, Logits],
    windows: NDArray[Any],
    depths: Sequence[int],
    report: Callable[[Quality], None],
) -> list[Quality]:
    """Scores the same windows by all subjects.

    Args:
        reference: gives float32 logits `[seq, vocab]` of int64 ids `[seq]` at a depth.
        subjects: likewise, by name.
        windows: int64 `[windows, seq]`.
        depths: recurrences.
        report: called with each figure.

    Raises:
        CommandError: a subject's logits are not finite.
    """
    rows = []
    for depth in depths:
        sums = {name: np.zeros(3) for name in ("PyTorch", *subjects)}
        for number, ids in enumerate(windows):
            expected = reference(ids, depth)[:-1]
            for name in sums:
                found = expected if name == "PyTorch" else subjects[name](ids, depth)[:-1]
                measured = measure_text(f"window {number}", depth, found, expected)
                if measured.mean_kl is None or measured.argmax_agreement is None:
                    raise CommandError(
                        f"{name} at depth {depth}, window {number}: {measured.note}",
                        "see what `ouro check` says of the bundle",
                    )
                log_p = log_softmax(found)
                loss = -np.take_along_axis(log_p, ids[1:, None], axis=1).mean()
                sums[name] += loss, measured.mean_kl, measured.argmax_agreement
        for name, total in sums.items():
            loss, kl, agreement = (float(value) for value in total / len(windows))
            rows.append(Quality(name, depth, loss, math.exp(loss), kl, agreement))
            report(rows[-1])
    return rows


def open_subjects(
    bundles: Sequence[Path], threads: int | None, levels: Sequence[int] = ACCURACY_LEVELS
) -> dict[str, Logits]:
    """Opens bundles, a quantised one at every accuracy level.

    Args:
        bundles: their directories, each of another name.
        threads: of the engines.
        levels: the accuracy levels.

    Raises:
        CommandError: two bundles have one name.
    """
    if len({path.name for path in bundles}) < len(bundles):
        names = ", ".join(map(str, bundles))
        raise CommandError(f"two of {names} have one name, which the rows go by", "rename one")
    subjects: dict[str, Logits] = {}
    for path in bundles:
        if read_manifest(path).quantization is None:
            subjects[path.name] = _logits_of(Engine.open(path, threads=threads))
            continue
        for level in levels:
            engine = Engine.open(path, threads=threads, accuracy_level=level)
            subjects[f"{path.name} level {level}"] = _logits_of(engine)
    return subjects


def _logits_of(engine: Engine) -> Logits:
    return lambda ids, depth: np.asarray(engine.logits(ids, depth))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints; with `--json` writes the figures too."""
    import torch

    from ouroboros.checkpoint import load_checkpoint
    from ouroboros.text.windows import load_eval_windows

    parser = make_parser("bench.quality", __doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--depth", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--level", type=int, choices=ACCURACY_LEVELS, help="else both")
    parser.add_argument("--windows", type=int, default=4, help="of each text")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    require_writable(given.json, [*given.bundles, given.checkpoint, *given.text])
    model, tokenizer = load_checkpoint(given.checkpoint)

    @torch.inference_mode()
    def reference(ids: NDArray[Any], depth: int) -> NDArray[Any]:
        logits = model(input_ids=torch.from_numpy(ids)[None], depth=depth, use_cache=False).logits
        result: NDArray[Any] = logits[0].numpy()
        return result

    cut = load_eval_windows(given.text, tokenizer, given.seq_len, given.windows)
    windows = np.concatenate(list(cut.values()))
    print(f"{len(windows)} windows of {given.seq_len} tokens from {', '.join(cut)}")
    print(f"{'subject':<32} depth    loss  perplexity     change        KL  same token")
    base: dict[int, float] = {}

    def report(row: Quality) -> None:
        change = row.perplexity / base.setdefault(row.depth, row.perplexity) - 1
        print(
            f"{row.subject:<32} {row.depth:5} {row.loss:7.4f} {row.perplexity:11.3f} "
            f"{change:+9.2%} {row.kl:9.2e} {row.agreement:10.1%}",
            flush=True,
        )

    subjects = open_subjects(
        given.bundles, given.threads, ACCURACY_LEVELS if given.level is None else [given.level]
    )
    rows = measure_quality(reference, subjects, windows, given.depth, report)
    if given.json is not None:
        figures = {"machine": describe_machine(PACKAGES), "rows": [asdict(row) for row in rows]}
        write_json(given.json, figures)


if __name__ == "__main__":
    with one_line_errors():
        main()
