"""clang-format over all C and C++ of ours, then clang-tidy over every file that is compiled.

    python -m runtime.cpp.tools.lint [--fix] [--build build/cpp/tidy]

Both come with the project's dev extra. clang-tidy needs a configured build folder and remembers
there which files it passed: one is looked at again once it, a header of ours or the checks changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.files.hashing import hash_file

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / "runtime/cpp"
FOLDERS = (*(HOME / name for name in ("include", "src", "cli", "tests")), ROOT / "examples/cpp")
# Written by tools/make_*.py, never by hand.
GENERATED = tuple(
    HOME / "src" / name for name in ("text/tables", "bundle/contract.hpp", "defaults.hpp")
)
TOOLS = Path(sys.executable).parent


def main() -> int:
    """Prints what is found; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fix", action="store_true", help="clang-format rewrites, nothing else")
    parser.add_argument("--build", type=Path, default=ROOT / "build/cpp/tidy")
    given = parser.parse_args()
    sources = list_sources()
    how = ["-i"] if given.fix else ["--dry-run", "-Werror"]
    done = subprocess.run([TOOLS / "clang-format", *how, *sources], check=False)
    if done.returncode or given.fix:
        return done.returncode
    print(f"clang-format: {len(sources)} files are formatted")
    return run_tidy(sources, given.build)


def list_sources() -> list[Path]:
    """Every file of C or C++ that is written by hand."""
    found = sorted(
        path
        for folder in FOLDERS
        for path in folder.rglob("*")
        if path.suffix in {".c", ".h", ".cpp", ".hpp"}
    )
    return [p for p in found if not any(p == g or g in p.parents for g in GENERATED)]


def run_tidy(sources: Sequence[Path], build: Path) -> int:
    """Runs clang-tidy over what the build folder compiles, two processes at a time or more."""
    commands = json.loads((build / "compile_commands.json").read_text())
    compiled = sorted({Path(command["file"]) for command in commands} & set(sources))
    headers = [p for p in sources if p.suffix in {".h", ".hpp"}]
    headers += [ROOT / ".clang-tidy", HOME / "tests/.clang-tidy"]
    common = "".join(hash_file(path) for path in headers)
    passed = build / "clang-tidy"
    passed.mkdir(exist_ok=True)
    stamps = {p: passed / _name_of(common, str(p), hash_file(p)) for p in compiled}

    def check(path: Path) -> str:
        command = [str(TOOLS / "clang-tidy"), "--quiet", f"-p={build}", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            stamps[path].touch()
            return ""
        return done.stdout + (done.stderr if not done.stdout.strip() else "")

    started = time.monotonic()
    todo = [path for path in compiled if not stamps[path].exists()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        findings = [text for text in pool.map(check, todo) if text]
    for path in set(passed.iterdir()) - set(stamps.values()):
        path.unlink()
    print("".join(findings), end="")
    took = f"{len(todo)} of {len(compiled)} files looked at in {time.monotonic() - started:.0f} s"
    print(f"clang-tidy: {took}, {len(findings)} with findings")
    return 1 if findings else 0


def _name_of(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
