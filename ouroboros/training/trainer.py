"""Hugging Face's Trainer with a drawn depth, exact resume and atomic saves.

Everything the final weights depend on is derived from the options and the train step (data order,
depth) or saved with the state (weights, optimizer, schedule, random generators), so a run that is
killed at any moment and resumed ends, on the CPU, in the same bits.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from ouroboros.errors import TrainingError
from ouroboros.evaluate import score_windows, scoring_prefix
from ouroboros.model.names import current_name
from ouroboros.model.step import gate_means
from ouroboros.text.windows import PackedWindows, collate
from ouroboros.training import state
from ouroboros.training.arguments import OwnPace
from ouroboros.training.compiling import compile_parts, uncompiled
from ouroboros.training.depth import depth_loss, draw_train_step, read_shallow
from ouroboros.training.divergence import divergence, find_origin, spoilt_gradient
from ouroboros.training.frozen_states import PRELUDE, TEACHER, StatedWindows
from ouroboros.training.half import halve_frozen, parts_run
from ouroboros.training.loss import IGNORED, PieceLoss, head_loss, piece_loss
from ouroboros.training.order import run_order
from ouroboros.training.plots import EVAL_LOSS, GATE
from ouroboros.training.qat import rounded_once
from ouroboros.training.rates import STEP_TABLES, highest_rate
from ouroboros.training.sharded import (
    casting,
    check_sharded,
    check_sharding,
    gather,
    part,
    put,
    save_optimizer,
    whole,
)
from ouroboros.training.teacher import Teacher, teacher_dtype

if TYPE_CHECKING:
    from ouroboros.model.modeling import OuroborosForCausalLM
    from ouroboros.training.recipe import TrainOptions

SAMPLE_WINDOWS = 2


class OuroborosTrainer(Trainer):
    """Trainer with the smallest changes: depth, data order, held-out scores, saved state."""

    control: TrainerControl
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: OuroborosForCausalLM,
        options: TrainOptions,
        windows: PackedWindows,
        heldout: Mapping[str, np.ndarray],
        state_dir: Path,
        fingerprint: Mapping[str, Any],
        callbacks: list[TrainerCallback],
        arguments: TrainingArguments,
        scoring: Callable[[int, int], None] | None = None,
        teacher: Teacher | None = None,
        states: StatedWindows | None = None,
        teacher_head: torch.Tensor | None = None,
    ) -> None:
        """Prepares a run; `heldout` maps names to int64 [windows, seq] windows.

        `arguments` come from `training_arguments` with the same options. `scoring` is told of
        held-out windows scored so far and in all. A `teacher` is distilled from, or what `states`
        hold of it: the same windows with what was computed of them before. `teacher_head` is its
        LM head `[vocab, hidden]` where the model's is not the same any more.
        """
        self.teacher = teacher
        self.options = options
        self.heldout = dict(heldout)
        self.windows = windows
        self.state_dir = state_dir
        self.fingerprint = dict(fingerprint)
        self.staged: Path | None = None
        self.scoring = scoring or (lambda done, total: None)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=states or windows,
            eval_dataset=windows,  # only looked at for being there, see evaluate()
            data_collator=collate,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(OwnPace())
        if self.is_fsdp_enabled:
            check_sharding(self.accelerator.state.fsdp_plugin, options)
        if teacher is not None:
            teacher.to(arguments.device, teacher_dtype(options.precision))
        model.recompute = options.recompute
        # FSDP joins weights of one type.
        halved = arguments.bf16 and not self.is_fsdp_enabled
        self.halved = halve_frozen(parts_run(model, states is not None) if halved else ())
        self.teacher_head = None if teacher_head is None else teacher_head.to(arguments.device)
        self.piece_loss: PieceLoss = piece_loss
        if options.compile:
            self.piece_loss = compile_parts(model, teacher.layers if teacher else [])

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return run_order(self.options, len(self.windows), self.args.world_size)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Computes the loss at the depth of this train step."""
        with rounded_once(self._unwrapped()):
            return self._compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Any
    ) -> Any:
        options = self.options
        drawn = draw_train_step(options, self.state.global_step)
        depth = {"depth": drawn.depth, "backprop_steps": options.backprop_steps or None}
        guide = self._guide(inputs)
        asked = self._ask(inputs)
        with casting(self):
            shallow = read_shallow(model, asked, drawn)
            output = model(**asked, **depth)
        # Shifted here, once: a position predicts the next one's token.
        targets = inputs["labels"][:, 1:].reshape(-1)
        own, head = _predicting(output.hidden_states[-1]), whole(self._unwrapped().lm_head.weight)
        guide = None if guide is None else _predicting(guide)
        # The model's own forward() has autocast around it; the head's products stand outside.
        with self.accelerator.autocast():
            loss = head_loss(
                own,
                head,
                targets,
                guide,
                options.distill,
                options.temperature,
                self.piece_loss,
                self.teacher_head,
            )
            if shallow is not None:
                term = depth_loss(own, _predicting(shallow), head, targets)
                loss = loss + options.depth_term * term
        loss = self._per_token(loss, targets, num_items_in_batch)
        if not math.isfinite(loss.detach()):
            # Before the update, so that weights and saved states are the last good ones. Without
            # what wraps the model: the other processes would have to run theirs too.
            plain = self._unwrapped()
            origin = find_origin(plain, lambda: plain(**asked, **depth), guide)
            raise self._divergence(
                f"the loss is {float(loss.detach()):g}", self.state.global_step + 1, origin
            )
        return (loss, output) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Computes loss and gradients; stops before an update by what is no number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        behind = "bridge." if self._unwrapped().config.bridge == "exit" else ""
        if origin := spoilt_gradient(self._trainable(), behind):
            raise self._divergence("a gradient is no number", self.state.global_step + 1, origin)
        return loss

    def _guide(self, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        """The teacher's final state `[batch, seq, hidden]`, from disk or computed; None without."""
        guide: torch.Tensor | None = inputs.get(TEACHER)
        if self.teacher is not None:
            guide = self.teacher.final_state(inputs["input_ids"], inputs["position_ids"])
        return guide

    def _ask(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a forward call: from behind the prelude where its state is at hand."""
        state = inputs.get(PRELUDE)
        begin = {"input_ids": inputs["input_ids"]}
        if state is not None:
            begin = {"prelude_state": state.to(self._unwrapped().dtype)}
        return {
            **begin,
            "position_ids": inputs["position_ids"],
            "use_cache": False,
            "logits_to_keep": 1,
            "output_hidden_states": True,
        }

    def _per_token(self, loss: torch.Tensor, targets: torch.Tensor, count: Any) -> torch.Tensor:
        """Divides a sum over predicted tokens by their number in the whole train step."""
        if count is None:
            count = (targets != IGNORED).sum().clamp(min=1)
        elif self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count is that of all of them
        mean: torch.Tensor = loss / count
        return mean

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes AdamW: layers and gate may have rates of their own, matrices alone decay."""
        made = self.optimizer
        if made is None:
            decays = {True: self.options.weight_decay, False: 0.0}
            matrices = set(self.get_decay_parameter_names(self.model))
            groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
            for name, parameter in self._trainable().items():
                rate = highest_rate(name, self.options)
                matrix = name in matrices and parameter.ndim > 1
                # A decay of 0 leaves the groups as they were, by which saved states are read.
                matrix &= not (self.options.weight_decay and name.endswith(STEP_TABLES))
                groups.setdefault((rate, matrix), []).append(parameter)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self._unwrapped())
            parts = [
                {"params": params, "lr": rate, "weight_decay": decays[matrix]}
                for (rate, matrix), params in groups.items()
            ]
            made = self.optimizer = kind(parts, **settings)
        return made

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores the held-out text at every scored depth, and the gates on it.

        The loss of the first training windows at the greatest depth is scored too: it tells
        whether the last update went well. Where nothing is held out, the gates are theirs.
        """
        with rounded_once(self._unwrapped()), casting(self), uncompiled():
            metrics = self._score()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _score(self) -> dict[str, float]:
        began = time.perf_counter()
        model = self._unwrapped().eval()
        prefix = scoring_prefix(model.config.pooling, self.options.seq_len)
        count = min(SAMPLE_WINDOWS, len(self.windows))
        sample = collate([self.windows[index] for index in range(count)])
        sample = {name: tensor.to(self.args.device) for name, tensor in sample.items()}
        with torch.no_grad():
            loss = model(**sample, depth=self.options.depth_range[1]).loss
        if not math.isfinite(loss):
            origin = find_origin(model, lambda: model(**sample, depth=self.options.depth_range[1]))
            raise self._divergence(f"the sample loss is {loss:g}", self.state.global_step, origin)
        metrics = {"sample_loss": float(loss)}
        ids, depths = sample["input_ids"], self.options.scored_depths
        total = sum(len(text) for text in self.heldout.values()) * len(depths)
        done = 0

        def advance(windows: int) -> None:
            nonlocal done
            done += windows
            self.scoring(done, total)

        if self.heldout:
            advance(0)
            for depth in depths:
                losses = [
                    score_windows(model, text, depth, prefix, advance=advance)
                    for text in self.heldout.values()
                ]
                metrics[EVAL_LOSS.format(depth=depth)] = sum(losses) / len(losses)
            scored = [metrics[EVAL_LOSS.format(depth=depth)] for depth in depths]
            metrics["eval_loss"] = sum(scored) / len(scored)
            firsts = np.concatenate([text[:1] for text in self.heldout.values()])
            ids = torch.from_numpy(firsts).to(self.args.device)
        gates = gate_means(model, ids, depths[-1])
        metrics |= {GATE.format(step=step): gate for step, gate in enumerate(gates, start=1)}
        metrics["eval_seconds"] = time.perf_counter() - began
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, and stops a run with a loss that is no number any more before that is saved."""
        for name, value in logs.items():
            if "loss" in name and not math.isfinite(value):
                what = f"the {name.replace('_', ' ')} is {value}"
                raise self._divergence(what, self.state.global_step)
        super().log(logs, start_time)

    def _divergence(self, what: str, train_step: int, origin: str = "") -> TrainingError:
        return divergence(what, train_step, self.options.learning_rate, origin)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staged or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        part(self.model)
        try:
            self._publish_state(model, trial)
        except (SafetensorError, RuntimeError) as error:  # theirs and torch.save's for a full disk
            raise OSError(" ".join(str(error).split())) from error

    def _publish_state(self, model: Any, trial: Any) -> None:
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves what trains; every process must call it."""
        tensors = self.trained()
        if self.args.should_save and output_dir is not None:
            os.makedirs(output_dir, exist_ok=True)
            save_file(tensors, os.path.join(output_dir, state.WEIGHTS))

    def trained(self) -> dict[str, torch.Tensor]:
        """Returns what trains in the one process that saves, none in others; all must call it.

        Raises:
            TrainingError: it holds NaN or infinity.
        """
        return gather(self._trainable(), bool(self.args.should_save), self._require_finite)

    def _require_finite(self, name: str, tensor: torch.Tensor) -> None:
        if not bool(torch.isfinite(tensor).all()):
            raise self._divergence(f"{name} holds NaN or infinity", self.state.global_step)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled:  # transformers would save the whole model beside it
            save_optimizer(self, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        check_sharded(resume_from_checkpoint, self.is_fsdp_enabled)
        with state.reading(resume_from_checkpoint):
            stored = load_file(os.path.join(resume_from_checkpoint, state.WEIGHTS))
        saved = {current_name(name): tensor for name, tensor in stored.items()}
        parameters = self._trainable()
        if state.shapes_of(saved) != state.shapes_of(parameters):
            raise TrainingError(
                f"{resume_from_checkpoint} holds other parameters than this model trains",
                "start over in another folder",
            )
        for name, parameter in parameters.items():
            put(parameter, saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with state.reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with state.reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        named = self._unwrapped().named_parameters()
        return {name: p for name, p in named if p.requires_grad}

    def _unwrapped(self) -> OuroborosForCausalLM:
        return cast("OuroborosForCausalLM", self.model)


def _predicting(state: torch.Tensor) -> torch.Tensor:
    """Returns the states `[positions, hidden]` that predict a token: of each window all but one."""
    return state[:, :-1].flatten(0, 1)
