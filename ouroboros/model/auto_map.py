"""What a checkpoint carries so that `trust_remote_code=True` finds the installed package."""

from __future__ import annotations

from pathlib import Path

MODULE = "modeling_ouroboros"

AUTO_MAP = {
    "AutoConfig": f"{MODULE}.OuroborosConfig",
    "AutoModelForCausalLM": f"{MODULE}.OuroborosForCausalLM",
}
"""The `auto_map` of every config.json we write; one that is read is never followed."""

# The import stands in a `try`, where transformers does not look for requirements: it would advise
# to install a package named like the module, which is a stranger's.
SOURCE = '''\
"""Finds Ouroboros, which is an installed package: no code travels with a checkpoint."""

try:
    from ouroboros import OuroborosConfig, OuroborosForCausalLM
except ImportError as error:
    raise ImportError(
        f"this model needs the package ouroboros-llm ({error}); "
        "install it with `pip install 'ouroboros-llm[train]'`"
    ) from error

__all__ = ["OuroborosConfig", "OuroborosForCausalLM"]
'''


def write_module(folder: str | Path) -> None:
    """Writes the module that `AUTO_MAP` names into a checkpoint's `folder`."""
    (Path(folder) / f"{MODULE}.py").write_text(SOURCE, encoding="utf-8")
