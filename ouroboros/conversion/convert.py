"""Model surgery: a pretrained decoder becomes prelude, a looped block of layers and coda.

Source: arXiv 2604.02051, section 3; `auto`, `matched` and `per_step` are ours or named there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ouroboros.checkpoint import save_checkpoint
from ouroboros.conversion.bases import fill_bases
from ouroboros.conversion.bridge import HELD_ASIDE
from ouroboros.conversion.looped import AUTO, check_looped, check_split, parse_looped
from ouroboros.conversion.options import ConvertOptions
from ouroboros.conversion.selection import Candidate, choose_parts, load_block
from ouroboros.errors import CheckpointError, DataError
from ouroboros.model.base_config import require_exportable
from ouroboros.model.block import name_block
from ouroboros.model.configuration import OuroborosConfig
from ouroboros.model.limits import check_ids
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.source.locate import locate
from ouroboros.source.weights import Original, open_original
from ouroboros.text.boundaries import encode
from ouroboros.text.windows import eval_windows, prefix_ids, read_whole
from runtime.files.atomic import check_place
from runtime.files.destinations import CHECKPOINT

CALIBRATION_TOKENS = 256
CALIBRATION_WINDOWS = 8
FIT_WINDOWS = 96
STATE_BYTES = 1 << 28  # of hidden states held for a fit; two tensors of them are
# What modulates: as a sentence names one of them, and as a list does.
MODULATORS = {
    "controller": ("a Controller", "Controller"),
    "static": ("a modulation vector a step", "modulation vectors"),
    "free": ("a low-rank update a step", "low-rank updates"),
}
BASED = ("controller", "static")  # the modulations that have frozen bases
MEASURED = ("bridge.", "recurrent.norm.")  # names of what measuring sets
# Of a conversion that loops nothing: what would be of the steps is as small as it gets.
UNLOOPED: dict[str, Any] = {
    "depth": 1, "max_depth": 1, "norm_init": "ones", "bases": "mean", "modulation": "static",
    "gate": False, "gate_start": "alike", "input_injection": "none",
}  # fmt: skip


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion kept, dropped and made trainable.

    Attributes:
        recurrent: original index of the first looped layer.
        candidates: what `auto` measured, best first; empty where layers and split were named.
        kept: parameters taken over unchanged.
        dropped: parameters of the removed layers.
        dropped_layers: original indices of the removed layers.
        trainable: parameters of Controller, gate, step norms and bridge.
        bases: numbers in the frozen low-rank bases.
        lines: the report as text, one line an entry.
    """

    recurrent: int
    candidates: tuple[Candidate, ...]
    kept: int
    dropped: int
    dropped_layers: tuple[int, ...]
    trainable: int
    bases: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole report."""
        return "\n".join(self.lines)


def convert(
    source: str,
    out: str | Path,
    options: ConvertOptions | None = None,
    *,
    report: Callable[[str], None] | None = None,
    **changes: Any,
) -> ConversionReport:
    """Converts `source` (hub id, local directory or .gguf) and writes a checkpoint to `out`.

    Args:
        source: the original model.
        out: the checkpoint directory to write.
        options: how; None for the defaults.
        report: called with a line of progress now and then.
        changes: options by name, in place of those of `options`.

    Raises:
        CheckpointError: the source can't be loaded, or `out` can't be written.
        ConfigError: an option is outside what the model allows.
        DataError: the calibration text is unusable.
        TypeError: there is no such option.
    """
    chosen = replace(options or ConvertOptions(), **changes)
    say = report or (lambda line: None)
    layer, count = parse_looped(chosen.recurrent)
    check_split(chosen.split, chosen.recurrent, count)
    if not count:
        chosen = replace(chosen, **UNLOOPED)
    made_from = [Path(source), *([chosen.calibration] if chosen.calibration else [])]
    existing = [path for path in made_from if path.exists()]
    if obstacle := check_place(Path(out), (CHECKPOINT,), existing):
        raise CheckpointError(f"{out} {obstacle.problem}", obstacle.cure)
    text = _calibration_text(chosen.calibration) if _measures(chosen, layer) else None
    say(f"loading {source}")
    place = locate(source)
    total = place.config.num_hidden_layers
    check_looped(chosen.recurrent, layer, count, chosen.prelude, chosen.coda, total)
    settings = asdict(chosen) | {
        "recurrent": chosen.prelude if layer is None else layer,
        "recurrent_layers": count,
    }
    del settings["calibration"], settings["seed"], settings["split"]
    # Once before the weights are read, so that a bad option is refused at once.
    OuroborosConfig(base_config=place.config, **settings)
    require_exportable(place.config)
    original = open_original(place)
    for note in original.notes:
        say(note)
    config = OuroborosConfig(base_config=original.config, source=_provenance(original), **settings)
    say(f"taking over {config.num_layers} of {config.original_layers} layers")
    model = _transplant(original, config, chosen.seed)
    candidates = []
    if text is not None:
        candidates = _measure(model, original, chosen, layer, text, say)
    if config.prelude != chosen.prelude:
        # Built again, since what starts at random depends on the layers built before it: the split
        # by its name gives the same.
        measured = model.state_dict()
        measured = {name: measured[name] for name in measured if name.startswith(MEASURED)}
        del model
        model = _transplant(original, config, chosen.seed)
        model.load_state_dict(measured, strict=False)
    projections = model.recurrent.projections()
    if count and config.modulation in BASED:
        say(f"computing the low-rank bases of {sum(map(len, projections))} projections")
        per_step = config.bases == "per_step"
        removed = config.removed_layers()
        fill_bases(projections, original.projection, removed, config.recurrent, per_step)
    say(f"writing {out}")
    papers: dict[str, Path | bytes] = {
        "LICENSE": original.papers.license_file().encode(),
        "ATTRIBUTION": original.papers.attribution_file(_changes(config)).encode(),
    }
    save_checkpoint(model, original.tokenizer, out, papers)
    return _describe(original, model, candidates)


def _measures(chosen: ConvertOptions, layer: int | None) -> bool:
    """Says whether anything is chosen or fitted on text."""
    named = layer is not None and chosen.split != AUTO
    return not named or chosen.bridge != "none" or chosen.norm_init == "matched"


def _measure(
    model: OuroborosForCausalLM,
    original: Original,
    chosen: ConvertOptions,
    layer: int | None,
    text: str,
    say: Callable[[str], None],
) -> list[Candidate]:
    """Makes the choices that need text: split, looped layers, bridge and step norms."""
    count = fit_windows(model.config.hidden_size)
    rows = 0 if chosen.bridge == "none" else model.config.hidden_size + 1
    windows = _calibration_windows(original, text, chosen.calibration, count, rows)
    few, split = _few_windows(windows), chosen.split == AUTO
    return choose_parts(model, original.layer, windows, few, layer, split, chosen.depth, say)


def _few_windows(windows: torch.Tensor) -> torch.Tensor:
    """Picks `CALIBRATION_WINDOWS` of the windows to measure on, evenly over the text.

    They are among those that no bridge is fitted on, where there are enough of these.
    """
    aside = windows[HELD_ASIDE - 1 :: HELD_ASIDE]
    if len(aside) < CALIBRATION_WINDOWS:
        return windows[:CALIBRATION_WINDOWS]
    return aside[torch.linspace(0, len(aside) - 1, CALIBRATION_WINDOWS).round().long()]


def fit_windows(width: int) -> int:
    """Returns how many windows of text the bridge of a model is fitted on: `FIT_WINDOWS`.

    Of a wide model fewer, so that their states take `STATE_BYTES`, but never fewer than give a map
    of `width + 1` rows one and a half positions a row.

    Args:
        width: the model's hidden size.
    """
    fitting = STATE_BYTES // (CALIBRATION_TOKENS * width * 4)
    fitted = (CALIBRATION_TOKENS - 1) * (1 - 1 / HELD_ASIDE)  # positions a window
    needed = math.ceil(1.5 * (width + 1) / fitted)
    return max(min(FIT_WINDOWS, fitting), needed)


def _provenance(original: Original) -> dict[str, Any]:
    facts = {
        "name": original.name,
        "sha256": original.sha256,
        "license": original.papers.license,
        "url": original.papers.url,
        "commit": original.commit,
    }
    return {**{name: text for name, text in facts.items() if text}, "files": original.files}


def _changes(config: OuroborosConfig) -> str:
    last = config.original_layers
    kept = [*range(config.prelude), *range(last - config.coda, last)]
    dropped = _dropped(config)
    steps = [
        *MODULATORS.get(config.modulation, ())[:1],
        *(["low-rank bases"] if config.modulation in BASED else []),
        "per-step norms",
        *(["a gate"] if config.gate else []),
    ]
    added = [
        *(steps if config.recurrent_layers else []),
        *([f"a linear map at the loop's {config.bridge}"] if config.bridge != "none" else []),
    ]
    return (
        f"layers {_ranges(kept) or 'none'} of {last} kept as they were; layers "
        f"{_ranges(dropped) or 'none'} dropped; {_looped(config)} looped in their place; "
        f"added {_join(added) or 'nothing'}."
    )


def _join(names: Sequence[str]) -> str:
    """Writes names as a sentence does: `a, b and c`."""
    first, last = ", ".join(names[:-1]), "".join(names[-1:])
    return f"{first} and {last}" if first else last


def _dropped(config: OuroborosConfig) -> list[int]:
    looped = config.looped_layers()
    replaced = range(config.prelude, config.original_layers - config.coda)
    return [layer for layer in replaced if layer not in looped]


def _looped(config: OuroborosConfig) -> str:
    return name_block(config.recurrent, config.recurrent_layers)


def _ranges(layers: Sequence[int]) -> str:
    """Writes sorted layer numbers as ranges: `8..11, 13..21`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{low}..{high}" if low < high else f"{low}" for low, high in runs)


