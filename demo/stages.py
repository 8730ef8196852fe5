"""Runs the demo's stages, each once: a finished one is skipped while its inputs are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from runtime.files.destinations import BUNDLE, CHECKPOINT, RUN, find_obstacle

ROOT = Path(__file__).resolve().parents[1]


class DemoError(Exception):
    """A stage of the demo failed; the message says which."""


@dataclasses.dataclass
class Stages:
    """The record of what was done, kept as `stages.json` in the demo's directory.

    Attributes:
        folder: build/demo.
        done: what each finished stage was made from, and how long it took.
        skipped: stages that were finished before this run.
    """

    folder: Path
    done: dict[str, dict[str, Any]]
    skipped: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> Stages:
        """Reads the record of earlier runs; an unreadable one counts as none."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            done = json.loads((folder / "stages.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            done = {}
        return cls(folder, done)

    @property
    def seconds(self) -> dict[str, float]:
        """How long each finished stage took, in the run that finished it."""
        return {name: entry["seconds"] for name, entry in self.done.items() if "seconds" in entry}

    def run(
        self,
        name: str,
        title: str,
        work: Callable[[bool], None],
        *,
        inputs: Iterable[Any],
        outputs: Sequence[str],
    ) -> None:
        """Runs a stage, unless it is finished and nothing it depends on has changed.

        Args:
            name: of the stage.
            title: the heading to print.
            work: does it; gets True where an interrupted run of the same inputs came before.
            inputs: everything the outputs depend on.
            outputs: names in the demo's directory that it writes; removed before another attempt.

        Raises:
            DemoError: it failed, or an output holds something else, which would be lost.
        """
        key = _digest(inputs)
        entry = self.done.get(name, {})
        say_heading(title)
        if entry.get("key") == key and entry.get("outputs") == self.fingerprint(outputs):
            print(f"done before, in {entry['seconds']:.0f} s; skipped")
            self.skipped.append(name)
            return
        interrupted = entry.get("started") == key
        if not interrupted:
            for output in outputs:
                _remove(self.folder / output)
        # What an interrupted run did is gone on with, so its time counts.
        spent = float(entry.get("spent", 0.0)) if interrupted else 0.0
        began = time.perf_counter()
        self._record(name, {"started": key, "spent": spent})
        try:
            work(interrupted)
        finally:
            seconds = round(spent + time.perf_counter() - began, 2)
            self._record(name, {"started": key, "spent": seconds})
        made = self.fingerprint(outputs)
        self._record(name, {"key": key, "outputs": made, "seconds": seconds})

    def fingerprint(self, outputs: Sequence[str]) -> dict[str, Any]:
        """Size and time of every file of these outputs, to tell whether they were touched."""
        found = {}
        for output in outputs:
            path = self.folder / output
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            for file in files:
                if file.exists():
                    status = file.stat()
                    name = str(file.relative_to(self.folder))
                    found[name] = [status.st_size, status.st_mtime_ns]
        return found

    def _record(self, name: str, entry: dict[str, Any]) -> None:
        self.done[name] = entry
        staged = self.folder / "stages.json.new"
        staged.write_text(json.dumps(self.done, indent=1) + "\n", encoding="utf-8")
        staged.replace(self.folder / "stages.json")


def say_heading(title: str) -> None:
    """Prints a heading."""
    print(f"\n\033[1m== {title}\033[0m" if sys.stdout.isatty() else f"\n== {title}", flush=True)


def call(*command: str | Path) -> None:
    """Runs a command of this environment from the project's root, shown as a user would type it.

    Args:
        command: `ouro` or `python`, and its arguments.

    Raises:
        DemoError: it failed.
    """
    program, *arguments = map(str, command)
    shown = " ".join([f".venv/bin/{program}", *(shlex.quote(_short(part)) for part in arguments)])
    print(f"$ {shown}", flush=True)
    # Not resolved: .venv/bin/python is a link to the system's.
    executable = Path(sys.executable).parent / program
    result = subprocess.run([str(executable), *arguments], cwd=ROOT, check=False)
    if result.returncode == 130:
        raise KeyboardInterrupt
    if result.returncode != 0:
        raise DemoError(
            f"`{shown}` failed with exit status {result.returncode}; its error is above"
        )


def source_hash(*places: str) -> str:
    """One hash over source files of ours.

    Args:
        places: paths in the project: a folder with all its modules, or a file.

    Raises:
        DemoError: there is nothing at one of them.
    """
    digest = hashlib.sha256()
    for place in places:
        path = ROOT / place
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        if not files:
            raise DemoError(f"{path} has no source files; run this from a whole checkout")
        for file in files:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def flags(options: dict[str, str]) -> list[str]:
    """Options as command-line arguments."""
    return [part for pair in options.items() for part in pair]


def _short(argument: str) -> str:
    root = str(ROOT) + os.sep
    return argument.removeprefix(root)


def _digest(inputs: Iterable[Any]) -> str:
    text = json.dumps(list(inputs), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        if obstacle := find_obstacle(path, (CHECKPOINT, RUN, BUNDLE)):
            raise DemoError(f"{path} {obstacle}")
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
