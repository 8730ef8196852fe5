"""Pinned packages from PyPI, npm and Debian: downloaded, checked against their hash, read.

Nothing is installed and nothing of a package is run. Each registry is asked through its ordinary
client, as this machine has it set up: pip, npm, and apt with a state directory of its own.
"""

from __future__ import annotations

import fnmatch
import io
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.files.cache import default_cache as default_cache
from runtime.files.hashing import hash_file

REGISTRIES = ("pypi", "npm", "debian", "debian-source")
DAY, MINUTE = 86_400, 60


class FetchError(Exception):
    """A file could not be had, or is not the one that is pinned here."""


@dataclass(frozen=True)
class Package:
    """A package in one exact version.

    Attributes:
        registry: one of `REGISTRIES`. debian-source is the upstream archive of a source package.
        name: as the registry's client takes it.
        version: likewise.
        sha256: of the downloaded file.
        release: Debian's, where it is not the machine's own.
    """

    registry: str
    name: str
    version: str
    sha256: str
    release: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.registry})"


def sha256_of(path: Path) -> str | None:
    """The hash of a file, or None where it can't be read."""
    try:
        return hash_file(path)
    except OSError:
        return None


def require_hash(path: Path, sha256: str, what: str, pinned_in: str) -> None:
    """Raises FetchError unless the file has this hash."""
    found = sha256_of(path)
    if found != sha256:
        raise FetchError(
            f"{what} has sha256 {found}, but {sha256} is pinned in {pinned_in}; "
            "it is not used, since it is not what was tested"
        )


def download_wheel(requirement: str, folder: Path, pure: bool = False) -> Path:
    """Downloads one wheel with pip, without its dependencies.

    Args:
        requirement: exact version, as pip takes it.
        folder: an empty directory to put it in.
        pure: takes the wheel for any platform, where there are several.

    Raises:
        FetchError: pip brings none.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "-d", str(folder)]
    if pure:
        command += ["--platform", "any", "--implementation", "py", "--abi", "none"]
    _run([*command, requirement], folder, f"download {requirement} with pip")
    return _only(folder, ("*.whl",), requirement)


def fetch_package(
    package: Package, cache: Path, pinned_in: str, say: Callable[[str], None] = print
) -> Path:
    """Makes sure that a package lies in the cache, unaltered, and returns its file.

    Args:
        package: what to fetch.
        cache: directory that keeps packages.
        pinned_in: file that errors name as the place of the hash.
        say: called with a line before a download.

    Raises:
        FetchError: the registry does not answer, or its file is not the pinned one.
        OSError: the cache can't be written.
    """
    kept = cache / package.sha256
    if sha256_of(kept) == package.sha256:
        return kept
    say(f"fetching {package}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as temporary:
        folder = Path(temporary)
        match package.registry:
            case "pypi":
                requirement = f"{package.name}=={package.version}"
                path = download_wheel(requirement, folder, pure=True)
            case "npm":
                path = _download_npm(package, folder)
            case "debian":
                what = f"{package.name}={package.version}"
                state = cache / (f"apt-{package.release}" if package.release else "apt")
                doing = f"download {package} with apt-get"
                apt_get(["download", what], state, folder, doing, package.release)
                path = _only(folder, ("*.deb",), str(package))
            case _:
                path = _download_source(package, cache / "apt", folder)
        require_hash(path, package.sha256, str(package), pinned_in)
        path.replace(kept)
    return kept


def read_members(path: Path, patterns: Sequence[str], skip: Sequence[str] = ()) -> dict[str, bytes]:
    """Reads the files of a package whose paths fit a pattern.

    Args:
        path: a wheel, a .deb or a tar archive, told apart by their first bytes.
        patterns: as `fnmatch` takes them; `*` spans folders.
        skip: patterns of paths that are left out all the same.

    Returns:
        Contents by path, in the archive's order, without links. The paths of a .deb have no
        leading `./`.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"PK"):
        return dict(_zip_members(path, patterns, skip))
    archive = _data_of_deb(path) if head.startswith(b"!<arch>") else path.open("rb")
    found: dict[str, bytes] = {}
    with archive, tarfile.open(fileobj=archive) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            if entry.isfile() and _fits(name, patterns, skip):
                content = tar.extractfile(entry)
                if content is not None:
                    found[name] = content.read()
    return found


