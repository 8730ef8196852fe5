"""What of the library reaches a program: its symbols, its package, the ONNX Runtime it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime import Engine
from tests.support.cpp import BUILD, DEPS, HOME, ONNXRUNTIME, built
from tests.support.paths import ROOT

HEADER = HOME / "include/ouro/ouro.h"
LIBRARY = "libouro.so.1"
PROMPT = "Hello"

# An ONNX Runtime of another release: it has no API but the older ones.
OTHER_RUNTIME = """
#include <onnxruntime_c_api.h>
#include <dlfcn.h>
#include <stddef.h>
static const OrtApiBase* real;
static const OrtApi* get(uint32_t version) {
  return version > MINOR || real == NULL ? NULL : real->GetApi(version);
}
static const char* name(void) { return VERSION; }
static const OrtApiBase base = {get, name};
const OrtApiBase* OrtGetApiBase(void) {
  void* library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
  if (library != NULL) {
    real = ((const OrtApiBase* (*)(void))dlsym(library, "OrtGetApiBase"))();
  }
  return &base;
}
"""


def run(
    command: Sequence[str | Path], library_path: Path | None = None, folder: Path | None = None
) -> str:
    """Runs a program with nothing of this process's library paths; returns what it printed."""
    done = try_run(command, library_path, folder)
    assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"
    return done.stdout


def try_run(
    command: Sequence[str | Path], library_path: Path | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    if library_path is not None:
        environment["LD_LIBRARY_PATH"] = str(library_path)
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, installed."""
    built(LIBRARY)
    folder = tmp_path_factory.mktemp("installed")
    run([DEPS / "bin/cmake", "--install", BUILD, "--prefix", folder])
    return folder


@pytest.fixture(scope="module")
def examples(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of examples/cpp, built by a fresh project against the installed library."""
    return build_examples(prefix, tmp_path_factory.mktemp("examples"))


def build_examples(prefix: Path, folder: Path, *given: str) -> Path:
    cmake = DEPS / "bin/cmake"
    where = f"-DCMAKE_PREFIX_PATH={prefix};{DEPS}/openssl"
    warnings = "-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror"
    flags = [f"-DCMAKE_CXX_FLAGS={warnings}", f"-DCMAKE_C_FLAGS={warnings}"]
    run([cmake, "-S", ROOT / "examples/cpp", "-B", folder, where, *flags, *given])
    run([cmake, "--build", folder])
    return folder


@pytest.fixture(scope="module")
def answer(engine: Engine) -> str:
    return engine.generate(PROMPT, depth=3, max_new_tokens=40).text


def test_nothing_but_the_header_is_exported() -> None:
    declared = set(
        re.findall(r"\b(ouro_\w+)\(", re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL))
    )
    lines = run(["nm", "-D", "--defined-only", built(LIBRARY)]).splitlines()
    exported = {line.split()[-1].partition("@")[0] for line in lines}
    assert exported - {"OURO_1"} == declared


def test_library_names_itself_and_does_not_name_onnxruntime() -> None:
    dynamic = run(["readelf", "-d", built(LIBRARY)])
    assert re.findall(r"SONAME.*\[(.*)\]", dynamic) == [LIBRARY]
    assert not [name for name in re.findall(r"NEEDED.*\[(.*)\]", dynamic) if "onnx" in name]


@pytest.mark.parametrize("name", ["generate", "generate_c"])
def test_fresh_project_builds_and_says_what_python_says(
    name: str, examples: Path, tiny_bundle: Path, answer: str
) -> None:
    assert run([examples / name, tiny_bundle, PROMPT, "3"]) == answer + "\n"


