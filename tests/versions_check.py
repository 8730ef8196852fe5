"""Runs tests against other versions than those the project is pinned to, in an environment apart.

python tests/versions_check.py lowest    the base install at its lowest versions, without torch
python tests/versions_check.py newest    the newest ONNX Runtime, tokenizers and transformers
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LEAST = 500  # torch-free tests there are at least, so that none can go missing unseen
# Where the version of a package matters: every test of these is run.
NEWEST = {
    "onnxruntime": ("tests/runtime/decode", "tests/runtime/test_engine.py"),
    "tokenizers": ("tests/runtime/text", "tests/ouroboros/source"),
    "transformers": ("tests/ouroboros/model", "tests/ouroboros/source"),
}
MAKE_BUNDLES = """
import sys
from pathlib import Path
from tests.support.halting import write_halting
from tests.support.tiny import build_bundle, build_checkpoint, build_massive, build_original
from tests.support.traces import keep_traces
keep_traces()
folder = Path(sys.argv[1])
build_original(folder / "original")
build_massive(folder / "original-massive")
for name, original, kind in (
    ("tiny", "original", {}),
    ("block", "original", {"block": True}),
    ("massive", "original-massive", {"massive": True}),
):
    build_checkpoint(folder / original, folder / "made" / name, **kind)
    build_bundle(folder / "made" / name, folder / name)
write_halting(folder / "made" / "tiny", folder / "made" / "halting", "trained")
build_bundle(folder / "made" / "halting", folder / "halting")
"""


def read_project() -> dict[str, Any]:
    """What pyproject.toml says of the project."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


def tools_of(project: dict[str, Any]) -> list[str]:
    """The development requirements that the tests run with."""
    extras = project["optional-dependencies"]
    return [one for one in extras["dev"] if one.startswith(("pytest", "jsonschema"))]


def lowest_versions(project: dict[str, Any]) -> list[str]:
    """The base install's requirements, each pinned to the least version that it allows."""
    pinned = []
    for requirement in project["dependencies"]:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if match is None:
            raise SystemExit(f"error: {requirement} in pyproject.toml names no least version")
        pinned.append(f"{match[1]}=={match[2]}")
    return pinned


def make_empty(folder: Path) -> Path:
    """Makes an environment without pip, which takes seconds to install; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def install(python: Path, *arguments: str) -> None:
    """Installs packages into an environment, with pip's options among the arguments."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", *arguments], check=True)


def make_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Makes an environment with these packages; returns its Python."""
    python = make_empty(folder)
    install(python, *requirements)
    return python


def make_overlay(folder: Path, requirements: Sequence[str]) -> Path:
    """Makes an environment on top of this one, holding what is newer; returns its Python.

    Installing torch once more would take longer than the tests.
    """
    python = make_empty(folder)
    (own,) = (folder / "lib").glob("python*/site-packages")
    (own / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install(python, "--upgrade", "--upgrade-strategy", "only-if-needed", *requirements)
    return python


def own_versions(python: Path, package: str) -> list[str]:
    """The versions of a package in an environment itself, not in what lies below it."""
    found = (python.parents[1] / "lib").glob(f"python*/site-packages/{package}-*.dist-info")
    return [path.name.removesuffix(".dist-info").partition("-")[2] for path in found]


def run_tests(python: Path, tests: Sequence[str], bundles: Path | None) -> str:
    """Runs fast tests with that Python, output shown; returns what pytest said.

    Raises:
        SystemExit: one failed.
    """
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if bundles is not None:
        environment["OURO_TEST_BUNDLES"] = str(bundles)
    # Other versions may warn of what is to come; that is no failure.
    options = ("-q", "--durations", "25", "-W", "default", "-p", "no:cacheprovider")
    spread = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")
    command = [python, "-m", "pytest", *options, *spread, *tests]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    if done.returncode:
        raise SystemExit(f"error: tests fail with {python}")
    return done.stdout


def check_lowest(folder: Path) -> None:
    """The torch-free tests against the lowest versions of the base install."""
    project = read_project()
    pinned = lowest_versions(project)
    print("lowest:", ", ".join(pinned), flush=True)
    one_thread = dict(os.environ, OMP_NUM_THREADS="1")  # tiny models: more threads only wait
    subprocess.run(
        [sys.executable, "-c", MAKE_BUNDLES, folder], cwd=ROOT, env=one_thread, check=True
    )
    python = make_environment(folder / "lowest", [*pinned, *tools_of(project)])
    # Of the C++ library it is known already: its tests are those of one version of tokenizers.
    apart = [f"--ignore=tests/{name}" for name in ("runtime/cpp", "conformance")]
    said = run_tests(python, ["tests", *apart], folder)
    passed = re.search(r"(\d+) passed", said)
    if passed is None or int(passed[1]) < LEAST:
        raise SystemExit(f"error: fewer than {LEAST} tests ran without torch")


def check_newest(folder: Path) -> None:
    """Tests of what stands on a package of `NEWEST`, against its newest release.

    `make test` has tested what is not newer than in this environment.
    """
    project = read_project()
    extras = project["optional-dependencies"]
    own = [*project["dependencies"], *extras["train"], *extras["export"]]
    wanted = [one for one in own if not one.startswith(("ouroboros-llm", "torch>"))]
    python = make_overlay(folder / "newest", [*wanted, *tools_of(project)])
    newer = {name: versions[0] for name in NEWEST if (versions := own_versions(python, name))}
    print("newer than here:", ", ".join(f"{n} {v}" for n, v in newer.items()) or "nothing")
    if newer:
        run_tests(python, sorted({path for name in newer for path in NEWEST[name]}), None)


def main() -> None:
    """Does what the first argument says."""
    checks = {"lowest": check_lowest, "newest": check_newest}
    if len(sys.argv) != 2 or sys.argv[1] not in checks:
        raise SystemExit(f"error: name one of {', '.join(checks)}")
    with tempfile.TemporaryDirectory(prefix="ouro-versions-") as name:
        checks[sys.argv[1]](Path(name))


if __name__ == "__main__":
    main()
