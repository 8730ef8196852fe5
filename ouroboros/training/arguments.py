"""What Hugging Face's Trainer is told of a run."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainingArguments

from ouroboros.training.state import train_step_of

if TYPE_CHECKING:
    from ouroboros.training.recipe import TrainOptions


def training_arguments(options: TrainOptions, state_dir: Path) -> TrainingArguments:
    """Returns the arguments of a run, and joins its other processes where there are some."""
    every = options.eval_every or options.train_steps
    arguments = TrainingArguments(
        output_dir=str(state_dir),
        max_steps=options.train_steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.grad_accum,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(
            options.scheduler, options.scheduler
        ),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        optim="adamw_torch",
        seed=options.seed,
        bf16=options.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=options.save_every,
        logging_steps=max(1, options.train_steps // 2000),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        dataloader_pin_memory=torch.accelerator.is_available(),
        remove_unused_columns=False,
    )
    return one_device(arguments)


def one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Keeps a process to one GPU: torch's DataParallel would run a model's ports in many threads.

    More than one GPU are used by as many processes, under `accelerate launch`.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def tensorboard(
    logs: Path, found: Path | None, opened: contextlib.ExitStack
) -> list[TrainerCallback]:
    """Returns what writes events for TensorBoard, where that is installed.

    Args:
        logs: the folder of the events.
        found: the state that the run goes on from.
        opened: ends the thread that writes them, however the training ends.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    # Events after the state that is resumed from belong to steps that will be taken again.
    purge = train_step_of(found) + 1 if found is not None else None
    writer = SummaryWriter(str(logs), purge_step=purge)
    opened.callback(_close, writer)

    class Events(TensorBoardCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            # Not its end yet: scores may follow, for which another writer would be made elsewhere.
            writer.flush()

    return [Events(writer)]


def _close(writer: Any) -> None:
    """Ends the thread of a writer; that its file can't be written was told while it was."""
    files = list((writer.all_writers or {}).values())
    with contextlib.suppress(OSError):
        writer.close()
    for file in files:  # a flush that fails comes before a thread is ended
        with contextlib.suppress(OSError):
            file.close()


class OwnPace(TrainerCallback):
    """Lets a resumed run score and save as often as it was told, not as the saved run was."""

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Puts the steps between two scores and two states into the state that was loaded."""
        state.compute_steps(args, state.max_steps)
