"""Hugging Face's Trainer with a drawn depth, exact resume and atomic saves.

Everything the final weights depend on is derived from the options and the train step (data order,
depth) or saved with the state (weights, optimizer, schedule, random generators), so a run that is
killed at any moment and resumed ends, on the CPU, in the same bits.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from ouroboros import state
from ouroboros.data import PackedWindows, collate
from ouroboros.errors import TrainingError
from ouroboros.evaluation import score_windows, scoring_prefix
from ouroboros.plots import EVAL_LOSS, GATE

if TYPE_CHECKING:
    from ouroboros.modeling import OuroborosForCausalLM
    from ouroboros.recipe import TrainOptions

WEIGHTS = "trainable.safetensors"
# Keeps the streams of random numbers drawn from one seed apart.
_DEPTH_STREAM, _ORDER_STREAM = 1, 2


def draw_depth(seed: int, train_step: int, low: int, high: int) -> int:
    """Draws the depth of a train step, uniform over low..high.

    It depends on nothing but the arguments, so every process, every micro-batch and a resumed run
    draw the same.
    """
    generator = np.random.default_rng([_DEPTH_STREAM, seed, train_step])
    return int(generator.integers(low, high + 1))


class RunOrder(Sampler[int]):
    """The windows of a whole run in order: one shuffled pass after the other.

    One sampler for the whole run, so that a run is one epoch and skips to any train step.
    """

    def __init__(self, windows: int, total: int, seed: int) -> None:
        """Orders `total` draws from `windows` windows."""
        self.windows, self.total, self.seed = windows, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.total, self.windows):
            generator = np.random.default_rng([_ORDER_STREAM, self.seed, start // self.windows])
            order = generator.permutation(self.windows)[: self.total - start]
            yield from order.tolist()


class OuroborosTrainer(Trainer):
    """Trainer with the smallest changes: depth, data order, held-out scores, saved state."""

    control: TrainerControl

    def __init__(
        self,
        model: OuroborosForCausalLM,
        options: TrainOptions,
        windows: PackedWindows,
        heldout: Mapping[str, np.ndarray],
        state_dir: Path,
        fingerprint: Mapping[str, Any],
        callbacks: list[TrainerCallback],
        resuming: bool,
    ) -> None:
        """Prepares a run; `heldout` maps names to int64 [windows, seq] windows."""
        self.options = options
        self.heldout = dict(heldout)
        self.window_count = len(windows)
        self.state_dir = state_dir
        self.fingerprint = dict(fingerprint)
        self.staged: Path | None = None
        super().__init__(
            model=model,
            args=_arguments(options, state_dir, bool(heldout), resuming),
            train_dataset=windows,
            # Only looked at for being there: evaluate() below scores `heldout`.
            eval_dataset=windows if heldout else None,
            data_collator=collate,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        a_step = self.options.batch_size * self.options.grad_accum * self.args.world_size
        return RunOrder(self.window_count, self.options.train_steps * a_step, self.options.seed)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Computes the loss at the depth of this train step."""
        depth = draw_depth(self.options.seed, self.state.global_step, *self.options.depth_range)
        return super().compute_loss(
            model, {**inputs, "depth": depth}, return_outputs, num_items_in_batch
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores the held-out text at every scored depth, and the gates on it."""
        began = time.perf_counter()
        model = self._unwrapped()
        prefix = scoring_prefix(model.config.pooling, self.options.seq_len)
        metrics: dict[str, float] = {}
        depths = self.options.scored_depths
        for depth in depths:
            losses = [score_windows(model, array, depth, prefix) for array in self.heldout.values()]
            metrics[EVAL_LOSS.format(depth=depth)] = sum(losses) / len(losses)
        metrics["eval_loss"] = sum(metrics.values()) / len(depths)
        sample = torch.from_numpy(np.concatenate([array[:1] for array in self.heldout.values()]))
        gates = model.eval().gate_means(sample.to(self.args.device), depths[-1])
        metrics |= {GATE.format(step=step): gate for step, gate in enumerate(gates, start=1)}
        metrics["eval_seconds"] = time.perf_counter() - began
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, and stops a run whose loss is no number any more before that is saved."""
        if not math.isfinite(logs.get("loss", 0.0)):
            raise TrainingError(
                f"the loss is {logs['loss']} at train step {self.state.global_step}; start over "
                f"with a --learning-rate below {self.options.learning_rate:g}"
            )
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staged or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with state.stage_step(self.state_dir, self.state.global_step) as staged:
            self.staged = staged.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.staged = None
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                written = staged.parent / f"checkpoint-{self.state.global_step}"
                staged.rmdir()
                written.rename(staged)
                state.write_options(staged, self.fingerprint)
                state.publish_step(staged, self.state_dir)
            self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save or output_dir is None:
            return
        os.makedirs(output_dir, exist_ok=True)
        tensors = {name: value.detach().contiguous() for name, value in self._trainable().items()}
        save_file(tensors, os.path.join(output_dir, WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(os.path.join(resume_from_checkpoint, WEIGHTS))
        parameters = self._trainable()
        if saved.keys() != parameters.keys():
            raise TrainingError(
                f"{resume_from_checkpoint} holds other parameters than this model trains; "
                "start over in another folder"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(saved[name])

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        named = self._unwrapped().named_parameters()
        return {name: p for name, p in named if p.requires_grad}

    def _unwrapped(self) -> OuroborosForCausalLM:
        return cast("OuroborosForCausalLM", self.model)


def _arguments(
    options: TrainOptions, state_dir: Path, scored: bool, resuming: bool
) -> TrainingArguments:
    every = options.eval_every or options.train_steps
    return TrainingArguments(
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
        eval_strategy="steps" if scored else "no",
        eval_steps=every,
        eval_on_start=scored and not resuming,
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