def test_chat_loop_answers_each_turn(examples: Path, tiny_bundle: Path, engine: Engine) -> None:
    done = subprocess.run(
        [examples / "chat_loop", tiny_bundle, "3"],
        input="Hello\nAnd then?\n\nnot read\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    session = engine.session(3)
    for turn in ("Hello", "And then?"):
        text = session.generate(turn, max_new_tokens=128, chat=True).text
        assert f"> {text}\n" in done.stdout


def test_example_names_a_wrong_path(examples: Path, tmp_path: Path) -> None:
    for name in ("generate", "generate_c"):
        done = try_run([examples / name, tmp_path / "none", PROMPT])
        assert done.returncode == 1
        assert done.stderr.startswith("error: no bundle at")
        assert len(done.stderr.splitlines()) == 1


def test_first_example_is_short() -> None:
    assert len((ROOT / "examples/cpp/generate.cpp").read_text().splitlines()) <= 40


def test_pkg_config_finds_the_library(
    prefix: Path, tmp_path: Path, tiny_bundle: Path, answer: str
) -> None:
    (found,) = prefix.rglob("ouro.pc")
    command = ["env", f"PKG_CONFIG_PATH={found.parent}", "pkg-config"]
    version = run([*command, "--modversion", "ouro"]).strip()
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    # The prefix is the one of the build; the library was installed elsewhere.
    flags = run([*command, f"--define-variable=prefix={prefix}", "--cflags", "--libs", "ouro"])
    program = tmp_path / "program"
    run(["gcc", "-std=c11", ROOT / "examples/cpp/generate.c", "-o", program, *flags.split()])
    assert run([program, tiny_bundle, PROMPT, "3"], found.parents[1]) == answer + "\n"


def test_documented_program_compiles(tmp_path: Path) -> None:
    (code,) = re.findall(r"```c\+\+\n(.*?)```", (ROOT / "docs/cpp.md").read_text(), re.DOTALL)
    include, _, body = code.partition("\n\n")
    source = tmp_path / "page.cpp"
    source.write_text(f"{include}\n#include <iostream>\nint main() {{\n{body}}}\n")
    run(["g++", "-std=c++17", "-Wall", "-Werror", "-fsyntax-only", f"-I{HOME}/include", source])


def make_runtime(folder: Path, version: str) -> Path:
    """An ONNX Runtime that says it is of another version; returns its folder."""
    folder.mkdir()
    source = folder / "other.c"
    source.write_text(OTHER_RUNTIME)
    defines = [f'-DVERSION="{version}"', f"-DMINOR={version.split('.')[1]}"]
    defines.append(f'-DREAL="{ONNXRUNTIME.resolve()}"')
    include = f"-I{DEPS}/onnxruntime/include"
    output = folder / "libonnxruntime.so.1"
    # Under a name of its own, or the loader would take it for the real one, which bears this name.
    options = ["-shared", "-fPIC", "-Wl,-soname,libother.so.1", "-o", output]
    run(["gcc", include, *defines, *options, source])
    return folder


def test_another_release_of_onnxruntime_is_taken(
    examples: Path, tmp_path: Path, tiny_bundle: Path, answer: str
) -> None:
    other = make_runtime(tmp_path / "older", "1.20.1")
    assert run([examples / "generate_c", tiny_bundle, PROMPT, "3"], other) == answer + "\n"


def test_too_old_an_onnxruntime_is_refused(
    examples: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    done = try_run(
        [examples / "generate_c", tiny_bundle, PROMPT], make_runtime(tmp_path / "old", "1.9.0")
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the ONNX Runtime that is loaded here is 1.9.0, too old; ")
    assert len(done.stderr.splitlines()) == 1


def test_no_onnxruntime_is_an_error_of_one_line(
    examples: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    (tmp_path / "libonnxruntime.so.1").write_text("no library")
    (tmp_path / "libonnxruntime.so").write_text("no library")
    done = try_run([examples / "generate_c", tiny_bundle, PROMPT], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ONNX Runtime was not found: ")
    assert len(done.stderr.splitlines()) == 1


HOLDS_ITS_OWN = """
import ctypes, sys
own, library, bundle = sys.argv[1:]
ctypes.CDLL(own, mode=getattr(__import__("os"), "RTLD_LOCAL"))
ouro = ctypes.CDLL(library)
engine, error = ctypes.c_void_p(), ctypes.c_void_p()
status = ouro.ouro_engine_open(bundle.encode(), None, ctypes.byref(engine), ctypes.byref(error))
assert status == 0, status
with open("/proc/self/maps") as maps:
    loaded = {line.split()[-1] for line in maps if "libonnxruntime.so" in line}
assert loaded == {own}, loaded
ouro.ouro_engine_release.argtypes = [ctypes.c_void_p]
ouro.ouro_engine_release(engine)
"""


def test_program_keeps_the_onnxruntime_it_has_loaded(tmp_path: Path, tiny_bundle: Path) -> None:
    library = built(LIBRARY)
    own = tmp_path / "libonnxruntime.so.1.32.0"
    own.write_bytes(ONNXRUNTIME.read_bytes())
    run(["python3", "-c", HOLDS_ITS_OWN, own, library, tiny_bundle])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_static_library_with_tensorrt_is_used_the_same_way(
    tmp_path: Path, tiny_bundle: Path, answer: str
) -> None:
    """TensorRT is a stand-in to link against: that, and what a machine without a GPU does then.

    Built as distributions do, many files at once.
    """
    built(LIBRARY)
    run([sys.executable, "-m", "runtime.cpp.tools.fetch_deps", DEPS, "--tensorrt"], folder=ROOT)
    cmake, build, prefix = DEPS / "bin/cmake", tmp_path / "build", tmp_path / "prefix"
    given = ["-DBUILD_SHARED_LIBS=OFF", "-DOURO_BUILD_CLI=OFF", "-DOURO_BUILD_TESTS=OFF"]
    given += ["-DCMAKE_CXX_FLAGS_RELEASE=-O0", "-DCMAKE_UNITY_BUILD=ON"]  # a third of the time
    run([cmake, "--preset", "tensorrt", "-B", build, *given], folder=HOME)
    run([cmake, "--build", build, "--parallel", "2"])
    run([cmake, "--install", build, "--prefix", prefix])
    assert not list(prefix.rglob("*.so*"))
    folder = build_examples(prefix, tmp_path / "examples", f"-DTENSORRT_ROOT={DEPS}/tensorrt")
    for name in ("generate", "generate_c"):
        assert "nvinfer" in run(["readelf", "-d", folder / name])
        output = run([folder / name, tiny_bundle, PROMPT, "3"], ONNXRUNTIME.parent)
        assert output == answer + "\n"
