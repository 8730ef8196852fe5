"""Builds the wheel, installs it without torch into a fresh environment, and uses it there.

Runs in a directory outside the tree, so that nothing of the checkout is imported by accident:

    python tests/wheel_check.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
PACKAGES = ("ouroboros", "export", "runtime", "cli")
# What only training and export need; the base install must do without.
ABSENT = ("torch", "transformers", "onnx", "datasets", "matplotlib")

MAKE_BUNDLE = """
import sys
from pathlib import Path
from tests.support.tiny import build_bundle, build_checkpoint, build_original
from tests.support.traces import keep_traces
keep_traces()
folder = Path(sys.argv[1])
build_original(folder / "original")
build_checkpoint(folder / "original", folder / "checkpoint")
build_bundle(folder / "checkpoint", folder / "bundle")
"""

IMPORT = """
import importlib, sys
from pathlib import Path
package = importlib.import_module(sys.argv[1])
prefix = Path(sys.prefix).resolve()
home = Path(package.__file__).resolve()
assert prefix in home.parents, f"{sys.argv[1]} was imported from {home}, not from the wheel"
"""

NO_EXTRAS = """
import importlib.util, sys
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
assert not found, f"the base install brought {', '.join(found)}"
"""

GENERATE = """
import sys
from runtime import Engine
with Engine.open(sys.argv[1], threads=1) as engine:
    for depth in (1, 4):
        first = engine.generate("Hello", depth=depth, max_new_tokens=8)
        again = engine.generate("Hello", depth=depth, max_new_tokens=8)
        assert 1 <= len(first.tokens) <= 8 and first.tokens == again.tokens, first
        logits = engine.logits(engine.tokenize("Hello"), depth=depth)
        assert logits.shape[-1] == engine.manifest.model.vocab_size, logits.shape
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
assert not heavy, heavy
"""


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Runs a command in `folder` with nothing of this checkout on its path; returns its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if result.returncode != 0:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise RuntimeError("\n    ".join([f"exit status {result.returncode}", *lines[-15:]]))
    return result.stdout


def build_environment(folder: Path) -> Path:
    """Builds the wheel and installs it into a new environment; returns its bin directory."""
    run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT], folder)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", folder / "fresh"], folder)
    binaries = folder / "fresh" / "bin"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python"]
    run(
        [*pip, binaries / "python", "install", "--quiet", "--no-compile", "-c", CONSTRAINTS, wheel],
        folder,
    )
    return binaries


def main() -> int:
    """Runs every check and prints one line each; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="ouro-wheel-") as name:
        folder = Path(name)
        print("making a tiny bundle", flush=True)
        subprocess.run([sys.executable, "-c", MAKE_BUNDLE, folder], cwd=ROOT, check=True)
        print("building the wheel, installing it into a fresh environment", flush=True)
        binaries = build_environment(folder)
        python, ouro, bundle = binaries / "python", binaries / "ouro", folder / "bundle"

        def shows_commands() -> None:
            text = run([ouro, "--help"], folder)
            missing = [name for name in ("convert", "export", "run", "check") if name not in text]
            if missing:
                raise RuntimeError(f"ouro --help does not list {', '.join(missing)}")

        def passes_parity() -> None:
            text = run([ouro, "check", bundle], folder)
            if "PASS" not in text and "AMBIGUOUS" not in text:
                raise RuntimeError(f"ouro check printed no verdict: {text[-200:]}")

        checks: dict[str, Callable[[], object]] = {
            "the base install has no torch": lambda: run(
                [python, "-c", NO_EXTRAS, *ABSENT], folder
            ),
            "ouro --help": shows_commands,
            **{
                f"import {package}": lambda package=package: run(
                    [python, "-c", IMPORT, package], folder
                )
                for package in PACKAGES
            },
            "Engine.generate and Engine.logits": lambda: run(
                [python, "-c", GENERATE, bundle], folder
            ),
            "ouro run": lambda: run(
                [ouro, "run", bundle, "Hello", "--depth", "2", "--max-new-tokens", "4"], folder
            ),
            "ouro inspect": lambda: run([ouro, "inspect", bundle], folder),
            "ouro check": passes_parity,
        }
        failed = 0
        for title, check in checks.items():
            try:
                check()
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"FAILED {title}: {error}", flush=True)
            else:
                print(f"passed {title}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.CalledProcessError) as problem:
        sys.exit(f"error: the wheel check could not start: {problem}")
