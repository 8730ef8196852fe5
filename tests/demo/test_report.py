from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo import settings
from demo.report import collect_report, summarise_report
from demo.stages import DemoError, Stages, call


def make_file(folder: Path, text: str = "made") -> None:
    (folder / "out.txt").write_text(text)


def run_once(folder: Path, inputs: list[Any]) -> tuple[Stages, list[bool]]:
    """Opens the record anew, as another run of the demo does, and runs one stage."""
    stages, calls = Stages.open(folder), []

    def work(interrupted: bool) -> None:
        calls.append(interrupted)
        make_file(folder)

    stages.run("one", "the stage", work, inputs=inputs, outputs=["out.txt"])
    return stages, calls


def test_stage_finished_is_skipped(tmp_path: Path) -> None:
    assert run_once(tmp_path, [1])[1] == [False]
    stages, calls = run_once(tmp_path, [1])
    assert calls == []
    assert stages.skipped == ["one"]
    assert "one" in stages.seconds


def test_stage_runs_again_after_another_input(tmp_path: Path) -> None:
    run_once(tmp_path, [1])
    assert run_once(tmp_path, [2])[1] == [False]


def test_stage_runs_again_after_its_output_was_touched(tmp_path: Path) -> None:
    run_once(tmp_path, [1])
    make_file(tmp_path, "something else")
    assert run_once(tmp_path, [1])[1] == [False]


def test_stage_interrupted_is_told_so_and_keeps_its_output(tmp_path: Path) -> None:
    def interrupt(_: bool) -> None:
        make_file(tmp_path, "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages.open(tmp_path).run("one", "t", interrupt, inputs=[1], outputs=["out.txt"])
    assert (tmp_path / "out.txt").read_text() == "half"
    assert run_once(tmp_path, [1])[1] == [True]


def test_stages_unreadable_record_counts_as_none(tmp_path: Path) -> None:
    run_once(tmp_path, [1])
    (tmp_path / "stages.json").write_text("{")
    assert run_once(tmp_path, [1])[1] == [False]


def test_call_failing_names_the_command() -> None:
    with pytest.raises(DemoError, match=r"python -c .*failed with exit status 3"):
        call("python", "-c", "raise SystemExit(3)")


def write_figures(folder: Path) -> None:
    """What the stages write, with made-up figures."""
    texts = {"wiki": 1.0, "c4": 2.0, "code": 3.0, "technical": 4.0}
    rows = [
        {"model": model, "depth": depth, "mean": 2.5, "texts": texts}
        for model, depth in (("full", None), ("dropped", None), ("converted", 8), ("trained", 8))
    ]
    deeper = [{"model": "trained", "depth": 16, "mean": 2.4, "texts": texts}]
    files = {
        "eval": {"rows": rows},
        "depths": {"rows": deeper},
        "ready-eval": {
            "rows": [
                {"model": "trained", "depth": depth, "mean": mean, "texts": texts}
                for depth, mean in ((8, 2.2), (1, 2.3))
            ]
        },
        "ready": {"Once upon a time,": {"1": " it was.", "16": " there was."}},
        "parity": {
            "verdict": "PASS",
            "worst_relative_l2": 1e-6,
            "reference_error": 3e-6,
            "allowed": 1e-5,
            "depths": list(range(1, 17)),
            "ambiguous": 0,
        },
        "tokens": {
            "prompts": 8,
            "depths": [1, 4, 8, 16],
            "total": 2048,
            "ties": 0,
            "different": 0,
            "equal": True,
            "rows": [],
            "samples": {"1": " large.", "16": " a state."},
        },
        "bench": {
            "depth": 8,
            "threads": 2,
            "tokens_per_s": 50.0,
            "decode_ratio_to_pytorch": 3.5,
            "loop_ratio_to_unrolled": 1.01,
            "speed_at_1024_to_64": 0.8,
            "memory_share": 0.7,
            "engine_overhead": 0.01,
            "machine": {
                "processor": "a processor",
                "cores": 2,
                "system": "Linux",
                "python": "3.11.0",
                "versions": {"torch": "2.13.0"},
            },
        },
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_report_has_what_issue_3_asks_for(tmp_path: Path) -> None:
    write_figures(tmp_path)
    report = collect_report(tmp_path, {"train": 240.0, "export": 20.0})
    assert {"worst_relative_l2", "depths", "verdict"} <= set(report["parity"])
    assert report["tokens"]["prompts"] == 8
    assert report["tokens"]["equal"] is True
    for model in ("full", "dropped", "converted", "trained"):
        assert set(report["heldout"][model]) == {"mean", "wiki", "c4", "code", "technical"}
    for name in (
        "decode_ratio_to_pytorch",
        "loop_ratio_to_unrolled",
        "tokens_per_s",
        "engine_overhead",
    ):
        assert name in report["bench"]
    assert report["export"]["seconds"] == 20.0
    assert report["versions"] == {"torch": "2.13.0", "python": "3.11.0"}
    assert report["heldout_by_depth"] == {"8": 2.5, "16": 2.4}
    assert report["ready"]["heldout_by_depth"] == {"1": 2.3, "8": 2.2}
    assert report["ready"]["heldout"]["8"]["code"] == 3.0


def test_summary_shows_text_verdict_and_places(tmp_path: Path) -> None:
    write_figures(tmp_path)
    report = collect_report(tmp_path, {"train": 240.0, "export": 20.0})
    text = summarise_report(report, "build/demo")
    assert f"depth  1  {settings.SHOWN_PROMPT} large." in text
    assert "depth 16  Once upon a time, there was." in text
    assert "2.200  the ready model" in text
    assert "Ready, by depth: 2.30 at 1, 2.20 at 8." in text
    assert "PASS" in text
    assert "all equal" in text
    assert "build/demo/report.json" in text
    assert max(map(len, text.splitlines())) <= 112
