"""Seals a bundle that was changed, and asks the parity check of one."""

from __future__ import annotations

from pathlib import Path

from runtime.bundle.reader import read_manifest, write_manifest
from runtime.parity.check import ParityReport, check_bundle


def seal(bundle: Path) -> None:
    """Writes the manifest anew, with the hashes that the files have now."""
    fields = read_manifest(bundle).to_json()
    write_manifest(bundle, **fields)


def verdict_of(bundle: Path) -> ParityReport:
    return check_bundle(bundle, threads=1)
