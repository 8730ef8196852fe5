"""What a training run shows: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from transformers import TrainerControl, TrainerState, TrainingArguments

_LINES_A_RUN = 20
TRAINING = "training"


class ProgressDisplay(TrainerCallback):
    """Shows train step, loss, held-out loss, tokens a second and time left."""

    def __init__(self, console: Console, tokens_a_step: int) -> None:
        """Shows on `console`; a train step works through `tokens_a_step` tokens."""
        self.console = console
        self.tokens_a_step = tokens_a_step
        self.loss = self.heldout = "–"
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.step_began_s = self.training_s = self.first_step_s = 0.0
        self.first_step = 0

    def tokens_per_s(self, train_step: int) -> float:
        """Returns tokens trained on a second so far in this process, scoring left out.

        So is the first train step, which compiles and allocates, once there is another.
        """
        steps, seconds = train_step - self.first_step, self.training_s
        if steps > 1:
            steps, seconds = steps - 1, seconds - self.first_step_s
        return steps * self.tokens_a_step / max(seconds, 1e-9)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Starts the bar."""
        self.first_step = state.global_step
        if not (state.is_world_process_zero and self.console.is_terminal):
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self.task = self.bar.add_task(
            TRAINING, total=state.max_steps, completed=state.global_step, figures=""
        )
        self.bar.start()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Starts the clock of a train step."""
        self.step_began_s = time.perf_counter()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Adds up the time of a finished train step, scoring and saving left out."""
        seconds = time.perf_counter() - self.step_began_s
        self.training_s += seconds
        if state.global_step == self.first_step + 1:
            self.first_step_s = seconds

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the newest figures."""
        logs = logs or {}
        if "loss" in logs:
            self.loss = f"{logs['loss']:.3f}"
        elif "eval_loss" in logs:
            self.heldout = f"{logs['eval_loss']:.3f}"
        else:
            return
        if not state.is_world_process_zero:
            return
        speed = self.tokens_per_s(state.global_step)
        figures = f"loss {self.loss} held-out {self.heldout} {speed:,.0f} tokens/s"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=state.global_step, figures=figures)
            return
        every = max(1, state.max_steps // _LINES_A_RUN)
        last = state.global_step == state.max_steps
        if "eval_loss" in logs or state.global_step % every == 0 or last:
            left_s = (state.max_steps - state.global_step) * self.tokens_a_step / max(speed, 1e-9)
            remaining = f"  {left_s:.0f} s left" if state.global_step > self.first_step else ""
            self.console.print(
                f"train step {state.global_step}/{state.max_steps}  {figures}{remaining}",
                highlight=False,
                soft_wrap=True,
            )

    def scoring(self, done: int, total: int) -> None:
        """Shows that held-out text is being scored: `done` of `total` windows, at all depths."""
        if self.bar is not None and self.task is not None:
            what = f"scoring {done}/{total}" if done < total else TRAINING
            self.bar.update(self.task, description=what)

    def close(self) -> None:
        """Takes the bar off the terminal, whatever ended the run."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
