"""`optimum-cli export ouroboros`, through optimum's own plugin mechanism."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bundle.reader import open_bundle
from tests.support.paths import ROOT

PLUGIN = ROOT / "plugins" / "optimum"


@pytest.fixture
def optimum_cli(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """optimum's command line with the plugin's folder in its namespace package."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    return monkeypatch


def run(patch: pytest.MonkeyPatch, *arguments: str) -> None:
    from optimum.commands.optimum_cli import main

    patch.setattr("sys.argv", ["optimum-cli", *arguments])
    main()


def test_plugin_shadows_nothing_of_optimum() -> None:
    # PEP 420: an __init__.py anywhere would hide the other distributions' parts of the package.
    files = [path.relative_to(PLUGIN).as_posix() for path in PLUGIN.rglob("*.py")]
    assert files == ["optimum/commands/register/register_ouroboros.py"]


@pytest.mark.needs_torch
def test_help_lists_the_command(
    optimum_cli: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(optimum_cli, "export", "--help")
    assert "ouroboros" in capsys.readouterr().out


@pytest.mark.slow
def test_export_writes_a_bundle(
    optimum_cli: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    run(optimum_cli, "export", "ouroboros", "-m", str(tiny_checkpoint), str(out))
    assert open_bundle(out).manifest.depth.max == 8  # all that the checkpoint has


def test_errors_are_one_line_and_nothing_is_overwritten(
    optimum_cli: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "bundle")
    with pytest.raises(SystemExit, match=r"^error: max_depth=99 is outside 1\.\.8[^\n]*$"):
        run(optimum_cli, "export", "ouroboros", "-m", str(tiny_checkpoint), out, "--max-depth=99")
    with pytest.raises(SystemExit, match="is a checkpoint of Ouroboros, so it is left alone"):
        run(optimum_cli, "export", "ouroboros", "-m", out, str(tiny_checkpoint))
    assert (tiny_checkpoint / "config.json").is_file()
