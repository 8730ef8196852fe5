"""Runs what README and docs tell their reader to run, on a tiny model.

Every fenced python block and every line of a shell block is executed, page by page and in order, or
stands in EXCEPTIONS with the reason. A block that is neither is code of another language, named by
its fence, or stands in TEXTS.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import call_ouro

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "examples/README.md",
    ROOT / "plugins/optimum/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

# Shell lines that are not run here: how each begins, and why.
EXCEPTIONS = {
    "make ": "a target of the Makefile: its name is held against it below, CI runs it",
    ".ci/run": "runs these tests",
    "source ": "the environment these tests run in",
    ".venv/bin/": "tools on the checkout: CI runs them",
    "D=": "the demo's folder; the tests make one of their own",
    "ouro export trained plans --format trt": "builds for GPUs, and takes a minute",
    "python examples/": "tests/examples runs them",
    "build/cpp/release/ouro-cli ": "tests/runtime/cpp runs it",
    "out/examples/": "the program of examples/cpp: tests/runtime/cpp/test_build.py runs it",
    "cmake ": "builds the C++ library: tests/runtime/cpp does",
    "pip install -c requirements": "into the environment these tests run in",
    "optimum-cli ": "tests/export/test_optimum.py runs it",
}
# Indented blocks that hold no commands: how each begins, and what it is.
TEXTS = {
    "How well it reads": "printed by make demo",
    "Is the compiled model": "printed by make demo",
    "How fast (": "printed by make demo",
    "depth  1  ": "texts of the ready model",
    "manifest.json   ": "the files of a bundle",
    "p = 0": "an algorithm",
    "pretrained model": "a picture",
    "h ← embed": "an algorithm",
    "mean over prompts": "a formula",
    "cli ──▶": "a picture",
    "scores  = ": "a formula",
}
# Run with the slow tests: they train and export, each precision traced anew.
SLOW = (ROOT / "README.md", ROOT / "docs/precision.md")
# What stands in for the named model and for sizes that the tiny one does not have.
REPLACED = {
    "$D/model/*.gguf": "original",
    "$D/": "texts/",
    "~/.cache/ouroboros/demo/": "texts/",
    "--context 64,1024": "--context 16,64",
    "build/demo/": "",
    "Qwen/Qwen2.5-3B converted --recurrent 18": "original converted --recurrent 3",
    "Qwen/Qwen2.5-7B converted --recurrent 18": "original converted --recurrent 3",
    "Qwen/Qwen2.5-3B": "original",
    "Qwen/Qwen2.5-7B": "original",
    "recipes/": f"{ROOT}/recipes/",
    "trained bundle --triton": "trained other --triton",
}
ADDED = {
    "ouro convert": "--prelude 2 --coda 2 --rank 4",
    "ouro train": "--seq-len 64 --depth 1-2 --eval-windows 1 --train-steps 2",
    "ouro eval": "--depth 1,2 --windows 1",
    "ouro export trained bundle": "--max-depth 16",
    "ouro export": "--max-depth 1",
    "ouro bench": "--threads 1",
}
SHELLS = ("", "sh", "bash", "shell", "console")  # what a fence may be called that holds commands
PROGRAMS = "build/cpp/release/ouro-cli|ouro|python|pip|make|git|source|accelerate|cmake|optimum-cli"
LAUNCHED = re.compile(r"accelerate launch .*-m cli\.main train ")


@dataclass(frozen=True)
class Snippet:
    """A python block, one line of a shell block or the first of a text, and where it stands.

    `language` is "python", "shell", or "text" of an indented block without a command.
    """

    page: Path
    line: int
    language: str
    code: str


def read_snippets(page: Path) -> Iterator[Snippet]:
    """Yields the blocks of a page, fenced or indented; those of other languages are left out."""
    for start, fence, lines in read_blocks(page):
        if fence == "python":
            yield Snippet(page, start, "python", "\n".join(lines) + "\n")
        elif fence in SHELLS or (fence is None and any(map(looks_like_command, lines))):
            for number, line in enumerate(lines, start):
                if line:
                    yield Snippet(page, number, "shell", line)
        elif fence is None:
            yield Snippet(page, start, "text", lines[0])


def read_blocks(page: Path) -> Iterator[tuple[int, str | None, list[str]]]:
    """Yields the number of each block's first line, what its fence names or None, and its lines."""
    block: list[str] = []
    fence: str | None = None
    before = ""
    for number, line in enumerate([*page.read_text(encoding="utf-8").splitlines(), ""], start=1):
        indented = line.startswith("    ") and (not before.strip() or before.startswith("    "))
        if line.startswith("```"):
            if fence is not None:
                yield number - len(block), fence, block
            fence, block = (line[3:].strip(), []) if fence is None else (None, [])
        elif fence is not None:
            block.append(line if fence == "python" else line.strip())
        elif indented:
            block.append(line.strip())
        elif block:
            yield number - len(block), None, block
            block = []
        before = line


def looks_like_command(code: str) -> bool:
    """Whether a line makes an indented block, which may be a text too, a block of commands."""
    return bool(re.match(rf"(({PROGRAMS})\b[^:]|D=|\.ci/|\.venv/)", code))


