"""Gives a checkpoint a halter: observes the model, fits, chooses the threshold, publishes.

Everything else of the model stays as it is, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ouroboros.checkpoint import load_with_tokenizer, papers_of, read_config, save_checkpoint
from ouroboros.errors import ConfigError, DataError, TrainingError
from ouroboros.halting.fit import Choice, best_choice, fit_halter, sweep
from ouroboros.halting.observe import Observations, halting_scores, observe
from ouroboros.halting.options import HalterOptions
from ouroboros.held_out import Advance, no_bar
from ouroboros.model.halting import Halter
from ouroboros.model.limits import check_ids, check_seq_len
from ouroboros.model.modeling import OuroborosForCausalLM
from ouroboros.text.files import find_files, require_readable
from ouroboros.text.windows import load_windows
from runtime.files.atomic import check_place
from runtime.files.destinations import ADAPTERS, CHECKPOINT

ASIDE = 4  # every so manyth window is held aside, to stop the fit and to choose the threshold


@dataclass(frozen=True)
class HalterReport:
    """What was made, measured on the windows that were held aside.

    Attributes:
        choice: at the threshold that the checkpoint records.
        fixed: mean loss by depth, depth 1 first.
        prompts: how many there were.
    """

    choice: Choice
    fixed: tuple[float, ...]
    prompts: int

    def best_fixed(self, price: float) -> int:
        """The single depth of the least cost."""
        costs = [loss + price * depth for depth, loss in enumerate(self.fixed, start=1)]
        return costs.index(min(costs)) + 1


def make_halter(
    checkpoint: Path,
    out: Path,
    options: HalterOptions,
    *,
    report: Callable[[str], None] | None = None,
    bar: Callable[[int], AbstractContextManager[Advance]] = no_bar,
) -> HalterReport:
    """Writes a checkpoint with a halter; one that it had is replaced.

    Args:
        checkpoint: a checkpoint, trained as far as it will be: a halter knows the model it saw.
        out: where the new one goes.
        options: what is made of what.
        report: called with each line that reading the texts gives.
        bar: opened with the number of windows; gives what counts them.

    Raises:
        CheckpointError: the checkpoint can't be loaded or the result not be written.
        ConfigError: the depth is above the checkpoint's max_depth.
        DataError: no text, one that can't be used, or too little of it.
        TrainingError: `out` may not be written to.
    """
    if not options.data:
        raise DataError("no text to observe the model on", "give --data FILE")
    if obstacle := check_place(out, (CHECKPOINT,), (checkpoint, *options.data)):
        raise TrainingError(f"{out} {obstacle.problem}", obstacle.cure)
    require_readable(find_files(options.data))
    config = read_config(checkpoint)
    depth = choose_depth(options.depth, config)
    check_seq_len(options.seq_len, config.max_position_embeddings)
    model, tokenizer = load_with_tokenizer(checkpoint)
    windows = choose_windows(options, tokenizer, report)
    check_ids("the text", windows, model.config.vocab_size)
    with bar(len(windows)) as advance:
        seen = observe(model, windows, prompt_ends(options), depth, advance)
    made, choice, aside = choose_halter(model, seen, options)
    whole = with_halter(model, made, options.kind, depth, choice.threshold)
    beside = papers_of(checkpoint)
    if (checkpoint / ADAPTERS).is_file():  # the factors of weights that stay as they are
        beside[ADAPTERS] = checkpoint / ADAPTERS
    save_checkpoint(whole, tokenizer, out, beside)
    return HalterReport(choice, tuple(aside.losses.mean(0).tolist()), len(aside))


def prompt_ends(options: HalterOptions) -> list[int]:
    """Lengths of the prompts that each window is cut into, up to three quarters of it."""
    last = options.seq_len * 3 // 4
    return sorted({max(1, last * (one + 1) // options.prompts) for one in range(options.prompts)})


def choose_halter(
    model: OuroborosForCausalLM, observations: Observations, options: HalterOptions
) -> tuple[Halter, Choice, Observations]:
    """Fits a halter of the kind asked for; returns it, its threshold and what was held aside."""
    prompts = len(prompt_ends(options))
    number = torch.arange(len(observations)) // prompts  # of the window
    aside = observations.part(number % ASIDE == ASIDE - 1)
    halter = new_halter(model, options.kind)
    if options.kind == "trained":
        fit_halter(halter, observations.part(number % ASIDE != ASIDE - 1), aside, options.price)
    choice = best_choice(sweep(halting_scores(halter, aside, model), aside.losses), options.price)
    return halter, choice, aside


def new_halter(model: OuroborosForCausalLM, kind: str) -> Halter:
    """A halter at its start, for a model of this shape."""
    fields = {**model.config.to_dict(), "halter": kind, "halt_depth": model.config.max_depth}
    return Halter(type(model.config).from_dict(fields))


def with_halter(
    model: OuroborosForCausalLM, halter: Halter, kind: str, depth: int, threshold: float
) -> OuroborosForCausalLM:
    """Puts a halter into a model, and what it needs into its config."""
    config: Any = model.config
    config.halter, config.halt_depth, config.halt_threshold = kind, depth, threshold
    model.halter = halter.requires_grad_(False)
    return model


def choose_depth(asked: int | None, config: Any) -> int:
    """Returns the most steps a halter may choose: those asked for, or the deepest trained.

    Raises:
        ConfigError: the model loops nothing, or is not that deep.
    """
    if not config.recurrent_layers:
        raise ConfigError(
            "this checkpoint loops no layer, so there is no depth to choose",
            "convert with --recurrent auto, or name a layer",
        )
    depth = asked or max(config.trained_depths, default=config.depth)
    if depth > config.max_depth:
        raise ConfigError(
            f"depth={depth} is above this checkpoint's max_depth {config.max_depth}",
            f"give {config.max_depth} or less",
        )
    return int(depth)


def choose_windows(
    options: HalterOptions, tokenizer: Any, report: Callable[[str], None] | None
) -> np.ndarray:
    """Draws windows from all of the text, int64 `[windows, seq]`, whole documents' first.

    What follows a prompt should be the same document's.
    """
    packed = load_windows(options.data, tokenizer, options.seq_len, report)
    if len(packed) < ASIDE + 1:
        raise DataError(
            f"the text fills {len(packed)} windows of {options.seq_len} tokens",
            f"give more text, or a shorter --seq-len: {ASIDE + 1} windows are the least",
        )
    generator = np.random.default_rng(options.seed)
    order = generator.permutation(len(packed))
    mixed = packed.starts[order, 1:].any(1)
    chosen = np.concatenate([order[~mixed], order[mixed]])[: options.windows]
    windows: np.ndarray = packed.input_ids[chosen].astype(np.int64)
    return windows
