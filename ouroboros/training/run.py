"""A training run from end to end: check, load, train or resume, publish."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ouroboros.checkpoint import (
    checkpoint_sha256,
    load_with_tokenizer,
    papers_of,
    read_config,
    save_checkpoint,
)
from ouroboros.errors import CheckpointError, ConfigError, TrainingError
from ouroboros.model.halting import drop_halter
from ouroboros.model.limits import check_seq_len
from ouroboros.source.locate import quiet_transformers
from ouroboros.storage.adapters import Update, read_updates, write_updates
from ouroboros.text.windows import PackedWindows
from ouroboros.training import state
from ouroboros.training.adapters import Adapters, gather_updates, mark_trained
from ouroboros.training.arguments import tensorboard, training_arguments
from ouroboros.training.compiling import compile_errors
from ouroboros.training.frozen_states import StatedWindows, open_states, state_folder
from ouroboros.training.order import run_order
from ouroboros.training.plots import EVAL_LOSS, GATE, plot_gates, plot_training
from ouroboros.training.progress import ProgressDisplay
from ouroboros.training.qat import round_as_asked
from ouroboros.training.recipe import TrainOptions
from ouroboros.training.sharded import asked_in_vain, put
from ouroboros.training.teacher import Teacher, find_teacher, head_to_learn_of, load_teacher
from ouroboros.training.texts import read_heldout, read_texts
from ouroboros.training.trainer import OuroborosTrainer
from runtime.files.atomic import check_place
from runtime.files.destinations import ADAPTERS, CHECKPOINT, RUN

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import TrainingArguments

    from ouroboros.model.modeling import OuroborosForCausalLM


@dataclass(frozen=True)
class TrainReport:
    """How a run ended.

    Attributes:
        train_steps: optimizer steps in all, earlier parts of a resumed run included.
        seconds: of this process, from reading the data to the published checkpoint.
        tokens_per_s: training tokens a second in this process; 0 where nothing was left to do.
        loss: training loss at the last logged step.
        heldout: mean held-out loss at the end by depth; empty without held-out text.
        main: whether this process, of several, wrote it and is the one to tell of it.
        history: all that was logged in order, in earlier parts of a resumed run too; `step` is the
            train step.
    """

    train_steps: int
    seconds: float
    tokens_per_s: float
    loss: float
    heldout: dict[int, float]
    main: bool
    history: tuple[Mapping[str, Any], ...]


def train(
    checkpoint: Path,
    out: Path,
    options: TrainOptions,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> TrainReport:
    """Trains a checkpoint and publishes the result in `out`, with training.png and gate.png.

    `out/state` keeps what `resume` needs, `out/logs` TensorBoard's events where that is installed.
    A run resumed with the same options, the same number of processes and of CPU threads ends on
    the CPU in the same bits; other options or processes are refused, other threads warned of.

    Args:
        checkpoint: the checkpoint to start from; it is not changed.
        out: where the trained checkpoint goes.
        options: what to do.
        resume: go on from the newest whole state in `out/state`.
        console: shows progress; nothing is shown where None.

    Raises:
        CheckpointError: The checkpoint can't be loaded or the result not be written.
        ConfigError: A depth is above the checkpoint's max_depth.
        DataError: A text can't be used, or `seq_len` is above the model's positions.
        TrainingError: `out` holds an earlier run or something else, or the state there is damaged
            or of another run, or the training diverged.
    """
    with contextlib.ExitStack() as opened:
        return _train(checkpoint, out, options, resume, console, opened)


def _train(
    checkpoint: Path,
    out: Path,
    options: TrainOptions,
    resume: bool,
    console: Console | None,
    opened: contextlib.ExitStack,
) -> TrainReport:
    from rich.console import Console as RichConsole

    began = time.perf_counter()
    state_dir = out / "state"
    _check_out(checkpoint, out, resume, options)
    arguments = training_arguments(options, state_dir)
    main = arguments.process_index == 0
    console = console if console and main else RichConsole(quiet=True)
    held = read_heldout(options, console)
    taught_by = find_teacher(options.teacher) if options.teacher else None
    model, tokenizer = _load(checkpoint, options)
    windows, heldout = read_texts(options, held, model.config.vocab_size, tokenizer, console)
    earlier, adapters = read_updates(checkpoint), mark_trained(model, options)
    rounded = round_as_asked(model, options)
    head = rounded.head if rounded else model.lm_head.weight
    _drop_fitted(model, options, checkpoint, console)
    states = _open_states(model, head, windows, options, arguments, console, opened, tokenizer)
    asked = taught_by if not states else None
    teacher = load_teacher(asked, head, tokenizer) if asked else None
    if teacher is not None and teacher.head is not None:
        _warn(console, f"{options.teacher} has another LM head than {checkpoint}, and keeps it")
    fingerprint = _fingerprint(checkpoint, options, windows, states, teacher, arguments)
    found = _find_state(state_dir, fingerprint, console) if resume else None
    arguments.eval_on_start = found is None
    windows_a_step = options.batch_size * options.grad_accum * arguments.world_size
    _describe(model, windows, options, windows_a_step, arguments.device, console)
    display = ProgressDisplay(console, windows_a_step * options.seq_len)
    use_cache = model.config.use_cache
    with quiet_transformers(), compile_errors(), contextlib.ExitStack() as events:
        trainer = OuroborosTrainer(
            model,
            options,
            windows,
            heldout,
            state_dir,
            fingerprint,
            [display, *(tensorboard(out / "logs", found, events) if main else [])],
            arguments,
            display.scoring,
            teacher,
            states,
            head_to_learn_of(teacher, head, model.lm_head.weight),
        )
        if asked_in_vain(trainer.is_fsdp_enabled):
            _warn(console, "accelerate has no FSDP for CPUs: every process holds the whole model")
        state.clear_staging(state_dir)
        _run(trainer, found, out, display)
        # The Trainer wraps forward() for autocast and switches the cache off.
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        model.config.use_cache = use_cache
        trainer.halved.restore()
        model.config.qat = rounded.restore() if rounded else {}
    history = trainer.state.log_history
    pieces = trainer.trained() if trainer.is_fsdp_enabled else {}
    if main:
        if pieces:
            model, adapters = _rebuild(checkpoint, options, pieces)
        try:
            updates = gather_updates(earlier, model, adapters)
            _publish(model, tokenizer, checkpoint, out, options, history, updates)
        except CheckpointError as bad:
            raise CheckpointError(bad.problem, f"{bad.cure}; {_how_to_go_on(state_dir)}") from bad
    trainer.accelerator.wait_for_everyone()
    return TrainReport(
        train_steps=trainer.state.global_step,
        seconds=time.perf_counter() - began,
        tokens_per_s=display.tokens_per_s(trainer.state.global_step),
        loss=_last(history, "loss"),
        heldout=_scores(history, options) if heldout else {},
        main=main,
        history=tuple(history),
    )


def _scores(history: list[dict[str, Any]], options: TrainOptions) -> dict[int, float]:
    return {depth: _last(history, EVAL_LOSS.format(depth=depth)) for depth in options.scored_depths}


def _run(
    trainer: OuroborosTrainer, found: Path | None, out: Path, display: ProgressDisplay
) -> None:
    """Trains from where a state was found, or from the start."""
    try:
        trainer.train(resume_from_checkpoint=str(found) if found else None)
        asked = [EVAL_LOSS.format(depth=depth) for depth in trainer.options.scored_depths]
        # A run that is resumed at its end may be asked for scores that it never took.
        missing = any(math.isnan(_last(trainer.state.log_history, key)) for key in asked)
        if trainer.heldout and missing:
            trainer.evaluate()
    except OSError as error:
        raise TrainingError(
            f"{out}: can't save the state ({error})", _how_to_go_on(out / "state")
        ) from error
    finally:
        display.close()


def _fingerprint(
    checkpoint: Path,
    options: TrainOptions,
    windows: PackedWindows,
    states: StatedWindows | None,
    teacher: Teacher | None,
    arguments: TrainingArguments,
) -> dict[str, Any]:
    """What the final weights depend on, and what a resumed run must have the same."""
    taught = states.teacher if states else teacher.sha256 if teacher else ""
    return {
        **options.exactness(),
        "checkpoint": checkpoint_sha256(checkpoint),
        "data": windows.fingerprint(),
        **({"teacher": taught} if taught else {}),
        **({"states": states.describe(), state.STATES: states.sha256} if states else {}),
        "world_size": arguments.world_size,
        state.THREADS: torch.get_num_threads(),
        state.MACHINE: f"{arguments.device.type} with torch {torch.__version__}",
    }


def _load(checkpoint: Path, options: TrainOptions) -> tuple[OuroborosForCausalLM, Any]:
    config = read_config(checkpoint)
    _check_depths(options, config.max_depth)
    check_seq_len(options.seq_len, config.max_position_embeddings)
    return load_with_tokenizer(checkpoint)


def _rebuild(
    checkpoint: Path, options: TrainOptions, trained: Mapping[str, torch.Tensor]
) -> tuple[OuroborosForCausalLM, Adapters | None]:
    """The trained model in one piece, of the checkpoint and what was trained of it."""
    model, _ = load_with_tokenizer(checkpoint)
    drop_halter(model)
    model.config.qat = {}  # FSDP trains none
    adapters = mark_trained(model, options)
    parameters = dict(model.named_parameters())
    for name, tensor in trained.items():
        put(parameters[name], tensor)
    return model, adapters


def _drop_fitted(
    model: OuroborosForCausalLM, options: TrainOptions, checkpoint: Path, console: Console
) -> None:
    """Trains without a halter, which would choose wrongly; says what was fitted and will not be."""
    if model.config.qat and options.qat == "none":
        _warn(
            console,
            f"{checkpoint} was trained for rounded weights, and is trained on here for unrounded "
            f"ones; --qat int{model.config.qat['bits']} keeps to what it was",
        )
    if model.config.halting:
        _warn(
            console,
            f"the halter of {checkpoint} is left out of what is trained, since it was fitted to "
            "the weights before this training; make one anew with `ouro halter` when it is done",
        )
        drop_halter(model)


def _warn(console: Console, line: str) -> None:
    text = f"warning: {line}"
    console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _open_states(
    model: OuroborosForCausalLM,
    head: torch.Tensor,
    windows: PackedWindows,
    options: TrainOptions,
    arguments: TrainingArguments,
    console: Console,
    opened: contextlib.ExitStack,
    tokenizer: Any,
) -> StatedWindows | None:
    """What is computed once, for the windows that the run will draw; None where it keeps none."""
    if not options.state_cache:
        return None

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    drawn = run_order(options, len(windows), arguments.world_size)
    device, rank = arguments.device, arguments.process_index
    return open_states(model, head, windows, drawn, options, device, rank, say, opened, tokenizer)


def _check_out(checkpoint: Path, out: Path, resume: bool, options: TrainOptions) -> None:
    kept = [state_folder(options.state_cache)] if options.state_cache else []
    kept += [Path(options.teacher)] if options.teacher else []
    read = (checkpoint, *options.data, *options.eval, *kept)
    if obstacle := check_place(out, (CHECKPOINT, RUN), read):
        raise TrainingError(f"{out} {obstacle.problem}", obstacle.cure)
    if not resume and state.list_steps(out / "state"):
        raise TrainingError(
            f"{out} holds the state of an earlier run",
            f"go on with --resume, or start over in another folder (or delete {out / 'state'})",
        )


def _check_depths(options: TrainOptions, max_depth: int) -> None:
    asked = {"--depth": options.depth_range, "--eval-depth": options.scored_depths}
    for flag, depths in asked.items():
        if max(depths) > max_depth:
            raise ConfigError(
                f"depth={max(depths)} is above this checkpoint's max_depth {max_depth}",
                f"give {flag} 1-{max_depth} or convert with a larger --max-depth",
            )


def _how_to_go_on(state_dir: Path) -> str:
    if state.list_steps(state_dir):
        return "the states saved before are whole: mend that and go on with --resume"
    return "no state was saved before: mend that and start again"


def _find_state(state_dir: Path, fingerprint: Mapping[str, Any], console: Console) -> Path | None:
    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    def warn(line: str) -> None:
        say(line, "yellow")

    found = state.find_newest_valid(state_dir, warn)
    if found is None:
        say(f"no state in {state_dir} yet: starting from the beginning")
        return None
    state.check_state(found)
    usual = TrainOptions(data=(Path(),)).exactness()
    state.check_options(found, fingerprint, warn, usual)
    say(f"going on after train step {state.train_step_of(found)}")
    return found


def _describe(
    model: OuroborosForCausalLM,
    windows: PackedWindows,
    options: TrainOptions,
    a_step: int,
    device: torch.device,
    console: Console,
) -> None:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    passes = options.train_steps * a_step / len(windows)
    console.print(
        f"training {trainable:,} of {whole:,} parameters on {_name(device)} at depth "
        f"{options.depth}; {len(windows):,} windows of {windows.seq_len} tokens, {a_step} a train "
        f"step, {passes:.2f} passes in {options.train_steps} train steps",
        highlight=False,
        soft_wrap=not console.is_terminal,
    )
    if options.warmup > options.train_steps:
        rising = f"warmup={options.warmup} is longer than the {options.train_steps} train steps"
        _warn(console, f"{rising}: the learning rate only rises, and not to its height")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _publish(
    model: OuroborosForCausalLM,
    tokenizer: Any,
    checkpoint: Path,
    out: Path,
    options: TrainOptions,
    history: list[dict[str, Any]],
    updates: Mapping[str, Sequence[Update]],
) -> None:
    low, high = options.depth_range
    model.config.trained_depths = sorted(
        {*(model.config.trained_depths or []), *range(low, high + 1)}
    )
    files: dict[str, Path | bytes] = {**papers_of(checkpoint)}
    files["training.png"] = plot_training(history, options.loss_terms)
    if any(GATE.format(step=1) in entry for entry in history):
        files["gate.png"] = plot_gates(history)
    if updates:
        files[ADAPTERS] = write_updates(updates)
    save_checkpoint(model.eval(), tokenizer, out, files, keep=("state", "logs"))


def _last(history: list[dict[str, Any]], key: str) -> float:
    return next((float(entry[key]) for entry in reversed(history) if key in entry), math.nan)
