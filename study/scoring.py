"""What the study scores: checkpoints, the original whole and shortened, on texts and tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.downstream import score_downstream
from study.plan import Plan, StudyError
from study.records import LIKE, Baseline, WindowLosses, digest, write_json
from study.texts import Texts

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Scoring:
    """What is scored on, and where it is kept.

    Attributes:
        plan: of the study.
        texts: of the study.
        results: where the original's losses are kept.
        tasks: folder of the downstream tasks' questions.
        say: called with a line of progress now and then.
    """

    plan: Plan
    texts: Texts
    results: Path
    tasks: Path
    say: Callable[[str], None] = print

    def score(self, checkpoint: Path) -> tuple[WindowLosses, dict[str, int]]:
        """Scores a checkpoint on every text at every depth of the plan that it has.

        Returns:
            Losses of each window by depth and text, and `prefix` and `parameters`.

        Raises:
            CheckpointError: a loss is not finite.
        """
        from ouroboros.checkpoint import load_with_tokenizer
        from ouroboros.evaluate import Row, require_finite, score_each, scoring_prefix

        model, tokenizer = load_with_tokenizer(checkpoint)
        windows = self._cut(tokenizer, self.plan.seq_len, self.plan.windows)
        prefix = scoring_prefix(model.config.pooling, self.plan.seq_len)
        depths = [depth for depth in self.plan.depths if depth <= model.config.max_depth] or [1]
        losses = {
            depth: {text: score_each(model, one, depth, prefix) for text, one in windows.items()}
            for depth in depths
        }
        for depth, texts in losses.items():
            require_finite(Row("trained", depth, {text: sum(one) for text, one in texts.items()}))
        parameters = sum(one.numel() for one in model.parameters())
        return losses, {"prefix": prefix, "parameters": parameters}

    def _cut(self, tokenizer: Any, seq_len: int, windows: int) -> dict[str, np.ndarray]:
        """The windows that are scored, by the names of `paths`."""
        from ouroboros.text.files import text_name
        from ouroboros.text.windows import load_eval_windows

        paths = self.paths()
        cut = load_eval_windows(list(paths.values()), tokenizer, seq_len, windows)
        return {name: cut[text_name(path)] for name, path in paths.items()}

    def _originals(self, path: Path) -> tuple[Any, Any]:
        """The loaded original, and its model plainly shortened, whose scores go to a file."""
        from ouroboros.source.locate import drop_middle, load_source

        if not self.texts.heldout:  # they are known by their hash alone
            raise StudyError(
                f"{path} is missing, what the original scores, and neither the original nor the "
                "texts are at hand to score it; bring that file from where the study was run, or "
                "run the study here without --report"
            )
        source = load_source(self.texts.model)
        plan = self.plan
        return source, drop_middle(source.model, plan.prelude, plan.coda, [plan.layer])

    def paths(self) -> dict[str, Path]:
        """The scored texts by name."""
        return {**self.texts.heldout, LIKE: self.texts.like}

    def baseline(self, prefix: int, seq_len: int, windows: int) -> Baseline:
        """Scores the original, whole and plainly shortened, unless that was done before.

        Args:
            prefix: predictions left out of each window.
            seq_len: tokens a window.
            windows: of each text.

        Raises:
            StudyError: it was not done, and there is nothing to do it with.
        """
        plan = self.plan
        split = [plan.prelude, plan.layer, plan.coda]
        place = digest(self.texts.sha256, split, prefix, seq_len, windows)[:16]
        path = self.results / "baseline" / f"{place}.json"
        if path.is_file():
            return Baseline(**json.loads(path.read_text(encoding="utf-8")))
        from ouroboros.evaluate import score_windows

        source, short = self._originals(path)
        self.say(f"scoring the original on windows of {seq_len} tokens")
        cut = self._cut(source.tokenizer, seq_len, windows)
        full, plain = (
            {text: score_windows(model, one, prefix=prefix) for text, one in cut.items()}
            for model in (source.model, short)
        )
        write_json(path, {"full": full, "plain": plain})
        return Baseline(full, plain)

    def try_downstream(self, checkpoint: Path) -> dict[str, dict[str, float]]:
        """Returns the accuracies by task; none where that fails, which ends no study."""
        from ouroboros.checkpoint import load_with_tokenizer

        examples = self.plan.downstream_examples
        try:
            self.downstream_baseline()
            return score_downstream(
                *load_with_tokenizer(checkpoint), checkpoint.name, self.tasks, examples, self.say
            )
        except Exception as error:  # lm-eval raises what it likes
            self.say(f"no downstream tasks: {error}")
            return {}

    def downstream_baseline(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns the accuracies of the original, whole and plainly shortened, by task.

        Raises:
            StudyError: they are not known, and there is nothing to find them with.
        """
        examples = self.plan.downstream_examples
        path = self.results / "baseline" / f"downstream-{examples}.json"
        if not path.is_file():
            source, short = self._originals(path)
            tokenizer, found = source.tokenizer, {}
            for name, model in (("full", source.model), ("plain", short)):
                found[name] = score_downstream(
                    model, tokenizer, name, self.tasks, examples, self.say
                )
            write_json(path, found)
        return dict(json.loads(path.read_text(encoding="utf-8")))
