"""One form of training in a process of its own: takes train steps when it is told to.

Started by `bench.train`; reads lines from its input and answers each with one of JSON:
`step N` takes train step N and says how long it took, `memory` says what the process has held.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from bench.measure import resident_bytes
from ouroboros.checkpoint import load_with_tokenizer
from ouroboros.text.windows import IGNORED, collate, load_windows
from ouroboros.training.adapters import mark_trained
from ouroboros.training.arguments import training_arguments
from ouroboros.training.depth import draw_train_step
from ouroboros.training.frozen_states import open_states
from ouroboros.training.order import run_order
from ouroboros.training.recipe import TrainOptions, make_options
from ouroboros.training.teacher import Teacher, load_teacher
from ouroboros.training.trainer import OuroborosTrainer

OURS, RECOMPUTED, PLAIN, FILL = "ours", "ours_recomputed", "plain", "fill"
COMPILED, BOTH = "ours_compiled", "ours_compiled_recomputed"
FORMS = (PLAIN, OURS, RECOMPUTED)
WITH_COMPILER = (COMPILED, BOTH)

Loss = Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor]
"""Mean loss of a train step's number and batch."""


class Form:
    """A model that is trained in one form, its optimizer, and the windows of every train step."""

    def __init__(self, form: str, checkpoint: Path, options: TrainOptions, opened: ExitStack):
        """Loads everything and takes no train step."""
        options = replace(
            options, recompute=form in (RECOMPUTED, BOTH), compile=form in WITH_COMPILER
        )
        if form == PLAIN:
            options = replace(options, state_cache="", state_cache_gb=20.0, state_dtype="float16")
        self.options = options
        self.model, tokenizer = load_with_tokenizer(checkpoint)
        windows = load_windows(options.data, tokenizer, options.seq_len)
        mark_trained(self.model, options)
        order = list(run_order(options, len(windows), 1))
        work = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="ouro-bench-")))
        arguments = training_arguments(options, work)
        states = None
        if options.state_cache:
            states = open_states(
                self.model, self.model.lm_head.weight, windows, order, options, arguments.device,
                0, lambda line: print(line, file=sys.stderr), opened,
            )  # fmt: skip
        self.teacher: Teacher | None = None
        if options.teacher and states is None:
            self.teacher = load_teacher(options.teacher, self.model.lm_head.weight)
        trainer = OuroborosTrainer(
            self.model, options, windows, {}, work, {}, [], arguments,
            teacher=self.teacher, states=states,
        )  # fmt: skip
        self.optimizer = trainer.create_optimizer()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        size = options.batch_size
        self.batches = [order[first : first + size] for first in range(0, len(order), size)]
        self.data: Any = states or windows
        self.loss = self._plain(trainer) if form == PLAIN else self._ours(trainer)
        self.model.train()

    def _ours(self, trainer: OuroborosTrainer) -> Loss:
        model = trainer.accelerator.prepare_model(self.model)

        def loss(number: int, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            trainer.state.global_step = number
            result: torch.Tensor = trainer.compute_loss(model, dict(batch))
            return result

        return loss

    def _plain(self, trainer: OuroborosTrainer) -> Loss:
        """Everything in the graph, all logits at once, the original beside it at every step."""
        options = self.options
        trainer.halved.restore()
        half = options.precision == "bf16"
        self.model.requires_grad_(True)

        def loss(number: int, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            ids, positions, labels = (batch[n] for n in ("input_ids", "position_ids", "labels"))
            depth = draw_train_step(options, number).depth
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                output = self.model(
                    input_ids=ids, position_ids=positions, labels=labels, depth=depth
                )
            total: torch.Tensor = output.loss
            if self.teacher is not None:
                guide = self.teacher.final_state(ids, positions)
                head = self.teacher.head
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                    wanted = functional.linear(
                        guide, self.model.lm_head.weight if head is None else head
                    )
                total = _mix(total, output.logits, wanted, labels, options)
            return total

        return loss

    def step(self, number: int) -> dict[str, float]:
        """Takes a train step: forward, backward, clipping and update."""
        began = time.perf_counter()
        batch = collate([self.data[index] for index in self.batches[number]])
        loss = self.loss(number, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.options.max_grad_norm)
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        return {
            "seconds": time.perf_counter() - began,
            "loss": float(loss.detach()),
            "tokens": float(self.options.batch_size * self.options.seq_len),
        }


def _mix(
    entropy: torch.Tensor,
    logits: torch.Tensor,
    guide: torch.Tensor,
    labels: torch.Tensor,
    options: TrainOptions,
) -> torch.Tensor:
    """(1 - w) CE + w T² KL(teacher || student), a mean over what is predicted."""
    valid = labels[:, 1:] != IGNORED
    own, wanted = (
        functional.log_softmax(one[:, :-1].float() / options.temperature, -1)
        for one in (logits, guide)
    )
    apart = functional.kl_div(own, wanted, reduction="none", log_target=True).sum(-1)[valid].mean()
    share = options.distill
    return (1 - share) * entropy + share * options.temperature**2 * apart


def reset_peak() -> int:
    """Gives back what is free, and lets the highest point begin anew; returns resident bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_bytes()


def peak_bytes() -> int:
    """The highest point of resident memory since `reset_peak` (Linux only)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Serves the lines of the input until it ends."""
    form, checkpoint, threads, settings = sys.argv[1:5]
    torch.set_num_threads(int(threads))
    given = json.loads(settings)
    given["data"] = tuple(Path(name) for name in given["data"])
    with ExitStack() as opened:
        work = Form(OURS if form == FILL else form, Path(checkpoint), make_options(given), opened)
        loaded = reset_peak()
        print(json.dumps({"loaded_bytes": loaded}), flush=True)
        for line in sys.stdin:
            word, _, number = line.strip().partition(" ")
            answer = (
                work.step(int(number))
                if word == "step"
                else {"loaded_bytes": loaded, "peak_bytes": peak_bytes()}
            )
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