def apt_get(
    arguments: Sequence[str], state: Path, folder: Path, what: str, release: str = ""
) -> None:
    """Runs apt-get with the options of `apt_options`; once more with lists read anew if it fails.

    Args:
        arguments: of apt-get.
        state: see `apt_options`.
        folder: where it runs.
        what: it does, for the error.
        release: see `apt_options`.

    Raises:
        FetchError: it fails.
    """
    options = apt_options(state, release)
    try:
        _run(["apt-get", *options, "-q", *arguments], folder, what)
    except FetchError:
        # A version that is not in lists of some hours may be there by now, or gone to another.
        if _age_s(state / "sources.list") < MINUTE:
            raise
        options = apt_options(state, release, newest_s=MINUTE)
        _run(["apt-get", *options, "-q", *arguments], folder, what)


def apt_options(state: Path, release: str = "", newest_s: float = DAY) -> list[str]:
    """Options that keep apt in a directory of its own, with the machine's own sources.

    Source packages are asked for where the machine lists binary ones only.

    Args:
        state: the directory.
        release: asks the same mirrors for another release of Debian, for its binary packages.
        newest_s: lists of packages that are older, in seconds, are read anew.

    Raises:
        FetchError: this is no Debian, or its registry does not answer.
    """
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    listing = state / "sources.list"
    options = ["-o", f"Dir::State={state}", "-o", f"Dir::State::lists={state / 'lists'}"]
    options += ["-o", f"Dir::Cache={state}", "-o", f"Dir::Etc::sourcelist={listing}"]
    options += ["-o", "Dir::Etc::sourceparts=/dev/null", "-o", "APT::Sandbox::User=root"]
    if _age_s(listing) > newest_s:
        form = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
        command = ["apt-get", "indextargets", "--format", form]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise FetchError(
                "texts from Debian packages need apt-get on Debian, which is not here; "
                "run this on Debian 12"
            ) from error
        lines = []
        for line in sorted({x for x in found.splitlines() if x.endswith(" Debian")}):
            address, own, component, _ = line.split()
            if not release:
                lines += [f"{kind} {address} {own} {component}" for kind in ("deb", "deb-src")]
            elif "-" not in own:  # not one of security fixes or updates
                lines += [f"deb {address} {release} {component}"]
        part = listing.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n")
        at_part = [o.replace(str(listing), str(part)) for o in options]
        _run(["apt-get", *at_part, "-q", "update"], state, "read Debian's lists of packages")
        part.replace(listing)
    return options


def _age_s(listing: Path) -> float:
    """Seconds since Debian's lists were read; without end where they never were."""
    try:
        return time.time() - listing.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _download_npm(package: Package, folder: Path) -> Path:
    what = f"{package.name}@{package.version}"
    _run(["npm", "pack", "--silent", "--ignore-scripts", what], folder, f"pack {what} with npm")
    return _only(folder, ("*.tgz",), str(package))


def _download_source(package: Package, state: Path, folder: Path) -> Path:
    failed: FetchError | None = None
    # Debian replaces a version by one with other patches and the same archive of upstream's.
    for wanted in (f"{package.name}={package.version}", package.name):
        try:
            doing = f"download the source of {package}"
            apt_get(["source", "--download-only", wanted], state, folder, doing)
        except FetchError as error:
            failed = failed or error
        # Beside it lie patches, a description, perhaps further archives.
        for path in folder.iterdir():
            if sha256_of(path) == package.sha256:
                return path
    raise failed or FetchError(
        f"{package} came without a file of sha256 {package.sha256}, which is pinned; "
        "nothing is used of it"
    )


def _run(command: Sequence[str], folder: Path, what: str) -> None:
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FetchError(f"can't {what}: {error}") from error
    if result.returncode != 0:
        lines = [x for x in result.stderr.splitlines() if x.startswith(("ERROR", "E:", "npm err"))]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit status {result.returncode}"
        raise FetchError(f"can't {what}: {reason}; try again later")


def _only(folder: Path, patterns: Sequence[str], what: str) -> Path:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) != 1:
        raise FetchError(f"{what} came as {len(found)} files, not as one; nothing is used of it")
    return found[0]


def _fits(name: str, patterns: Sequence[str], skip: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns) and not any(
        fnmatch.fnmatchcase(name, p) for p in skip
    )


def _zip_members(
    path: Path, patterns: Sequence[str], skip: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if _fits(name, patterns, skip):
                yield name, archive.read(name)


def _data_of_deb(path: Path) -> io.BytesIO:
    """The inner archive `data.tar.*` of a .deb, which is an ar archive."""
    with path.open("rb") as file:
        file.seek(8)
        while header := file.read(60):
            size = int(header[48:58])
            if header.startswith(b"data.tar"):
                return io.BytesIO(file.read(size))
            file.seek(size + size % 2, io.SEEK_CUR)
    raise FetchError(f"{path} holds no data.tar; it is not a Debian package")