def _transplant(original: Original, config: OuroborosConfig, seed: int) -> OuroborosForCausalLM:
    """Builds the model and reads its kept layers and the looped ones into it, one by one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: OuroborosForCausalLM = OuroborosForCausalLM(config).eval()
    last = config.original_layers
    kept = [*range(config.prelude), *range(last - config.coda, last)]
    targets: dict[str, nn.Module] = {
        "model.embed_tokens.": model.embed_tokens,
        "model.norm.": model.norm,
        **{
            f"model.layers.{index}.": layer
            for index, layer in zip(kept, [*model.prelude, *model.coda], strict=True)
        },
    }
    if not config.tie_word_embeddings:
        targets["lm_head."] = model.lm_head
    for prefix, target in targets.items():
        target.load_state_dict(original.state(prefix))
    load_block(model, original.layer, config.recurrent)
    if original.generation_config is not None:
        model.generation_config = original.generation_config
    return model


def _calibration_text(path: Path | None) -> str:
    """Returns the text of a file, or the one that comes with this package.

    Raises:
        DataError: the file can't be read.
    """
    if path is None:
        return resources.files("ouroboros").joinpath("calibration.txt").read_text("utf-8")
    return read_whole(path)


def _calibration_windows(
    original: Original, text: str, path: Path | None, count: int, rows: int
) -> torch.Tensor:
    """Returns int64 `[windows, seq]` of the calibration text, at most `count` of them.

    `rows` are those of the bridge that is fitted on it, 0 where there is none.

    Raises:
        DataError: the text is shorter than one window, or holds a token the model lacks.
        CheckpointError: the model has no tokenizer.
    """
    if original.tokenizer is None:
        raise CheckpointError(
            f"{original.name} has no tokenizer, so nothing can be measured on text",
            "name the layer with --recurrent N and pass --norm-init ones --bridge none, without "
            "--split auto",
        )
    least = len(prefix_ids(original.tokenizer)) + 2
    seq = max(least, min(CALIBRATION_TOKENS, original.config.max_position_embeddings))
    try:
        windows = eval_windows(text, original.tokenizer, seq, count)
    except DataError as error:
        reason = error.problem.replace("sequence", "window")
        # The first position of a window counts for nothing.
        rank = max(0, len(encode(original.tokenizer, [text])[0]) - 1)
        if rank < rows:
            reason += f", which supports a map of rank {rank}, and the bridge has {rows:,} rows"
        raise DataError(
            f"{path or 'the calibration text'}: {reason}", "give a longer text"
        ) from error
    check_ids(str(path or "the calibration text"), windows, original.config.vocab_size)
    return torch.from_numpy(windows)


def _describe(
    original: Original, model: OuroborosForCausalLM, candidates: list[Candidate]
) -> ConversionReport:
    config = model.config
    total = original.parameters
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = sum(p.numel() for p in model.parameters()) - trainable
    projections = [one for layer in model.recurrent.projections() for one in layer.values()]
    bases = sum(one.lora_a.numel() + one.lora_b.numel() for one in projections if not one.free)
    removed = _dropped(config)
    alone = [
        layer
        for layer, others in enumerate(config.removed_layers(), start=config.recurrent)
        if not others
    ]
    without = f"; all zero for {_ranges(alone)}, which stand in for no layer" if alone else ""
    last = config.original_layers - 1
    coda = f"layers {config.original_layers - config.coda}..{last}" if config.coda else "none"
    prelude = f"layers 0..{config.prelude - 1}" if config.prelude else "none"
    own: list[str] = []
    if config.recurrent_layers:
        own += MODULATORS.get(config.modulation, ())[1:]
        own += ["gate"] if model.recurrent.gate is not None else []
        own += ["step norms"]
    own += ["bridge"] if model.bridge is not None else []
    lines = [
        f"{original.name}: {config.original_layers} layers, {total:,} parameters",
        f"  prelude    {prelude}",
        f"  recurrent  {_looped(config)}"
        + (f", looped up to {config.max_depth} times" if config.recurrent_layers else ""),
        f"  coda       {coda}",
        f"  kept       {kept:,} parameters, unchanged",
        f"  dropped    layers {_ranges(removed)}: {total - kept:,} parameters"
        if removed
        else "  dropped    none",
        f"  bases      {bases:,} numbers, frozen (rank {config.rank}, {config.bases}){without}"
        if bases
        else "  bases      none",
        f"  trainable  {trainable:,} parameters ({', '.join(own) or 'none'})",
    ]
    return ConversionReport(
        config.recurrent,
        tuple(candidates),
        kept,
        total - kept,
        tuple(removed),
        trainable,
        bases,
        tuple(lines),
    )
