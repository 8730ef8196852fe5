"""What README and docs show, run on a tiny model: Python blocks, and lines of `ouro`."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import call_ouro

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
]
# Lines that are not run here, by how they begin, and why.
NOT_RUN = {
    "ouro bench": "takes seconds; tests/cli/test_runtime_commands.py runs it",
    "ouro export trained small": "calibration needs a model with more text; tests/export",
    "ouro export trained plans": "TensorRT; tests/export/tensorrt",
    "ouro COMMAND": "stands for every command",
    "ouro --debug": "stands for every command",
    "ouro export NEW": "TensorRT on a GPU; tests/export/tensorrt/test_refit.py",
}
TEXT = "The sea is wide and the sky is high. "


@pytest.fixture
def place(tiny_original: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> Path:
    """A directory that looks like the repository after `make demo`, with a tiny model."""
    for name, made in (
        ("converted", tiny_checkpoint),
        ("trained", tiny_checkpoint),
        ("bundle", tiny_bundle),
    ):
        shutil.copytree(made, tmp_path / "build" / "demo" / name)
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("train.txt", "eval.txt", "wiki.txt"):
        (texts / name).write_text(TEXT * 60)
    shutil.copytree(tiny_original, tmp_path / "model")
    return tmp_path


def shell_lines(page: str) -> list[str]:
    """Lines of code blocks that begin with `ouro `."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^    (ouro .+)$", text, re.M)


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def on_tiny(line: str) -> list[str]:
    """A line with the demo's files replaced by tiny ones, and options that fit them."""
    for old, new in (
        ("$D/model/*.gguf", "model"),
        ("$D/text/train.jsonl", "texts/train.txt"),
        ("$D/text/eval.jsonl", "texts/eval.txt"),
        ("$D/heldout/wiki.txt", "texts/wiki.txt"),
        ("--max-depth 16", "--max-depth 5"),
        ("--depth 8", "--depth 4"),
        ("--train-steps 20", "--train-steps 2 --depth 1-4 --seq-len 32"),
    ):
        line = line.replace(old, new)
    command = shlex.split(line, comments=True)[1:]
    more = {
        "convert": [
            "--prelude",
            "2",
            "--coda",
            "2",
            "--recurrent",
            "3",
            "--rank",
            "4",
            "--depth",
            "3",
            "--max-depth",
            "8",
        ],
        "eval": ["--depth", "1,4", "--windows", "1", "--seq-len", "32"],
        "run": ["--max-new-tokens", "8"],
    }
    return [*command, *more.get(command[0], [])]


@pytest.mark.filterwarnings("ignore")
def test_the_chain_of_the_readme_runs(place: Path) -> None:
    ran = []
    with contextlib.chdir(place):
        for line in shell_lines("README.md"):
            if line.startswith(tuple(NOT_RUN)):
                continue
            done = call_ouro(*on_tiny(line))
            assert done.returncode == 0, (line, done.stderr)
            ran.append(line.split()[1])
    assert {"convert", "train", "eval", "export", "check", "run"} <= set(ran)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_lines_of_other_pages_are_known_commands(page: str) -> None:
    for line in shell_lines(page):
        command = shlex.split(line, comments=True)[1]
        shown = call_ouro(command, "--help")
        assert shown.returncode == 0, line
        for flag in re.findall(r" (--[a-z-]+)", line):
            assert flag in shown.stdout, (line, flag)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("page", "block"), [(page, i) for page in PAGES for i in range(len(python_blocks(page)))]
)
def test_python_blocks_run(place: Path, page: str, block: int) -> None:
    code = (
        python_blocks(page)[block]
        .replace("depth=8", "depth=4")
        .replace("depth=[4, 16]", "depth=[4, 5]")
    )
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(compile(code, f"{page} block {block}", "exec"), {})
    assert shown.getvalue()


def test_links_lead_somewhere() -> None:
    pages = [
        *PAGES,
        *(f"docs/decisions/{p.name}" for p in (ROOT / "docs" / "decisions").glob("*.md")),
    ]
    for page in pages:
        for target in re.findall(
            r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")
        ):
            assert ((ROOT / page).parent / target).exists(), (page, target)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
