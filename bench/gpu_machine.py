"""Carries big files to a GPU machine without network, in parts, and runs everything there.

python -m bench.gpu_machine split FILE OUT --part-mib 54   OUT0/, OUT1/, ...: a part in each
python -m bench.gpu_machine join OUT OUT0 OUT1 ...         whole again, its sha256 checked
python -m bench.gpu_machine install SITE WHEEL...          wheels into a folder, nothing replaced
python -m bench.gpu_machine run CHECKPOINT --site SITE     tests, parity and speed, a log of each

`run` goes on after a part that fails or takes too long, and ends with a table of seconds. Only the
standard library is needed here.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from runtime.files.hashing import hash_file

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 1 << 20
PART = re.compile(r"(?P<name>.+)\.part(?P<number>\d+)of(?P<count>\d+)")
CLI = "from cli.main import main; main()"
# Opens a graph of one node: whether CUDA's libraries are found.
PROBE = """
import onnx.helper as h, onnxruntime as o
from runtime.backends.ort_cuda import PROVIDER, load_libraries
load_libraries()
one = h.make_tensor_value_info("x", 1, [1]); two = h.make_tensor_value_info("y", 1, [1])
graph = h.make_graph([h.make_node("Exp", ["x"], ["y"])], "probe", [one], [two])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
session = o.InferenceSession(model.SerializeToString(), providers=[PROVIDER])
assert PROVIDER in session.get_providers(), session.get_providers()
print(o.__version__, o.__file__, session.run(None, {"x": [1.0]}))
"""


class CarryError(Exception):
    """A part that is missing or was changed on the way."""


@dataclass(frozen=True)
class Stage:
    """One process of `run`.

    Attributes:
        name: of the stage and its log.
        command: what runs.
        limit_s: seconds after which it is ended.
    """

    name: str
    command: tuple[str, ...]
    limit_s: int


def split(file: Path, out: Path, part_bytes: int) -> list[Path]:
    """Cuts a file into parts, each in a folder of its own beside the file's sha256.

    Args:
        file: the file.
        out: the folders are this path with 0, 1, ... appended; what stands there is replaced.
        part_bytes: most bytes of a part.

    Returns:
        The folders.
    """
    size, digest = file.stat().st_size, hash_file(file)
    count = max(1, -(-size // part_bytes))
    even = -(-size // count)
    folders = []
    with file.open("rb") as source:
        for number in range(count):
            folder = out.with_name(f"{out.name}{number}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / f"{file.name}.part{number}of{count}").write_bytes(source.read(even))
            (folder / f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n")
            folders.append(folder)
    return folders


def join(out: Path, folders: Sequence[Path]) -> Path:
    """Puts a file together again.

    Args:
        out: folder that receives it.
        folders: that hold the parts, in any order.

    Returns:
        The file; one that is there already and whole is left as it is.

    Raises:
        CarryError: a part is missing, twice there or of another file, or the sum does not fit.
    """
    found = [(PART.fullmatch(path.name), path) for one in folders for path in sorted(one.iterdir())]
    parts = {int(match["number"]): path for match, path in found if match}
    matches = [match for match, _ in found if match]
    names, counts = {one["name"] for one in matches}, {int(one["count"]) for one in matches}
    if len(names) != 1 or len(counts) != 1 or len(matches) != len(parts):
        raise CarryError(f"not the parts of one file: {', '.join(one.string for one in matches)}")
    (name,), (count,) = names, counts
    if missing := sorted(set(range(count)) - parts.keys()):
        raise CarryError(f"{name}: the parts {missing} of {count} are missing")
    digest = parts[0].with_name(f"{name}.sha256").read_text().split()[0]
    out.mkdir(parents=True, exist_ok=True)
    file = out / name
    if file.is_file() and hash_file(file) == digest:
        return file
    staged = out / f"{name}.joining"
    with staged.open("wb") as target:
        for number in range(count):
            with parts[number].open("rb") as source:
                shutil.copyfileobj(source, target, BLOCK)
    if (given := hash_file(staged)) != digest:
        staged.unlink()
        raise CarryError(f"{name}: its sha256 is {given}, not {digest}: carry the parts again")
    return staged.replace(file)


def install(site: Path, wheels: Sequence[Path]) -> None:
    """Installs wheels into a folder, with no network; what the machine has stays as it is.

    Args:
        site: the folder; on PYTHONPATH it comes before the machine's own packages.
        wheels: the files.

    Raises:
        CarryError: pip refuses.
    """
    options = ("--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--quiet")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site)]
    if subprocess.run([*command, *map(str, wheels)], check=False).returncode:
        raise CarryError("pip could not install the wheels: see above")


def library_folders() -> list[Path]:
    """Folders of the shared libraries that NVIDIA's packages brought, anywhere on Python's path."""
    spec = find_spec("nvidia")
    roots = [] if spec is None else [Path(one) for one in spec.submodule_search_locations or ()]
    return sorted({file.parent for root in roots for file in root.glob("*/lib/*.so*")})


def make_stages(checkpoint: Path, work: Path, results: Path, python: str) -> list[Stage]:
    """What `run` does, in order; every part can be named alone.

    Args:
        checkpoint: the PyTorch model.
        work: where bundles are written.
        results: where the figures are written.
        python: the interpreter.
    """
    bench = (python, "-m", "bench.gpu", str(checkpoint), "--work", str(work))
    tests = ("tests/runtime/backends/test_gpu.py", "tests/export/tensorrt/test_gpu.py")
    # Whatever plugins the machine has stay out, and their warnings are no errors.
    plugins = ("-p", "pytest_timeout", "-p", "no:cacheprovider")
    options = ("-m", "gpu", "-W", "default", "--durations", "10")
    pytest = (python, "-m", "pytest", *plugins, *options, *tests)
    return [
        Stage("doctor", (python, "-c", CLI, "doctor"), 60),
        Stage("tests", pytest, 300),
        Stage("export", (*bench, "--export-only"), 300),
        Stage("parity", (*bench, "--parity-only", "--reuse"), 240),
        Stage("speed", (*bench, "--speed-only", "--json", "--results", str(results)), 300),
    ]


def run_stages(stages: Sequence[Stage], logs: Path, environment: dict[str, str]) -> bool:
    """Runs stages one after the other, whatever becomes of each.

    Args:
        stages: to run.
        logs: folder of NAME.log.
        environment: of every stage.

    Returns:
        Whether all ended well.
    """
    logs.mkdir(parents=True, exist_ok=True)
    rows = []
    for stage in stages:
        print(f"== {stage.name}: {' '.join(stage.command)}", flush=True)
        began = time.perf_counter()
        status = _run_stage(stage, logs / f"{stage.name}.log", environment)
        rows.append((stage.name, status, time.perf_counter() - began))
        print("\n".join(_tail(logs / f"{stage.name}.log")), flush=True)
    for name, status, seconds in rows:
        print(f"{name:<10}{seconds:>8.1f} s  {status}", flush=True)
    return all(status == "ok" for _, status, _ in rows)


def make_environment(site: Path | None, libraries: bool) -> dict[str, str]:
    """The environment of the stages.

    Args:
        site: folder of `install`; None where the machine has everything.
        libraries: also name the folders of CUDA's libraries to the loader.
    """
    paths = [*([] if site is None else [str(site)]), str(ROOT)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), PYTHONUNBUFFERED="1")
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if libraries:
        known = [str(one) for one in library_folders()]
        before = [one for one in (environment.get("LD_LIBRARY_PATH"),) if one]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([*known, *before])
    return environment


def choose_environment(site: Path | None) -> dict[str, str]:
    """The environment in which ONNX Runtime opens a graph on the GPU; says which that is.

    Args:
        site: see `make_environment`.
    """
    environment = make_environment(site, libraries=False)
    for libraries in (False, True):
        environment = make_environment(site, libraries)
        probe = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PROBE],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        how = "with LD_LIBRARY_PATH" if libraries else "by ONNX Runtime's own means"
        said = (probe.stdout + probe.stderr[-1500:]).strip()
        print(f"CUDA's libraries {how}: {said}", flush=True)
        if probe.returncode == 0:
            return environment
    return environment


def _run_stage(stage: Stage, log: Path, environment: dict[str, str]) -> str:
    with log.open("w") as target:
        process = subprocess.Popen(
            stage.command,
            stdout=target,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            status = process.wait(stage.limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"ended after {stage.limit_s} s"
    return "ok" if status == 0 else f"exit status {status}"


def _tail(log: Path, lines: int = 60) -> Iterator[str]:
    yield from log.read_text(errors="replace").splitlines()[-lines:]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; None takes this process's."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_machine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("split")
    one.add_argument("file", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--part-mib", type=int, default=54)
    one = verbs.add_parser("join")
    one.add_argument("out", type=Path)
    one.add_argument("folders", type=Path, nargs="+")
    one = verbs.add_parser("install")
    one.add_argument("site", type=Path)
    one.add_argument("wheels", type=Path, nargs="+")
    one = verbs.add_parser("run")
    one.add_argument("checkpoint", type=Path)
    one.add_argument("--site", type=Path, help="folder of installed wheels")
    one.add_argument("--work", type=Path, default=Path("build/gpu"), help="bundles")
    one.add_argument("--logs", type=Path, default=Path("build/gpu-logs"), help="logs and figures")
    one.add_argument("--stages", nargs="+", help="all unless named: doctor tests export ...")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the first argument says."""
    given = parse(arguments)
    try:
        if given.verb == "split":
            for folder in split(given.file, given.out, given.part_mib << 20):
                print(folder)
        elif given.verb == "join":
            print(join(given.out, given.folders))
        elif given.verb == "install":
            install(given.site, given.wheels)
        else:
            _run(given)
    except CarryError as error:
        sys.exit(f"error: {error}")


def _run(given: argparse.Namespace) -> None:
    folders = (given.checkpoint.resolve(), given.work.resolve(), given.logs.resolve())
    stages = make_stages(*folders, sys.executable)
    if given.stages:
        known = [stage.name for stage in stages]
        if unknown := sorted(set(given.stages) - set(known)):
            sys.exit(f"error: no stage {unknown[0]}; there are {', '.join(known)}")
        stages = [stage for stage in stages if stage.name in given.stages]
    site = None if given.site is None else given.site.resolve()
    if not run_stages(stages, folders[2], choose_environment(site)):
        sys.exit(1)


if __name__ == "__main__":
    main()