def is_run(code: str) -> bool:
    """Whether a line is a command of ours, trainings under `accelerate launch` among them."""
    return (code.startswith("ouro ") or bool(LAUNCHED.match(code))) and not is_excepted(code)


def is_excepted(code: str) -> bool:
    return any(code.startswith(start) for start in EXCEPTIONS)


SNIPPETS = {page: list(read_snippets(page)) for page in PAGES if page.exists()}
RUN = [page for page, snippets in SNIPPETS.items() if any(
    snippet.language != "text" for snippet in snippets
)]  # fmt: skip


@pytest.fixture(scope="module")
def workshop(
    tiny_original: Path,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A directory with what the pages name: original, converted, trained, bundle, texts."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, source in (
        ("original", tiny_original),
        ("converted", tiny_checkpoint),
        ("trained", tiny_checkpoint),
        ("bundle", tiny_bundle),
    ):
        shutil.copytree(source, folder / name)
    for name in ("text", "heldout"):
        (folder / "texts" / name).mkdir(parents=True)
    prose = "The tiny model reads this sentence, which says little. " * 40
    (folder / "texts/heldout/wiki.txt").write_text(prose)
    for name in ("train", "eval"):
        lines = (f'{{"text": "{number}: {prose}"}}\n' for number in range(4))
        (folder / f"texts/text/{name}.jsonl").write_text("".join(lines))
    return folder


def adapt(code: str) -> str:
    """The command or block on the tiny model; of a training in several processes the plan."""
    if LAUNCHED.match(code):
        code = LAUNCHED.sub("ouro train ", code) + " --plan"
    for old, new in REPLACED.items():
        code = code.replace(old, new)
    return code + next((f" {more}" for start, more in ADDED.items() if code.startswith(start)), "")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else []) for page in RUN],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_snippets_run(page: Path, workshop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chdir(workshop):
        for snippet in SNIPPETS[page]:
            where = f"{page.relative_to(ROOT)}:{snippet.line}"
            if snippet.language == "python":
                with warnings.catch_warnings():
                    # The tiny model was never trained at most depths.
                    warnings.filterwarnings(
                        "ignore", message=".*never trained", category=UserWarning
                    )
                    exec(compile(adapt(snippet.code), where, "exec"), {"__name__": where})
            elif snippet.language == "shell" and is_run(snippet.code):
                line = shlex.split(adapt(snippet.code.split("  #")[0]))
                with warnings.catch_warnings():
                    warnings.filterwarnings(
                        "ignore", message=".*never trained", category=UserWarning
                    )
                    done = call_ouro(*line[1:])
                assert done.returncode == 0, f"{where}: {snippet.code}\n{done.stdout}{done.stderr}"
    capsys.readouterr()


def unknown(snippets: Iterable[Snippet]) -> list[str]:
    """The lines that are neither run nor excepted, and the texts that are not known as such."""
    return [
        f"{snippet.page.name}:{snippet.line}: {snippet.code}"
        for snippet in snippets
        if (snippet.language == "shell" and not (is_run(snippet.code) or is_excepted(snippet.code)))
        or (snippet.language == "text" and not snippet.code.startswith(tuple(TEXTS)))
    ]


@pytest.mark.parametrize("page", SNIPPETS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_line_is_run_or_excepted(page: Path) -> None:
    assert unknown(SNIPPETS[page]) == []


def test_lines_of_programs_that_nobody_knows_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Text.\n\n    make cpp\n    ./other --flag\n\nText.\n\n    another one\n    more\n\n"
        "```\nouro run bundle\n\na third\n```\n\n```c++\nint x;\n```\n\n    last"
    )
    assert unknown(read_snippets(page)) == [
        "page.md:4: ./other --flag",
        "page.md:8: another one",
        "page.md:14: a third",
        "page.md:21: last",
    ]


def test_every_exception_is_needed() -> None:
    for language, known in (("shell", EXCEPTIONS), ("text", TEXTS)):
        lines = [
            snippet.code
            for snippets in SNIPPETS.values()
            for snippet in snippets
            if snippet.language == language
        ]
        unused = [start for start in known if not any(line.startswith(start) for line in lines)]
        assert not unused


def test_make_targets_exist() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:`|^ {4})make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in known, f"{page.name}: make {target}"


def test_the_page_lists_the_presets_of_cmake() -> None:
    presets = json.loads((ROOT / "runtime/cpp/CMakePresets.json").read_text())["configurePresets"]
    page = (ROOT / "docs/cpp.md").read_text()
    listed = re.findall(r"`([a-z]+)`", page.split("\nPresets of ")[1].split("`make cpp-fuzz")[0])
    assert sorted(listed) == sorted(one["name"] for one in presets if not one.get("hidden"))


@pytest.mark.needs_torch
def test_inline_commands_and_options_exist() -> None:
    """Options of `ouro ...` in running text are options of that command."""
    helps: dict[str, str] = {}
    for page in PAGES:
        for command, rest in re.findall(r"`ouro ([a-z]+)([^`]*)`", page.read_text()):
            if command not in helps:
                done = call_ouro(command, "--help")
                assert done.returncode == 0, f"{page.name}: ouro {command}"
                helps[command] = done.stdout
            for option in re.findall(r"--[a-z-]+", rest):
                assert option in helps[command], f"{page.name}: ouro {command} {option}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
