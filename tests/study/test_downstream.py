"""Questions as lm-eval takes them, out of records as the package holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from study.downstream import MEMBERS, read_examples, require_lm_eval, split_options, write_tasks
from study.plan import StudyError

RECORDS: dict[str, list[dict[str, Any]]] = {
    "piqa": [
        {"question": "dresser", "options": "A. pin \nB. finish, pin ", "answer": "B. finish, pin "},
        {"question": "without an answer", "options": "A. a\nB. b"},
    ],
    "openbookqa": [
        {"question": "Save by ", "options": "A. x\nB. y\nC. z\nD. w", "answer": "C. z"},
    ],
    "commonsenseqa": [
        {"question": "A door?", "answer": "A. bank", "options": "\nA. bank\nB. mall\nC. x"},
    ],
    "boolq": [
        {"question": "is it", "title": "T", "answer": "False", "passage": "It is not."},
        {"question": "is it", "title": "T", "answer": "True", "passage": "It is."},
    ],
}


def contents() -> dict[str, str]:
    return {
        task: "".join(json.dumps(record) + "\n" for record in records)
        for task, records in RECORDS.items()
    }


def test_questions_have_choices_and_the_number_of_the_right_one() -> None:
    found = {task: list(read_examples(task, text)) for task, text in contents().items()}
    assert found["piqa"] == [{"question": "dresser", "choices": ["pin", "finish, pin"], "gold": 1}]
    assert found["openbookqa"][0]["gold"] == 2
    assert found["commonsenseqa"][0]["choices"] == ["bank", "mall", "x"]
    assert [one["gold"] for one in found["boolq"]] == [0, 1]
    assert found["boolq"][0]["choices"] == ["no", "yes"]


def test_a_letter_within_an_option_splits_nothing() -> None:
    letters, choices = split_options("A. vitamin B. is good\nB. none")
    assert (letters, choices) == (["A", "B"], ["vitamin B. is good", "none"])


def test_tasks_name_their_local_file(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks", contents())
    for task in MEMBERS:
        written = yaml.safe_load((tmp_path / "tasks" / f"{task}.yaml").read_text())
        assert written["task"] == f"ouro_{task}"
        data = Path(written["dataset_kwargs"]["data_files"]["test"])
        assert data.is_absolute()
        fields = {name for line in data.read_text().splitlines() for name in json.loads(line)}
        for field in ("question", "passage"):
            assert (f"{{{{{field}}}}}" in written["doc_to_text"]) == (field in fields)


def test_without_lm_eval_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"not installed; run `pip install .* or give --no-downst"):
        require_lm_eval()
